"""How many tokens go through a model at once: as many as run well, as far as memory goes.

Knows sizes and what is free. Does not know prompts, or how they are put together.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from engine.models.description import describe_model
from engine.models.forward import input_device
from engine.models.memory import free_bytes
from engine.models.offload import is_offloaded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

# Enough for matrix products to be at their best; more would fall out of the caches of a CPU.
_RUN_WELL = {"cpu": 512}
_RUN_WELL_ON_GPU = 4096
_OFFLOADED = 8  # times as many, where every pass fetches the weights anew
_FEWEST = 64
_SHARE = 4  # a quarter of what is free: states that are kept, and other processes, want some too


def token_budget(model: PreTrainedModel) -> int:
    """Most tokens in one forward pass; a longer prompt goes alone.

    Args:
        model: A checked model.

    Returns:
        What runs well where the model is, or that halved until a pass takes no more than a quarter of the free memory.

    Example:
        >>> token_budget(model)
        512
    """
    device = input_device(model)
    wanted = _RUN_WELL.get(device.type, _RUN_WELL_ON_GPU) * (_OFFLOADED if is_offloaded(model) else 1)
    room, tokens = free_bytes(device) // _SHARE, wanted
    while tokens > _FEWEST and pass_bytes(model, tokens) > room:
        tokens //= 2
    if tokens < wanted:
        log.info("little memory is free on %s: %d tokens at a time, not %d", device, tokens, wanted)
    return tokens


def pass_bytes(model: PreTrainedModel, tokens: int) -> int:
    """About how much memory a forward pass takes beside the weights: more than most models need.

    A few dozen states a token, a mask in which each token has a row, and where attention is `eager` the scores of all
    heads.

    Args:
        model: A checked model.
        tokens: How many run at once.

    Example:
        >>> pass_bytes(model, 512) < 60e6
        True
    """
    config, known = model.config.get_text_config(decoder=True), describe_model(model)
    inner = getattr(config, "intermediate_size", None)
    widest = max(4 * known.hidden_size, inner if isinstance(inner, int) else 0)
    numbers = 16 * known.hidden_size + 4 * widest
    heads = getattr(config, "num_attention_heads", 1) if config._attn_implementation == "eager" else 0
    return model.dtype.itemsize * tokens * (numbers + tokens * (2 + 2 * heads))
