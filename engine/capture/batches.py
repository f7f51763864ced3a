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


_FEWEST_TOKENS = 2  # per prompt; bounds batches of prompts that share nearly all their tokens


@dataclass(frozen=True)
class Limits:
    """Maximum size of a batch.

    Attributes:
        tokens: Token budget of a forward pass, padding included; a longer prompt gets its own batch.
        prompts: Maximum number of prompts; None for half the token budget.
    """

    tokens: int
    prompts: int | None = None

    def allow(self, prompts: int, tokens: int) -> bool:
        """Whether a batch may have this many prompts and this many tokens in total."""
        return prompts == 1 or (tokens <= self.tokens and prompts <= (self.prompts or self.tokens // _FEWEST_TOKENS))


@dataclass(frozen=True)
class Batch:
    """Prompts of one forward pass.

    Attributes:
        prompts: Their indices in the list of all prompts.
        start: Number of leading tokens already run; the same for all prompts.
        packed: Whether the prompts are packed into one row with each shared prefix once, or padded to one row each.
    """

    prompts: list[int]
    start: int = 0
    packed: bool = False

    def halves(self) -> list[Batch]:
        """Split the batch in two."""
        middle = len(self.prompts) // 2
        return [Batch(part, self.start, self.packed) for part in (self.prompts[:middle], self.prompts[middle:])]


def sorted_batches(lengths: Sequence[int], limits: Limits) -> list[Batch]:
    """Group prompts of similar length into batches with little padding.

    Args:
        lengths: Number of tokens of each prompt.
        limits: Maximum size of a batch.

    Returns:
        Padded batches, longest prompts first, so that memory runs out in the first batch or not at all.

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

# Enough tokens for matrix products to reach full speed; more would not fit in CPU caches.
_RUN_WELL = {"cpu": 512}
_RUN_WELL_ON_GPU = 4096
_OFFLOADED = 8  # factor for offloaded models, which load their weights again in every forward pass
_FEWEST = 64
_SHARE = 4  # a forward pass may use 1/4 of the free memory, leaving room for kept states and other processes


def token_budget(model: PreTrainedModel) -> int:
    """Choose the token budget of a forward pass for a model and its device.

    Args:
        model: A checked model.

    Returns:
        The fastest number of tokens on that device, halved until a forward pass needs at most a quarter of the free
        memory, but not below 64.

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
        log.info("low memory on %s: token budget reduced from %d to %d", device, wanted, tokens)
    return tokens


def pass_bytes(model: PreTrainedModel, tokens: int) -> int:
    """Estimate the memory of a forward pass in bytes, without the weights.

    The estimate is more than most models need. It counts a few dozen states per token, a mask with one row per token
    and, with `eager` attention, the attention scores of all heads.

    Args:
        model: A checked model.
        tokens: Number of tokens in the forward pass.

    Example:
        >>> pass_bytes(model, 512) < 60e6
        True
    """
    config, known = model.config.get_text_config(decoder=True), describe_model(model)
    inner = getattr(config, "intermediate_size", None)
    widest = max(4 * known.hidden_size, inner if isinstance(inner, int) else 0)
    numbers = 16 * known.hidden_size + 4 * widest
    heads = getattr(config, "num_attention_heads", 1) if config._attn_implementation == "eager" else 0
    return model.dtype.itemsize * tokens * (numbers + tokens * (1 + 2 * heads))
