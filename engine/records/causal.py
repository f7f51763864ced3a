"""Records of causal rankings and of calibrated strengths."""

from typing import NotRequired, TypedDict

from engine.records.results import SIGNIFICANT, Count, Real


class CausalLayer(TypedDict):
    """What steering at one layer does, against controls.

    Attributes:
        layer: Layer number.
        effect: Change in the log-probability margin between what the positive and what the negative persona say, in
            nats per token: half the difference between steering by the strength and by its negative, averaged over
            held-out neutral prompts.
        low: Lower end of the 95% interval of `effect`, over personas and prompts, simultaneous for all layers.
        high: Upper end of that interval.
        p_value: The largest of `p_by_control`.
        p_by_control: Corrected for the number of layers. `prompts`: the effect is zero for new prompts and personas.
            `controls`: random directions and directions of permuted labels do as much.
        random: Root mean square of the effects of the random directions.
        permuted: Root mean square of the effects of the directions of permuted labels.
        wrong_way: Share of prompts whose margin moves towards the negative class.
        quantiles: Effect at the 5%, 25%, 50%, 75% and 95% quantile of the prompts.
        damage: Mean KL divergence of the steered from the unsteered prediction of a token, over both signs, in nats.
        damage_random: The same for the random directions.
        perplexity: Factor by which steering raises the perplexity of what the personas say, over both signs.
        ablation: Share of the difference between the personas' own margins that disappears if the direction is
            projected out; absent without ablation.
        ablation_low: Lower end of its simultaneous 95% interval.
        ablation_high: Upper end of that interval.
        ablation_control: Largest share that a control removes.
        ablation_p: As `p_value`, for ablation: against chance, and against random and permuted directions together.
    """

    layer: Count
    effect: Real
    low: Real
    high: Real
    p_value: Real
    p_by_control: dict[str, Real]
    random: Real
    permuted: Real
    wrong_way: Real
    quantiles: list[Real]
    damage: Real
    damage_random: Real
    perplexity: Real
    ablation: NotRequired[Real]
    ablation_low: NotRequired[Real]
    ablation_high: NotRequired[Real]
    ablation_control: NotRequired[Real]
    ablation_p: NotRequired[Real]


class CausalRanking(TypedDict):
    """Layers by what steering there does.

    Attributes:
        layers: Layers, ascending.
        candidates: How the layers were chosen, in words.
        strength: Strength of steering, in units of the mean norm of the states.
        method: How the directions were extracted.
        prompts: Number of held-out neutral prompts.
        personas: Number of personas tested; 0 for pairs without personas.
        dropped: Number of pairs left out because both personas say the same, or one says nothing.
        answer_tokens: Maximum number of tokens of what a persona says.
        folds: Number of folds of personas and prompts; directions are fitted without the fold that is tested.
        random_directions: Number of random directions.
        permutations: Number of directions of permuted labels.
        smallest_p: Smallest p-value that this number of controls allows.
        margin: Mean margin of the unsteered model on the neutral prompts, in nats per token.
        persona_margin: Difference between the personas' own margins, in nats per token: what ablation can remove;
            absent, like the two fields below, without ablation.
        ablation_prompts: Number of pairs whose personas' prompts were run with directions projected out.
        ablation_controls: Number of random directions and directions of permuted labels that were projected out.
        seed: Seed for folds, controls and resamples.
        seconds: Duration of the measurement.
        warnings: Limits of the measurement.
    """

    layers: list[CausalLayer]
    candidates: str
    strength: Real
    method: str
    prompts: Count
    personas: Count
    dropped: Count
    answer_tokens: Count
    folds: Count
    random_directions: Count
    permutations: Count
    smallest_p: Real
    margin: Real
    persona_margin: NotRequired[Real]
    ablation_prompts: NotRequired[Count]
    ablation_controls: NotRequired[Count]
    seed: Count
    seconds: Real
    warnings: list[str]


class Calibration(TypedDict):
    """The largest strength at one layer whose damage stays under a bound.

    Attributes:
        layer: Layer number.
        strength: The strength, in units of the mean norm of the states, from 0.01 to 1.28: either end if the damage
            there is still above or below the bound.
        low: Lower end of its 95% interval, over prompts.
        high: Upper end of that interval.
        damage: KL divergence at that strength, in nats per token.
        perplexity: Factor by which the perplexity of the continuations rises at that strength.
        warnings: How the model differs from that of the direction; absent if it does not.
    """

    layer: Count
    strength: Real
    low: Real
    high: Real
    damage: Real
    perplexity: Real
    warnings: NotRequired[list[str]]


def works(row: CausalLayer) -> bool:
    """Whether steering at a layer does more than chance and controls explain."""
    return row["p_value"] <= SIGNIFICANT and row["effect"] > 0


def ablation_works(row: CausalLayer) -> bool:
    """Whether projecting the direction out does more than chance and controls explain."""
    return row.get("ablation_p", 1.0) <= SIGNIFICANT and row.get("ablation", 0.0) > 0
