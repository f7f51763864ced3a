"""Group prompts into batches under a token budget."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.models.description import describe_model
from engine.models.devices import free_bytes
from engine.models.forward import input_device
from engine.models.offload import is_offloaded

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_FEWEST_TOKENS = 2  # of a prompt: those that share nearly all their tokens would else all come at once


@dataclass(frozen=True)
class Limits:
    """How much goes through the model at once.

    Attributes:
        tokens: Most tokens in one forward pass, padding included; a longer prompt goes alone.
        prompts: Most prompts, None for as many as the tokens allow, which is one for two of them at most.
    """

    tokens: int
    prompts: int | None = None

    def allow(self, prompts: int, tokens: int) -> bool:
        """Whether so many prompts, of so many tokens in all, may go together."""
        return prompts == 1 or (tokens <= self.tokens and prompts <= (self.prompts or self.tokens // _FEWEST_TOKENS))


@dataclass(frozen=True)
class Batch:
    """Prompts of one forward pass.

    Attributes:
        prompts: Their places in the list of all prompts.
        start: How many of their first tokens have been run before; the same in all of them.
        packed: Whether they share one row, each common beginning once, or have a padded row each.
    """

    prompts: list[int]
    start: int = 0
    packed: bool = False

    def halves(self) -> list[Batch]:
        """The same prompts in two passes."""
        middle = len(self.prompts) // 2
        return [Batch(part, self.start, self.packed) for part in (self.prompts[:middle], self.prompts[middle:])]


def sorted_batches(lengths: Sequence[int], limits: Limits) -> list[Batch]:
    """Group prompts of similar length, so that little is computed on padding.

    Args:
        lengths: Number of tokens of each prompt.
        limits: What may go together.

    Returns:
        Batches of padded rows, the longest prompts first, so that memory runs out at once or not at all.

    Example:
        >>> [batch.prompts for batch in sorted_batches([3, 9, 4, 8], Limits(18))]
        [[1, 3], [2, 0]]
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batches and limits.allow(len(batches[-1]) + 1, (len(batches[-1]) + 1) * lengths[batches[-1][0]]):
            batches[-1].append(index)
        else:
            batches.append([index])
    return [Batch(batch) for batch in batches]


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
