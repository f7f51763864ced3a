"""Made-up records of captures: what the JSON files hold, without files."""

from collections.abc import Sequence

from engine.records.files import CaptureRecord
from engine.records.statistics import LayerRow, LayerSeparation, Separation
from tests.engine.stats.captures import provenance

# Not in the order of the layers, and largest neither first nor last.
RELATIVE_NORMS = [0.02, 0.11, 0.05, 0.08]


def contrast_rows(relative_norms: Sequence[float] = RELATIVE_NORMS, scale: float = 1.0) -> list[LayerRow]:
    """Rows of layers 0, 1, ... of a contrast; `scale` is the size of the states."""
    return [
        LayerRow(
            layer=layer,
            mean=0.01 * layer * scale,
            std=1.5 * scale,
            norm=20.0 * (layer + 1) * scale,
            diff_norm=0.5 * (layer + 1) * scale,
            relative_norm=relative_norm,
            cosine_sim=1 - 0.001 * layer,
            separation=None,
        )
        for layer, relative_norm in enumerate(relative_norms)
    ]


def separated_rows(d_primes: Sequence[tuple[float, float]]) -> list[LayerRow]:
    """Rows whose d' is given with a persona and with a topic left out; AUROC follows the worse one."""
    rows = contrast_rows([0.1] * len(d_primes))
    for row, (persona, topic) in zip(rows, d_primes, strict=True):
        row["separation"] = LayerSeparation(
            worst="persona" if persona < topic else "topic",
            by_factor={
                "persona": Separation(d_prime=persona, auroc=0.5 + persona / 10),
                "topic": Separation(d_prime=topic, auroc=0.5 + topic / 10),
            },
        )
    return rows


def prompt_rows(num_layers: int = 4, scale: float = 1.0) -> list[LayerRow]:
    """Rows of layers 0, 1, ... of a prompt."""
    rows = contrast_rows([0.0] * num_layers, scale)
    for row in rows:
        row["diff_norm"] = row["relative_norm"] = row["cosine_sim"] = None
    return rows


def contrast_record(
    rows: list[LayerRow] | None = None, concept: str | None = "honesty", num_pairs: int = 8
) -> CaptureRecord:
    """The record of a contrast."""
    rows = contrast_rows() if rows is None else rows
    return CaptureRecord(
        schema=1,
        name="some_honesty",
        kind="contrast",
        created="2026-01-02T03:04:05+00:00",
        data={"name": "some_honesty.pt", "bytes": 1, "sha256": "0" * 64},
        concept=concept,
        num_pairs=num_pairs,
        num_layers=len(rows),
        hidden_size=16,
        captured_layers=[row["layer"] for row in rows],
        prompts=["Be honest."] * num_pairs,
        negative_prompts=["Be deceptive."] * num_pairs,
        factors=[],
        statistics=rows,
        provenance=provenance(positions="last"),
    )


def prompt_record(rows: list[LayerRow] | None = None, num_prompts: int = 1) -> CaptureRecord:
    """The record of prompts."""
    record = contrast_record(prompt_rows() if rows is None else rows, concept=None, num_pairs=0)
    record["name"], record["kind"] = "some_prompt", "prompt"
    record["prompts"] = ["Tell me a story"] * num_prompts
    return record
