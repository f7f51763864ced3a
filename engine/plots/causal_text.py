"""Describe a causal ranking in sentences, and as a table that puts reading and cause side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from engine.plots.findings import layers_in_words, p_in_words, p_relation, score_in_words
from engine.records.causal import CausalLayer, CausalRanking, ablation_works, works
from engine.records.files import CaptureRecord
from engine.records.results import SIGNIFICANT, RankedLayer

LEGEND = (
    "effect: change of the margin, nats per token  *: beyond chance and controls\n"
    "**: projecting out works too  random: effect of random directions\n"
    "wrong: share of prompts that move the wrong way  KL: damage, nats per token\n"
    "ablated: share of the personas' difference that projecting out removes"
)


def causal_findings(record: CaptureRecord) -> list[str]:
    """Say in sentences what steering does, and where reading and cause disagree.

    Args:
        record: Record of a contrast.

    Returns:
        Sentences; empty if the causal ranking was not measured.
    """
    causal = record.get("causal")
    if causal is None or not causal["layers"]:
        return []
    working = [row for row in causal["layers"] if works(row)]
    ranked = {row["layer"]: row for row in record["ranking"]["layers"]} if record["ranking"] else {}
    return [
        _effect(causal, working),
        *_wrong(causal),
        *_disagreement(causal, working, ranked),
        *_controls(causal),
        *_ablation(causal, working),
        _design(causal),
    ]


def _effect(causal: CausalRanking, working: Sequence[CausalLayer]) -> str:
    strength = f"{causal['strength']:g}"
    if not working:
        nearest = min(causal["layers"], key=lambda row: row["p_value"])
        return (
            f"Steering by {strength} was not found to move the answers at"
            f" {_any(causal)}: {p_relation(nearest['p_value'])} at layer {nearest['layer']}{_lowest(causal)}."
        )
    best = max(working, key=lambda row: row["effect"])
    return (
        f"Steering by {strength} moves the answers towards the concept at"
        f" {_layers(working)}, most at layer {best['layer']}: by"
        f" {_signed(best['effect'])} nats per token (95% interval {_signed(best['low'])} to {_signed(best['high'])};"
        f" random directions {best['random']:.3f}). {best['wrong_way']:.0%} of the prompts move the wrong way."
    )


def _any(causal: CausalRanking) -> str:
    rows = causal["layers"]
    return f"any of {len(rows)} layers" if len(rows) > 1 else _layers(rows)


def _lowest(causal: CausalRanking) -> str:
    return ", where it is lowest" if len(causal["layers"]) > 1 else ""


def _wrong(causal: CausalRanking) -> list[str]:
    against = [row for row in causal["layers"] if row["high"] < 0]
    if not against:
        return []
    return [f"At {_layers(against)}, steering moves the answers the wrong way, which random directions may do too."]


def _disagreement(causal: CausalRanking, working: Sequence[CausalLayer], ranked: dict[int, RankedLayer]) -> list[str]:
    tested = [row for row in causal["layers"] if row["layer"] in ranked]
    if len(tested) < 2:
        return []
    first = min(tested, key=lambda row: ranked[row["layer"]]["rank"])
    reads = f"Layer {first['layer']} reads best{'' if ranked[first['layer']]['rank'] == 1 else ' of these'}"
    if not works(first):
        return [f"{reads} (held-out d' {score_in_words(ranked[first['layer']]['d_prime'])}), but {_nothing(first)}."]
    best = max(working, key=lambda row: row["effect"])
    if best["low"] > first["high"]:
        return [f"{reads}, but steering does most at layer {best['layer']}."]
    return []


def _nothing(row: CausalLayer) -> str:
    said = f"({_signed(row['effect'])}, {p_relation(row['p_value'])})"
    if row["high"] < 0:
        return f"steering there moves the answers the wrong way {said}"
    if row["p_by_control"]["prompts"] <= SIGNIFICANT:
        return f"steering there does not clearly do more than the controls {said}"
    return f"steering there was not found to do anything {said}"


def _controls(causal: CausalRanking) -> list[str]:
    matched = [
        row
        for row in causal["layers"]
        if row["p_by_control"]["prompts"] <= SIGNIFICANT < row["p_by_control"]["controls"]
    ]
    if not matched:
        return []
    return [
        f"At {_layers(matched)}, the answers move as well, but not clearly more than with random directions and"
        " directions of permuted labels."
    ]


def _ablation(causal: CausalRanking, working: Sequence[CausalLayer]) -> list[str]:
    measured = [row for row in working if "ablation" in row]
    if not measured:
        return []
    both = [row for row in measured if ablation_works(row)]
    if not both:
        return [
            f"Projecting the direction out at {_layers(measured)} was not found to remove more of the difference"
            f" between the personas than controls{_size(causal)}."
        ]
    best = max(both, key=lambda row: row["ablation"])
    return [
        f"Projecting the direction out works too at {_layers(both)}: at layer"
        f" {best['layer']} it removes {best['ablation']:.0%} of the difference between the personas (95% interval"
        f" {best['ablation_low']:.0%} to {best['ablation_high']:.0%}; a control removes at most"
        f" {best['ablation_control']:.0%}{_size(causal)})."
    ]


def _size(causal: CausalRanking) -> str:
    if "ablation_prompts" not in causal:
        return ""
    return f"; {causal['ablation_prompts']} pairs, {causal['ablation_controls']} controls"


def _design(causal: CausalRanking) -> str:
    personas = f" of {causal['personas']} personas" if causal["personas"] else ""
    return (
        f"Measured on {causal['prompts']} held-out prompts{personas}, against {causal['random_directions']} random"
        f" directions and {causal['permutations']} of permuted labels, at {causal['candidates']}; smallest possible p"
        f" {causal['smallest_p']:.3f}."
    )


def causal_as_text(record: CaptureRecord) -> RenderableType:
    """Render a causal ranking as a table: reading on the left, cause on the right.

    Args:
        record: Record of a contrast whose causal ranking was measured.
    """
    causal = record.get("causal")
    if causal is None:
        return Text("the causal ranking was not measured", style="dim")
    ranked = {row["layer"]: row for row in record["ranking"]["layers"]} if record["ranking"] else {}
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for name in ("layer", "d'", "rank", "effect", "95% interval", "p", "random", "wrong", "KL", "ablated"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in causal["layers"]:
        table.add_row(*_cells(row, ranked.get(row["layer"])), style="bold" if works(row) else "")
    return Group(
        Text(f"reading and cause, steering by {causal['strength']:g}", style="bold"),
        table,
        Text(LEGEND, style="dim"),
        *(Text(sentence) for sentence in causal_findings(record)),
        *(Text(f"warning: {warning}", style="yellow") for warning in causal["warnings"]),
    )


def _cells(row: CausalLayer, ranked: RankedLayer | None) -> list[str]:
    mark = "**" if works(row) and ablation_works(row) else "* " if works(row) else "  "
    return [
        str(row["layer"]),
        score_in_words(ranked["d_prime"]) if ranked else "",
        str(ranked["rank"]) if ranked else "",
        f"{row['effect']:+.3f}{mark}",
        f"{row['low']:+.3f} to {row['high']:+.3f}",
        p_in_words(row["p_value"]),
        f"{row['random']:.3f}",
        f"{row['wrong_way']:.0%}",
        f"{row['damage']:.2f}",
        f"{row['ablation']:.0%}" if "ablation" in row else "",
    ]


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _layers(rows: Sequence[CausalLayer]) -> str:
    return f"layer{'' if len(rows) == 1 else 's'} {layers_in_words([row['layer'] for row in rows])}"
