"""Records of models: where they come from and what the load check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict

SourceKind = Literal["package", "hub", "folder", "gguf", "given"]


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
        alias: Short name used in file names and tables.
        model_id: Hub id; the folder or file name if the model is not on the hub.
        kind: `package` (GGUF in an installed Python package), `hub`, `folder`, `gguf`, or `given` for a model object
            that the user created.
        location: Hub id or path to load from.
        revision: Commit on the hub, version of the package, or hash of the GGUF file; None if nothing pins it.
        gguf_file: File name in `location` if the weights are GGUF.
        adapter: Folder of a PEFT adapter to apply to these weights.
        local: Whether the model loads on this machine without a download.
        saved: When the newest file of a local model was last changed, in nanoseconds; 0 for a hub id or package.
    """

    alias: str
    model_id: str
    kind: SourceKind
    location: str
    revision: str | None = None
    gguf_file: str | None = None
    adapter: str | None = None
    local: bool = True
    saved: int = 0

    @property
    def key(self) -> tuple[str, str, str, str | None, str | None, int]:
        """What tells the model from others on this machine; a download does not change it."""
        return self.alias, self.kind, self.location, self.gguf_file, self.adapter, self.saved


@dataclass(frozen=True)
class ModelListing:
    """One entry of the list of known models.

    Attributes:
        alias: Short name for `--model`.
        source: Where the model loads from on this machine.
        layers: Number of decoder blocks.
        parameters: Number of parameters as text ("135M", "7.3B").
        note: What to know before choosing the model.
    """

    alias: str
    source: ModelSource
    layers: int
    parameters: str
    note: str = ""


class Receipt(TypedDict):
    """Result of the load check, saved with each capture.

    Attributes:
        blocks: Dotted path of the decoder blocks in the model.
        final_norm: Dotted path of the final norm; None if the family has none.
        attn_out: Dotted name, within each block, of the module that returns the attention output as added to the
            residual stream: the attention, or the norm after it. None if no module of the same name does so in every
            block.
        mlp_out: The same for the MLP output.
        num_layers: Number of decoder blocks.
        hidden_size: Width of the residual stream.
        batched_error: How far padding and batching moved a token's state, relative to its norm.
        tolerance: Largest `batched_error` allowed for this dtype.
        dtype: Dtype of the compared states.
        separate: Why prompts cannot share a prefix; empty if they can. Absent, like the two fields below, in receipts
            of older versions.
        window: Longest prompt, in tokens, in which every token sees all tokens before it; None if there is no limit.
        onednn_error: Relative error of float32 matrix products in oneDNN: that of the median token's state or of a
            single product of many tokens, whichever is larger. None if oneDNN cannot be used.
        dense_mask: True if prompts can share a prefix, but attention needs their mask as one full matrix; else absent.
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
    dense_mask: NotRequired[bool]


class Adapter(TypedDict):
    """A PEFT adapter on a model.

    Attributes:
        name: Name of the adapter on the model.
        kind: PEFT type, such as `LORA`.
        rank: Rank; None for types without one.
        scales: Distinct scaling factors of its layers, ascending; empty for types without scaling.
        active: Whether it takes part in the forward pass.
        merged: Whether it is merged into the weights.
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
    """Description of a loaded model: the third value of `load_model_and_tokenizer`.

    Attributes:
        source: Where the weights came from.
        num_layers: Number of decoder blocks.
        hidden_size: Width of the residual stream.
        receipt: Result of the load check.
        weights: Fingerprint of the weights without adapters.
        configuration: SHA-256 of the values in its configuration that may affect states.
        adapters: Adapters on the model.
        added: Code in the model that is neither its own nor a framework's, in words.
        edited: Changes to its weights and modules since it was first examined, in words.
        autocast: Dtype that autocast computes in; None without autocast.
    """

    source: ModelSource
    num_layers: int
    hidden_size: int
    receipt: Receipt
    weights: str = ""
    configuration: str = ""
    adapters: tuple[Adapter, ...] = ()
    added: tuple[str, ...] = ()
    edited: tuple[str, ...] = ()
    autocast: str | None = None
