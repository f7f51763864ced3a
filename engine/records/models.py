"""What is known of a model: where it comes from, and what the check at load found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict

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
        revision: Commit on the hub, version of the package, or hash of the GGUF file; None when nothing pins it.
        gguf_file: File name inside `location` when the weights are GGUF.
        adapter: Folder of an adapter of peft that is put onto these weights.
        local: Whether it can be loaded here without a download.
    """

    alias: str
    model_id: str
    kind: SourceKind
    location: str
    revision: str | None = None
    gguf_file: str | None = None
    adapter: str | None = None
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
        attn_out: Dotted name, inside each block, of the part whose output is what attention adds to the stream: the
            attention, or the norm after it. None where no part was found to be that, under one name in every block.
        mlp_out: The same of the feed-forward.
        num_layers: Number of decoder blocks.
        hidden_size: Width of the residual stream.
        batched_error: How far padding and batching moved a token's state, relative to its norm.
        tolerance: How far they were allowed to, for this dtype.
        dtype: Dtype of the states that were compared.
        separate: Why prompts cannot share the run of what they begin with; empty when they can. Older checks, like the
            two below, did not ask.
        window: The longest prompt in which every token sees all those before it, None when there is no limit.
        onednn_error: How far the median token's state moves, relative to its norm, when float32 products go through
            oneDNN, or a single product of many tokens, if that is more; None where they cannot.
    """

    blocks: str
    final_norm: str | None
    attn_out: str | None
    mlp_out: str | None
    num_layers: int
    hidden_size: int
    batched_error: float
    tolerance: float
    dtype: str
    separate: NotRequired[str]
    window: NotRequired[int | None]
    onednn_error: NotRequired[float | None]


class Adapter(TypedDict):
    """An adapter of peft on a model.

    Attributes:
        name: What it is called on the model.
        kind: Its kind in peft, such as `LORA`.
        rank: Its rank, None for a kind without one.
        scales: The factors by which its layers scale it, each once, ascending; empty for a kind without them.
        active: Whether it takes part in a forward pass.
        merged: Whether it has been merged into the weights.
        weights: SHA-256 of its weights.
    """

    name: str
    kind: str
    rank: int | None
    scales: list[float]
    active: bool
    merged: bool
    weights: str


@dataclass(frozen=True)
class ModelConfig:
    """What `load_model_and_tokenizer` says of the model it returns, third of three.

    Attributes:
        source: Where the weights came from.
        num_layers: Number of decoder blocks.
        hidden_size: Width of the residual stream.
        receipt: The check at load.
        weights: Fingerprint of the weights, without those of adapters.
        adapters: The adapters on it.
        added: Code in it that is neither its own nor a framework's, in words.
        edited: What was done to its weights and modules since it was first seen, in words.
        autocast: The dtype that autocast computes in; None without autocast.
    """

    source: ModelSource
    num_layers: int
    hidden_size: int
    receipt: Receipt
    weights: str = ""
    adapters: tuple[Adapter, ...] = ()
    added: tuple[str, ...] = ()
    edited: tuple[str, ...] = ()
    autocast: str | None = None
