"""Records of steered texts."""

from typing import Literal, NotRequired, TypedDict, get_args

from engine.records.files import Method

Unit = Literal["norm", "gap", "raw"]
"""Unit of strength: the mean norm of the states, the distance between the class means, or the unit vector."""

UNITS: tuple[Unit, ...] = get_args(Unit)

STRENGTHS = tuple(0.01 * 2 ** (step / 2) for step in range(15))
"""Strengths that a calibration tries, in units of the mean norm of the states: 0.01 to 1.28."""

Tokens = Literal["all", "prompt", "generated"]
"""Which tokens are steered. Tokens that run while the key-value cache holds none are the prompt."""

TOKENS: tuple[Tokens, ...] = get_args(Tokens)

Damage = Literal["kl", "perplexity"]
"""Measure of damage: the KL divergence from the unsteered prediction, or the factor by which perplexity rises."""

DAMAGES: tuple[Damage, ...] = get_args(Damage)

Kind = Literal["baseline", "steered", "ablated", "control"]
"""How a text was written: without steering, with it, without the direction, or with a random direction."""


class SteeredText(TypedDict):
    """One text that the model wrote, as the unsteered model reads it.

    Attributes:
        kind: How it was written.
        strength: Strength of steering; None without.
        text: The new text, without special tokens.
        tokens: Number of its tokens, without a final end-of-text token.
        ended: Whether the model ended the text before the maximum length.
        perplexity: Perplexity of its tokens after the prompt; NaN, like `projection` and `shift`, if there is no text.
        projection: Mean projection of its tokens at the layer: 0 at the mean of the negative class, 1 at that of the
            positive class.
        shift: Projection minus that of the baseline.
        token_ids: Ids of its tokens; like the two fields below absent from older results.
        token_texts: Readable text of each token.
        projections: Projection of each token; their mean is `projection`.
        problem: Why there is no text: a state or a prediction overflows at this strength. Absent otherwise.
    """

    kind: Kind
    strength: float | None
    text: str
    tokens: int
    ended: bool
    perplexity: float
    projection: float
    shift: float
    token_ids: NotRequired[list[int]]
    token_texts: NotRequired[list[str]]
    projections: NotRequired[list[float]]
    problem: NotRequired[str]


class SteeredTexts(TypedDict):
    """Texts for one prompt, with and without steering.

    Attributes:
        prompt: The prompt.
        rendered: The prompt as the model received it.
        layer: Layer of the direction.
        concept: Name of the concept.
        method: How the direction was extracted.
        unit: Unit of strength: `norm`, `gap` or `raw`.
        steered_tokens: Which tokens were steered: `all`, `prompt` or `generated`.
        unit_length: Length of the vector that a strength of 1 adds; absent for ablation.
        sampled: Whether tokens were sampled; otherwise the most likely one was chosen.
        seed: Seed for sampling and for the random direction.
        max_new_tokens: Maximum number of new tokens.
        baseline: The text without steering.
        steered: The steered texts, one per strength; for ablation, one.
        controls: The texts with a random direction instead, in the same order; empty without the pairs.
        control_cosine: Cosine between the random direction and the direction; absent without controls.
        warnings: Warnings that limit how far the texts can be compared.
    """

    prompt: str
    rendered: str
    layer: int
    concept: str | None
    method: Method | Literal["imported"]
    unit: Unit
    steered_tokens: Tokens
    unit_length: NotRequired[float]
    sampled: bool
    seed: int
    max_new_tokens: int
    baseline: SteeredText
    steered: list[SteeredText]
    controls: list[SteeredText]
    control_cosine: NotRequired[float]
    warnings: list[str]
