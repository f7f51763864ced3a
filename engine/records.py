"""The typed records that pass between the stages: models and concepts, capture, store, statistics, plots.

Holds no behaviour and imports no torch: a record that carries tensors names their type only for the type checker.
Dictionaries (TypedDict) are what the how-to promises or what is written to disk; everything else is a frozen dataclass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NotRequired, TypedDict, final

if TYPE_CHECKING:
    from torch import Tensor

SourceKind = Literal["package", "hub", "folder", "gguf", "given"]


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
        alias: Short name used in file names and tables.
        model_id: Hub id, or the folder or file name for a model that is not on the hub.
        kind: `package` (GGUF inside an installed Python package), `hub`, `folder`, `gguf`, or `given` for a model
            object that the user made.
        location: Hub id or path, as the loader needs it.
        revision: Hub revision, or the version of the package; None when nothing pins it.
        gguf_file: File name inside `location` when the weights are GGUF.
        local: Whether it can be loaded here without a download.
    """

    alias: str
    model_id: str
    kind: SourceKind
    location: str
    revision: str | None = None
    gguf_file: str | None = None
    local: bool = True


@dataclass(frozen=True)
class ModelListing:
    """One line of the list of known models.

    Attributes:
        alias: The short name that `--model` takes.
        source: Where it would be loaded from on this machine.
        layers: Number of decoder blocks.
        parameters: Number of parameters, in words ("135M", "7.3B").
        note: What one should know before choosing it.
    """

    alias: str
    source: ModelSource
    layers: int
    parameters: str
    note: str = ""


class Receipt(TypedDict):
    """What the check at load found; saved with each capture.

    Attributes:
        blocks: Dotted path of the decoder blocks inside the model.
        final_norm: Dotted path of the final norm, or None for a family that has none.
        num_layers: Number of decoder blocks.
        hidden_size: Width of the residual stream.
        batched_error: How far padding and batching moved a token's state, relative to its norm.
        tolerance: How far they were allowed to, for this dtype.
        dtype: Dtype of the states that were compared.
    """

    blocks: str
    final_norm: str | None
    num_layers: int
    hidden_size: int
    batched_error: float
    tolerance: float
    dtype: str


@dataclass(frozen=True)
class ModelConfig:
    """What `load_model_and_tokenizer` says of the model it returns, third of three.

    Attributes:
        source: Where the weights came from.
        num_layers: Number of decoder blocks.
        hidden_size: Width of the residual stream.
        receipt: The check at load.
    """

    source: ModelSource
    num_layers: int
    hidden_size: int
    receipt: Receipt


@dataclass(frozen=True)
class Persona:
    """The two roles of a contrast, worded alike but for what the contrast is about."""

    name: str
    positive: str
    negative: str


@dataclass(frozen=True)
class Template:
    """How a persona and a topic become a conversation; both texts may hold `{persona}` and `{topic}`."""

    name: str
    user: str
    system: str = ""


@dataclass(frozen=True)
class Concept:
    """A named contrast: what is varied (personas) and what it is varied over (templates, topics)."""

    name: str
    description: str
    positive: str
    negative: str
    personas: tuple[Persona, ...]
    templates: tuple[Template, ...]
    topics: tuple[str, ...]


class Factors(TypedDict):
    """What a pair was made from: statistics leave one of these out at a time."""

    template: str
    persona: str
    topic: str


class Message(TypedDict):
    """One turn of a conversation, as chat templates take it."""

    role: str
    content: str


@dataclass(frozen=True)
class Pair:
    """One positive and one negative conversation that differ only in the persona."""

    positive: tuple[Message, ...]
    negative: tuple[Message, ...]
    factors: Factors


class Provenance(TypedDict):
    """Everything that must be equal, or known to differ, before two captures are compared.

    Attributes:
        model: Model id.
        alias: Short name of the model.
        revision: Hub revision or package version, None when nothing pins it.
        source: Kind of source.
        dtype: Dtype of the weights.
        device: Where the first block lay.
        attention: Attention implementation.
        chat_template: SHA-256 of the chat template that prompts went through, None when they were plain text.
        versions: Versions of layerscope, Python, torch and transformers.
        site: What was read at each layer.
        positions: Which tokens were kept.
        mode: `hooks` or `hidden_states`.
        batch_size: Most prompts in one forward pass.
        seed: Seed of the draw of pairs, None where nothing was drawn.
        receipt: The check at load.
    """

    model: str
    alias: str
    revision: str | None
    source: SourceKind
    dtype: str
    device: str
    attention: str
    chat_template: str | None
    versions: dict[str, str]
    site: str
    positions: str
    mode: str
    batch_size: int
    seed: int | None
    receipt: Receipt


@final
class ActivationData(TypedDict):
    """What `capture_activations` returns.

    Attributes:
        activations: Layer number to states, `(batch, kept tokens, hidden)`, on the CPU in the model's dtype (float32
            for a mean). Rows of a batch end together: `[:, -1, :]` is the last kept token of every prompt, shorter
            prompts have zeros in front.
        input_ids: Token ids of the whole prompts, `(batch, sequence)`, aligned like the states.
        tokens: Token strings of the prompt; one list per prompt when several were given.
        prompt: The text; a list when several were given.
        num_layers: Number of decoder blocks in the model.
        captured_layers: The keys of `activations`, ascending.
        attention_mask: 1 where `activations` hold a token's state, 0 where they hold the zeros in front of a shorter
            prompt, `(batch, kept tokens)`; only when several prompts were given.
        provenance: How it was made. Lies in the JSON file on disk, not in the `.pt`.
    """

    activations: dict[int, Tensor]
    input_ids: Tensor
    tokens: list[str] | list[list[str]]
    prompt: str | list[str]
    num_layers: int
    captured_layers: list[int]
    attention_mask: NotRequired[Tensor]
    provenance: NotRequired[Provenance]


@final
class ContrastData(TypedDict):
    """What `capture_contrastive_activations` and `capture_from_concept` return.

    Attributes:
        positive: One capture per pair, each with a batch of one.
        negative: The other side, in the same order.
        num_pairs: Number of pairs.
        concept: Name of the concept, None for prompts of the user's own.
        layers: Captured layers, ascending.
        factors: What each pair was made from. Lies in the JSON file on disk, not in the `.pt`.
        provenance: How it was made. Lies in the JSON file on disk, not in the `.pt`.
    """

    positive: list[ActivationData]
    negative: list[ActivationData]
    num_pairs: int
    concept: str | None
    layers: list[int]
    factors: NotRequired[list[Factors]]
    provenance: NotRequired[Provenance]


CaptureData = ActivationData | ContrastData


class LayerStats(TypedDict):
    """Summary of one layer: mean and standard deviation of all values, mean L2 norm of a token's state."""

    mean: float
    std: float
    norm: float


class LayerDiff(TypedDict):
    """Contrast at one layer, last token.

    Attributes:
        diff_norm: L2 norm of the difference of the two means. Grows with depth whatever the concept.
        relative_norm: `diff_norm` over the mean norm of the states it is the difference of.
        cosine_sim: Cosine of the two means. Near 1 is normal.
    """

    diff_norm: float
    relative_norm: float
    cosine_sim: float


class Separation(TypedDict):
    """How well two sets of projections separate: distance over spread, and share of prompts in the right order."""

    d_prime: float
    auroc: float


class LayerSeparation(TypedDict):
    """Held-out separation at one layer.

    Attributes:
        worst: What was left out where `d_prime` is lowest: the score of the layer.
        by_factor: `persona`, `template` and `topic` as far as they vary, or `pairs` for pairs without factors.
    """

    worst: str
    by_factor: dict[str, Separation]


class LayerRow(LayerStats):
    """What the JSON holds of one layer; what only a contrast has is None for prompts.

    `separation` is None also for a contrast with too few pairs to leave any out.
    """

    layer: int
    diff_norm: float | None
    relative_norm: float | None
    cosine_sim: float | None
    separation: LayerSeparation | None


class DataFile(TypedDict):
    """The `.pt` that a JSON file belongs to."""

    name: str
    bytes: int
    sha256: str


class CaptureRecord(TypedDict):
    """The JSON file of a capture: all that is needed to list, filter and rank without torch.

    Attributes:
        schema: Version of this layout.
        name: Name of the capture in its store.
        kind: `prompt` or `contrast`.
        created: Time of saving, ISO 8601 in UTC.
        data: The tensor file.
        concept: Name of the concept, None if there is none.
        num_pairs: Pairs of a contrast, 0 for prompts.
        num_layers: Decoder blocks of the model.
        hidden_size: Width of the states.
        captured_layers: Which were captured.
        prompts: The exact texts; of a contrast the positive ones.
        negative_prompts: The negative texts of a contrast, in the same order.
        factors: What each pair was made from.
        statistics: One row per captured layer.
        provenance: How it was made; None for data that did not come from a capture function.
    """

    schema: int
    name: str
    kind: Literal["prompt", "contrast"]
    created: str
    data: DataFile
    concept: str | None
    num_pairs: int
    num_layers: int
    hidden_size: int
    captured_layers: list[int]
    prompts: list[str]
    negative_prompts: list[str]
    factors: list[Factors]
    statistics: list[LayerRow]
    provenance: Provenance | None
