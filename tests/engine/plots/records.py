"""Synthetic JSON records of captures."""

from collections.abc import Collection, Sequence
from typing import Any

from engine.records.causal import CausalLayer, CausalRanking
from engine.records.files import CaptureRecord
from engine.records.results import Confound, ConfoundReport, LayerRow, RankedLayer, Ranking, Separation
from tests.engine.stats.captures import provenance

# Not monotonic, and the largest is neither first nor last.
RELATIVE_NORMS = [0.02, 0.11, 0.05, 0.08]
D_PRIMES = [0.4, 2.0, 1.7, -0.2]
TOO_FEW = "2 pairs are too few to rank layers by"


def contrast_rows(relative_norms: Sequence[float] = RELATIVE_NORMS, scale: float = 1.0) -> list[LayerRow]:
    """Rows of a contrast for layers 0, 1, ...; `scale` multiplies the states."""
    return [
        LayerRow(
            layer=layer,
            mean=0.01 * layer * scale,
            std=1.5 * scale,
            norm=20.0 * (layer + 1) * scale,
            diff_norm=0.5 * (layer + 1) * scale,
            relative_norm=relative_norm,
            cosine_sim=1 - 0.001 * layer,
            pair_cosine=0.3,
        )
        for layer, relative_norm in enumerate(relative_norms)
    ]


def prompt_rows(num_layers: int = 4, scale: float = 1.0) -> list[LayerRow]:
    """Rows of a prompt capture for layers 0, 1, ..."""
    rows = contrast_rows([0.0] * num_layers, scale)
    for row in rows:
        row["diff_norm"] = row["relative_norm"] = row["cosine_sim"] = row["pair_cosine"] = None
    return rows


def ranking_of(
    d_primes: Sequence[float] = D_PRIMES,
    tied: Collection[int] = (),
    p_values: Sequence[float] | None = None,
    left_out: str = "persona",
    half: float = 0.5,
    **changes: Any,
) -> Ranking:
    """A ranking of layers 0, 1, ... by d'; `changes` replaces other fields.

    Intervals have half-width `half`, the permutation null spans -0.25 to 0.25, and p-values default to 0.004. AUROC
    rises with d', and the share of misordered pairs falls. The layers in `tied` are tied with the best.
    """
    order = sorted(range(len(d_primes)), key=lambda layer: -d_primes[layer])
    open_to = {order[0], *tied}
    layers = []
    for rank, layer in enumerate(order, start=1):
        d_prime, is_tied = d_primes[layer], layer in open_to
        auroc = 0.5 + d_prime / (2 * (1 + abs(d_prime)))
        separation = Separation(d_prime=d_prime, auroc=auroc, wrong_way=1 - auroc)
        layers.append(
            RankedLayer(
                layer=layer,
                rank=rank,
                low=d_prime - half,
                high=d_prime + half,
                rank_low=1 if is_tied else 1 + len(open_to),
                rank_high=len(open_to) if is_tied else len(order),
                tied=is_tied,
                p_value=p_values[layer] if p_values else 0.004,
                p_by_factor={left_out: p_values[layer] if p_values else 0.004},
                null_low=-0.25,
                null_high=0.25,
                left_out=left_out,
                by_factor={left_out: separation},
                **separation,
            )
        )
    made = Ranking(
        layers=layers,
        groups={left_out: 12},
        tested=[left_out],
        confidence=0.95,
        margins=[[0.4] * (len(d_primes) - 1 - layer) for layer in range(len(d_primes) - 1)],
        chance=0.75,
        smallest_p=1 / 2048,
        resamples=2000,
        permutations=2048,
        seed=0,
        limits={left_out: 0.7, "pair": 0.3},
        warnings=[],
    )
    return made | changes  # type: ignore[return-value]  # merging with a plain dict loses the TypedDict


def confounds_of(auroc: float = 0.5, warnings: Sequence[str] = ()) -> ConfoundReport:
    """Two baselines; prompt length separates the classes with the given AUROC."""
    return ConfoundReport(
        checks=[
            Confound(
                what="prompt length", auroc=auroc, detail="40.0 tokens on the positive side, 31.5 on the negative"
            ),
            Confound(what="all words", auroc=0.5, detail="positive and negative prompts with 'a' in 8 and 8"),
        ],
        warnings=list(warnings),
    )


def contrast_record(
    rows: list[LayerRow] | None = None,
    ranking: Ranking | None = None,
    concept: str | None = "honesty",
    num_pairs: int = 72,
    confounds: ConfoundReport | None = None,
) -> CaptureRecord:
    """Record of a contrast, ranked by `ranking_of()` unless given."""
    ranking = ranking_of() if ranking is None else ranking
    rows = contrast_rows([0.1] * len(ranking["layers"])) if rows is None else rows
    return CaptureRecord(
        schema=3,
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
        ranking=ranking,
        sides=[],
        unranked="",
        confounds=confounds_of() if confounds is None else confounds,
        provenance=provenance(positions="last"),
    )


def unranked_record(
    rows: list[LayerRow] | None = None, reason: str = TOO_FEW, num_pairs: int = 2, concept: str | None = "honesty"
) -> CaptureRecord:
    """Record of a contrast without a ranking."""
    record = contrast_record(contrast_rows() if rows is None else rows, concept=concept, num_pairs=num_pairs)
    record["ranking"], record["unranked"] = None, reason
    record["confounds"] = ConfoundReport(checks=[], warnings=[])
    return record


def prompt_record(rows: list[LayerRow] | None = None, num_prompts: int = 1) -> CaptureRecord:
    """Record of a prompt capture."""
    record = unranked_record(prompt_rows() if rows is None else rows, reason="", num_pairs=0, concept=None)
    record["name"], record["kind"], record["confounds"] = "some_prompt", "prompt", None
    record["data"]["name"] = "some_prompt.pt"
    record["prompts"] = ["Tell me a story"] * num_prompts
    return record


def causal_layer(layer: int, effect: float, **changes: Any) -> CausalLayer:
    """A layer whose effect has an interval of 0.05 on either side; it works if the effect is above 0.05."""
    p_value = 0.01 if effect > 0.05 else 0.5
    made = CausalLayer(
        layer=layer,
        effect=effect,
        low=effect - 0.05,
        high=effect + 0.05,
        p_value=p_value,
        p_by_control={"prompts": 0.01, "controls": p_value},
        random=0.02,
        permuted=0.02,
        wrong_way=0.25,
        quantiles=[effect - 0.2, effect - 0.1, effect, effect + 0.1, effect + 0.2],
        damage=0.03,
        damage_random=0.02,
        perplexity=1.1,
    )
    return made | changes  # type: ignore[return-value]  # as above


def causal_ranking(layers: Sequence[CausalLayer], **changes: Any) -> CausalRanking:
    """What steering does at a few layers."""
    made = CausalRanking(
        layers=list(layers),
        candidates="the tied layers and their neighbors",
        strength=0.1,
        method="mean_diff",
        prompts=24,
        personas=12,
        dropped=0,
        answer_tokens=16,
        folds=3,
        random_directions=19,
        permutations=19,
        smallest_p=0.05,
        margin=0.4,
        persona_margin=0.8,
        seed=0,
        seconds=60.0,
        warnings=[],
    )
    return made | changes  # type: ignore[return-value]  # as above
