"""Where a model keeps its decoder, its blocks and its final norm.

Found by structure, with a literal table for families that differ. Knows nothing of prompts, and promises nothing:
whether what was found keeps its promises is for `engine.models.check` to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import nn

from engine.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Exceptional:
    """How a family differs from what its structure suggests.

    Attributes:
        blocks: Dotted path of the blocks, where the config does not count them.
        final_norm: Name of the norm beside the blocks; empty when what looks like one is not.
        final_projection: Name of what the decoder applies after the norm.
        first_state: Index of block 0's output in `hidden_states`; 0 where the embedding is left out.
        refusal: Why the family cannot be captured, where running it would do harm.
    """

    blocks: str = ""
    final_norm: str | None = None
    final_projection: str = ""
    first_state: int = 1
    refusal: str = ""


EXCEPTIONS = {
    "bart": Exceptional(final_norm=""),  # the norm beside the blocks is the embedding's
    "falcon_mamba": Exceptional(first_state=0),
    "longcat_flash": Exceptional(blocks="model.layers"),  # num_hidden_layers counts two for a block
    "mamba": Exceptional(first_state=0),
    "mamba2": Exceptional(first_state=0),
    "opt": Exceptional(final_norm="final_layer_norm", final_projection="project_out"),  # the norm is declared first
    "rwkv": Exceptional(
        refusal="its first forward pass rescales the weights in place, and its stream every few blocks"
    ),
}


@dataclass(frozen=True)
class Blocks:
    """The parts of a model that a capture looks at.

    Attributes:
        decoder: What turns token ids into the final hidden state; no logits.
        blocks: The decoder blocks, layer 0 first.
        final_norm: What the decoder applies after the last block, None if nothing.
        final_projection: What it applies after that, None if nothing.
        path: Dotted path of `blocks` inside the model.
        final_norm_path: Dotted path of `final_norm`.
        first_state: Index of block 0's output in the `hidden_states` that the model reports.
    """

    decoder: nn.Module
    blocks: nn.ModuleList
    final_norm: nn.Module | None
    final_projection: nn.Module | None
    path: str
    final_norm_path: str | None
    first_state: int


def find_blocks(model: PreTrainedModel) -> Blocks:
    """Find the decoder blocks of a causal language model.

    The blocks are the outermost list of modules with as many entries as the config has layers, preferably inside what
    the model calls its decoder (a vision tower may be as deep). The module that holds the list is the decoder that is
    run. The final norm is the first norm declared after the list.

    Args:
        model: Any causal language model of transformers.

    Returns:
        The parts; nothing in the model is changed.

    Raises:
        ModelError: No list of blocks, or more than one, fits the config, or the family is known not to be capturable.
    """
    exception = EXCEPTIONS.get(model.config.model_type, Exceptional())
    if exception.refusal:
        raise ModelError(
            f"{type(model).__name__} cannot be captured: {exception.refusal}",
            next_step="choose a model of another family",
        )
    path = exception.blocks or _path_of_blocks(model)
    owner, _, _ = path.rpartition(".")
    decoder, blocks = model.get_submodule(owner), cast("nn.ModuleList", model.get_submodule(path))
    norm_name = _first_norm_after(decoder, blocks) if exception.final_norm is None else exception.final_norm
    final_norm = getattr(decoder, norm_name, None) if norm_name else None
    return Blocks(
        decoder=decoder,
        blocks=blocks,
        final_norm=final_norm,
        final_projection=getattr(decoder, exception.final_projection, None) if exception.final_projection else None,
        path=path,
        final_norm_path=None if final_norm is None else f"{owner}.{norm_name}",
        first_state=exception.first_state,
    )


def _path_of_blocks(model: PreTrainedModel) -> str:
    num_layers = model.config.get_text_config(decoder=True).num_hidden_layers
    fitting = [
        str(name)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers
    ]
    outermost = [name for name in fitting if not any(name.startswith(f"{other}.") for other in fitting)]
    inside_decoder = {id(module) for module in model.get_decoder().modules()}
    preferred = [name for name in outermost if id(model.get_submodule(name)) in inside_decoder] or outermost
    if len(preferred) != 1:
        raise ModelError(
            f"cannot tell where {type(model).__name__} keeps its {num_layers} decoder blocks"
            f" (lists of that length: {', '.join(preferred) or 'none'})",
            expected="one list of modules with an entry per layer",
            next_step="choose a model of another family",
        )
    return preferred[0]


def _first_norm_after(decoder: nn.Module, blocks: nn.ModuleList) -> str | None:
    names = [name for name, _ in decoder.named_children()]
    after = names[next(i for i, child in enumerate(decoder.children()) if child is blocks) + 1 :]
    return next((name for name in after if "norm" in type(decoder.get_submodule(name)).__name__.lower()), None)
