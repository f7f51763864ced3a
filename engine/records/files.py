"""Records of directions, token readings, and the JSON files of the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NotRequired, TypedDict, get_args

from engine.records.captures import Factors, Provenance, ResponseText
from engine.records.causal import CausalRanking
from engine.records.results import (
    SIGNIFICANT,
    ClassSummary,
    ConfoundReport,
    Count,
    LayerRow,
    Ranking,
    Real,
    SpecificityReport,
)

if TYPE_CHECKING:
    from torch import Tensor


Method = Literal["mean_diff", "pca", "logistic", "lda"]

METHODS: tuple[Method, ...] = get_args(Method)

AUTO_METHOD = "auto"
"""Name for the method that separates held-out pairs best."""

VectorFormat = Literal["gguf", "safetensors", "npz"]

VECTOR_FORMATS: tuple[VectorFormat, ...] = get_args(VectorFormat)

FIGURE_FORMATS = (".png", ".svg", ".pdf")
"""Suffixes of figures."""

VectorOrigin = Literal["llama.cpp", "llama.cpp-generator", "repeng", "persona-vectors", "refusal-direction"]

VECTOR_ORIGINS: tuple[VectorOrigin, ...] = get_args(VectorOrigin)
"""Tools whose control vectors can be imported."""


class MethodScore(TypedDict):
    """Held-out separation by the directions of one method.

    Attributes:
        method: How the directions were extracted.
        auroc: Share of (positive, negative) held-out prompts in the right order.
        d_prime: Distance between the class means in units of the spread within a class.
    """

    method: Method
    auroc: Real
    d_prime: Real


class MethodComparison(TypedDict):
    """Methods of extracting a direction, compared on held-out pairs at one layer.

    Attributes:
        layer: Layer number.
        held_out: Factor that was held out; empty if none could be.
        scores: One entry per method, highest AUROC first.
        best: The method with the highest AUROC; `mean_diff` if it is within 0.005 of that.
    """

    layer: Count
    held_out: str
    scores: list[MethodScore]
    best: Method


class Imported(TypedDict):
    """Where imported vectors come from.

    Attributes:
        origin: The tool that wrote them; empty for vectors given in Python.
        file: Name of the file; empty without one.
        model: The model that they were said to belong to, as its alias or path.
    """

    origin: str
    file: str
    model: str


class Direction(TypedDict):
    """A unit vector at one layer, positive minus negative.

    Attributes:
        layer: Layer number.
        vector: `(hidden,)`, float32, unit length; the positive class projects higher.
        negative_mean: Mean projection of the negative class, in the units of the states.
        positive_mean: Mean projection of the positive class.
        method: How the direction was extracted.
        concept: Name of the concept; None for the user's own pairs.
        num_pairs: Number of pairs it was extracted from.
        provenance: How the pairs were captured; None if unknown.
        norm: Mean L2 norm of the states of both classes, the unit of steering strength; absent in older files.
        methods: Comparison of the methods, if it chose this one.
        imported: Where an imported vector comes from. Its `positive_mean` is then the length it had in the file, its
            `negative_mean` 0.
    """

    layer: int
    vector: Tensor
    negative_mean: float
    positive_mean: float
    method: Method | Literal["imported"]
    concept: str | None
    num_pairs: int
    provenance: Provenance | None
    norm: NotRequired[float]
    methods: NotRequired[MethodComparison]
    imported: NotRequired[Imported]


class DirectionSummary(TypedDict):
    """One layer's direction in a directions file, without its vector."""

    layer: int
    negative_mean: float
    positive_mean: float
    norm: NotRequired[float]


class DirectionsHeader(TypedDict):
    """Metadata of a directions file.

    Attributes:
        schema: Version of this layout.
        layers: One entry per direction, ascending.
        leading: Top-ranked layer of the capture; None if it has no ranking.
        capture: Name of the capture that the directions come from.
        method: How the directions were extracted.
        concept: Name of the concept.
        num_pairs: Number of pairs.
        provenance: How the pairs were captured.
        methods: Comparison of the methods, if it chose this one.
        imported: Where imported vectors come from.
    """

    schema: int
    layers: list[DirectionSummary]
    leading: int | None
    capture: str
    method: Method | Literal["imported"]
    concept: str | None
    num_pairs: int
    provenance: Provenance | None
    methods: NotRequired[MethodComparison]
    imported: NotRequired[Imported]


class TokenReading(TypedDict):
    r"""Projections of every token of a text onto directions.

    Attributes:
        prompt: The text.
        tokens: Its tokens, as spelled in the vocabulary.
        layers: Layers that were read, ascending.
        leading: The layer to look at first.
        values: Layer to one value per token, scaled so that 0 is the mean of the negative class and 1 that of the
            positive class.
        concept: Name of the concept.
        method: How the directions were extracted.
        warnings: Warnings that limit how far the values can be trusted.
        texts: Readable text of each token. Bytes of an incomplete character and control characters are escapes such as
            `\xf0`.
        set_aside: Indices of the tokens that say little about the text: the first token, whose state is an outlier in
            many models, special tokens, and the markup of the chat template.
        methods: Comparison of the methods, if it chose this one.
    """

    prompt: str
    tokens: list[str]
    layers: list[int]
    leading: int
    values: dict[int, list[float]]
    concept: str | None
    method: Method | Literal["imported"]
    warnings: list[str]
    texts: NotRequired[list[str]]
    set_aside: NotRequired[list[Count]]
    methods: NotRequired[MethodComparison]


class DataFile(TypedDict):
    """The tensor file or folder of shards that a JSON file describes.

    Attributes:
        name: Name of the `.pt` file, or of the folder of shards with a trailing slash.
        bytes: Size of the file or of all shards, in bytes.
        sha256: SHA-256 of the file; for shards, of their plan.
    """

    name: str
    bytes: Count
    sha256: str


class NumberedPair(TypedDict):
    """One pair of a capture, with its number.

    Attributes:
        number: Index of the pair in the capture, from 0.
        positive: The positive prompt.
        negative: The negative prompt.
        factors: Factors of the pair; None if unknown.
    """

    number: Count
    positive: str
    negative: str
    factors: Factors | None


class CaptureRecord(TypedDict):
    """The JSON file of a capture: enough to list, filter and rank it without torch.

    Attributes:
        schema: Version of this layout.
        name: Name of the capture in its store.
        kind: `prompt` or `contrast`.
        created: Time of saving, in ISO 8601, UTC.
        data: The tensor file or folder of shards.
        concept: Name of the concept; None if there is none.
        num_pairs: Number of pairs of a contrast; 0 for prompts.
        num_layers: Number of decoder blocks of the model.
        hidden_size: Width of the states.
        captured_layers: Captured layers.
        prompts: The exact texts; for a contrast, the positive prompts. For a capture saved as shards, only the first
            few, since the shards hold all of them.
        num_prompts: Total number of prompts; present if `prompts` holds only the first few.
        negative_prompts: The negative prompts of a contrast, in the same order.
        responses: The responses to `prompts`; absent if the capture has none.
        negative_responses: The responses to `negative_prompts`; absent if the capture has none.
        factors: Factors of each pair.
        other_pairs: Further pairs named in `sides` that `prompts` does not hold; for captures saved as shards.
        statistics: One row per captured layer.
        ranking: Layers of a contrast by held-out separation; None for prompts and for contrasts that cannot be ranked.
        sides: Projections of the held-out prompts of both classes, for each layer where the classes differ; empty
            without a ranking.
        unranked: Why a contrast has no ranking; empty if it has one.
        confounds: How well baselines without the model separate the classes of a contrast.
        specificity: How well the directions of neighbours sort the pairs of a contrast; absent if nobody asked.
        causal: Layers by what steering there does; absent until it is measured.
        provenance: How the capture was made; None for data that did not come from a capture function.
    """

    schema: Count
    name: str
    kind: Literal["prompt", "contrast"]
    created: str
    data: DataFile
    concept: str | None
    num_pairs: Count
    num_layers: Count
    hidden_size: Count
    captured_layers: list[Count]
    prompts: list[str]
    num_prompts: NotRequired[Count]
    negative_prompts: list[str]
    responses: NotRequired[list[ResponseText]]
    negative_responses: NotRequired[list[ResponseText]]
    factors: list[Factors]
    other_pairs: NotRequired[list[NumberedPair]]
    statistics: list[LayerRow]
    ranking: Ranking | None
    sides: list[ClassSummary]
    unranked: str
    confounds: ConfoundReport | None
    specificity: NotRequired[SpecificityReport | None]
    causal: NotRequired[CausalRanking]
    provenance: Provenance | None


def count_prompts(record: CaptureRecord) -> int:
    """Number of prompts of a capture; for a contrast, those of both classes."""
    return record.get("num_prompts", len(record["prompts"]) + len(record["negative_prompts"]))


def record_warnings(record: CaptureRecord) -> list[str]:
    """Warnings that limit how far a capture can be trusted, as sentences."""
    provenance = record["provenance"]
    changes = [*provenance.get("altered", [])] if provenance else []
    if provenance and "autocast" in provenance:
        changes.append(f"autocast to {provenance['autocast']}")
    ranking, confounds, specificity = record["ranking"], record["confounds"], record.get("specificity")
    return [
        *([f"the model differed from its checkpoint: {'; '.join(changes)}"] if changes else []),
        *_same_responses(record),
        *([f"not ranked: {record['unranked']}"] if record["unranked"] else []),
        *(ranking["warnings"] if ranking else []),
        *(confounds["warnings"] if confounds else []),
        *([f"not compared with neighbours: {specificity['reason']}"] if specificity and specificity["reason"] else []),
        *(specificity["warnings"] if specificity else []),
        *causal_warnings(record),
    ]


def not_found_warnings(record: CaptureRecord) -> list[str]:
    """Warn that no layer was shown to separate the classes of a contrast: its direction may be noise."""
    name, ranking = record["name"], record["ranking"]
    if ranking is None:
        why = record["unranked"]
        return [f"{name} has no ranking ({why}): its direction may be noise"] if why else []
    if any(row["p_value"] <= SIGNIFICANT for row in ranking["layers"]):
        return []
    if ranking["smallest_p"] > SIGNIFICANT:
        least = f"{ranking['smallest_p']:.3f}"
        return [f"{name} cannot be tested (p cannot fall below {least}): its direction may be noise"]
    return [f"no layer of {name} separates its classes better than chance: its direction may be noise"]


def causal_warnings(record: CaptureRecord) -> list[str]:
    """Warnings of the causal ranking, as sentences that say so; empty without one."""
    causal = record.get("causal")
    return [f"causal ranking: {warning}" for warning in causal["warnings"]] if causal else []


def _same_responses(record: CaptureRecord) -> list[str]:
    one, other = record.get("responses", []), record.get("negative_responses", [])
    pairs = [*zip(one, other, strict=False)]
    same = sum(first["text"] == second["text"] for first, second in pairs)
    return [f"both responses are the same in {same} of {len(pairs)} pairs"] if same else []


def find_pair(record: CaptureRecord, number: int) -> NumberedPair:
    """Look up a pair in the record of a contrast.

    Args:
        record: Record of a contrast.
        number: Number of one of the first pairs, or of a pair named in `sides`.

    Raises:
        KeyError: The record does not hold the texts of that pair.
    """
    if number < len(record["prompts"]):
        factors = record["factors"][number] if record["factors"] else None
        texts = record["prompts"][number], record["negative_prompts"][number]
        return NumberedPair(number=number, positive=texts[0], negative=texts[1], factors=factors)
    return {pair["number"]: pair for pair in record.get("other_pairs", [])}[number]


class PromptList(TypedDict):
    """Summary of a list of prompts, without the prompts.

    Attributes:
        file: Name of the file or concept that the prompts came from.
        pairs: Whether the prompts are pairs in the order positive, negative, positive, and so on.
        count: Number of prompts.
        tokens: Number of tokens in all prompts; with responses to come, the maximum, also of the two numbers below.
        kept: Maximum number of positions kept of one prompt.
        kept_in_all: Number of positions kept of all prompts.
        texts: SHA-256 of the texts.
        ids: SHA-256 of the token ids.
        factors: SHA-256 of the factors of the pairs; empty if unknown.
    """

    file: str
    pairs: bool
    count: int
    tokens: int
    kept: int
    kept_in_all: int
    texts: str
    ids: str
    factors: str


class ShardPlan(TypedDict):
    """Contents of `plan.json`, written before the first shard of a capture.

    Attributes:
        schema: Version of this layout.
        prompts: Summary of the prompts to capture.
        concept: Name of the concept; None for the user's own prompts and pairs.
        shard_prompts: Number of prompts in each shard except the last.
        layers: Captured layers.
        num_layers: Number of decoder blocks of the model.
        hidden_size: Width of the states.
        store_dtype: Dtype of the stored states; `as captured` to store them unconverted.
        weights: Fingerprint of the model's weights.
        provenance: How the capture is made.
    """

    schema: int
    prompts: PromptList
    concept: str | None
    shard_prompts: int
    layers: list[int]
    num_layers: int
    hidden_size: int
    store_dtype: str
    weights: str
    provenance: Provenance
