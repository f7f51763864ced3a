"""Find a model's decoder, its blocks and its final norm.

The search goes by structure, with a table of exceptional families. `engine.models.check` verifies the result.
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
    """How a family deviates from the usual structure.

    Attributes:
        blocks: Dotted path of the blocks, if the config counts something else.
        final_norm: Name of the final norm in the decoder; empty if the module that looks like one is not. None means
            that the search finds it.
        final_projection: Name of the projection that the decoder applies after the norm.
        first_state: Index of block 0's output in `hidden_states`; 0 if the list omits the embedding.
        refusal: Why the family cannot be captured, if running it does harm.
    """

    blocks: str = ""
    final_norm: str | None = None
    final_projection: str = ""
    first_state: int = 1
    refusal: str = ""


EXCEPTIONS = {
    "bart": Exceptional(final_norm=""),  # the norm after the blocks belongs to the embedding
    "falcon_mamba": Exceptional(first_state=0),
    "longcat_flash": Exceptional(blocks="model.layers"),  # num_hidden_layers counts two per block
    "mamba": Exceptional(first_state=0),
    "mamba2": Exceptional(first_state=0),
    "opt": Exceptional(final_norm="final_layer_norm", final_projection="project_out"),  # declared before the blocks
    "rwkv": Exceptional(
        refusal="its first forward pass rescales the weights in place, and the residual stream every few blocks"
    ),
}


@dataclass(frozen=True)
class Blocks:
    """The modules of a model that a capture uses.

    Attributes:
        decoder: The module that turns token ids into the final hidden state, without logits.
        blocks: The decoder blocks, layer 0 first.
        final_norm: The norm after the last block, None if there is none.
        final_projection: The projection after that, None if there is none.
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

    The blocks are the outermost `ModuleList` with as many entries as the config has layers, preferably inside the
    model's `get_decoder()` (a vision tower may be equally deep). The module that contains the list is the decoder. The
    final norm is the first norm declared after the list. The model is not changed.

    Args:
        model: Any transformers causal language model.

    Raises:
        ModelError: No module list or more than one matches the config, or this family cannot be captured.
    """
    exception = EXCEPTIONS.get(model.config.model_type, Exceptional())
    if exception.refusal:
        raise ModelError(
            f"{type(model).__name__} cannot be captured: {exception.refusal}",
            next_step="choose a model from another family",
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
    found = _outermost_lists(model, num_layers)
    if len(found) > 1:
        inside_decoder = set(model.get_decoder().modules())
        found = [name for name in found if model.get_submodule(name) in inside_decoder] or found
    if len(found) != 1:
        raise ModelError(
            f"cannot find the {num_layers} decoder blocks of {type(model).__name__}"
            f" (module lists of that length: {', '.join(found) or 'none'})",
            expected="one list of modules with an entry per layer",
            next_step="choose a model from another family",
        )
    return found[0]


def _outermost_lists(model: nn.Module, length: int) -> list[str]:
    """Dotted paths of the module lists of a given length, without those inside another one.

    The search does not descend into a list that it has found, so it visits a few modules instead of all.
    """
    found: list[str] = []
    seen: set[nn.Module] = set()
    waiting = [("", model)]
    while waiting:
        path, module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        if isinstance(module, nn.ModuleList) and len(module) == length:
            found.append(path)
        else:
            children = [(f"{path}.{name}" if path else name, child) for name, child in module.named_children()]
            waiting += reversed(children)
    return found


def _first_norm_after(decoder: nn.Module, blocks: nn.ModuleList) -> str | None:
    names = [name for name, _ in decoder.named_children()]
    after = names[next(i for i, child in enumerate(decoder.children()) if child is blocks) + 1 :]
    return next((name for name in after if "norm" in type(decoder.get_submodule(name)).__name__.lower()), None)
