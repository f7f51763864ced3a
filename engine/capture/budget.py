"""Choose how many tokens a forward pass has, by device, size of the model and free memory."""

from __future__ import annotations

import logging
import math
from functools import cache
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import torch

from engine.models.description import describe_model
from engine.models.devices import free_bytes
from engine.models.forward import input_device
from engine.models.offload import is_offloaded
from engine.models.shortcuts import attention_name
from engine.models.structure import find_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

_RUN_WELL = {"cpu": 512}  # enough tokens for matrix products to reach full speed; more would not fit in CPU caches
_RUN_WELL_ON_GPU = 4096
_MOST_ON_GPU = 65_536
_OFFLOADED = 8  # factor for offloaded models, which load their weights again in every forward pass
_FEWEST = 64
_SHARE = 4  # a forward pass may use 1/4 of the free memory, leaving room for kept states and other processes
_SEEN = 2048  # keys of a block of queries on a GPU: more than the longest usual prompt

# On a GPU, a pass should keep each block busy for twice as long as Python takes to start its kernels, about 1 ms.
_BLOCK_SECONDS = 2e-3
_MOVED = 300  # bytes that a block moves per token and unit of width in half precision, measured on Llama and Qwen
_LONG = 600  # estimated seconds from which on compiling, which takes up to a minute and saves about a quarter, pays
_EXPERT_DIMENSIONS = 3  # experts, outputs, inputs
_SIDE = 4096  # of the matrices of the measured product
_COPIED = 2**27  # bytes, more than a GPU caches
_ROUNDS = 5


def token_budget(model: PreTrainedModel) -> int:
    """Choose the token budget of a forward pass for a model and its device.

    Args:
        model: A checked model.

    Returns:
        The fastest number of tokens on that device, halved until a forward pass needs at most a quarter of the free
        memory, but not below 64. On a CUDA GPU it follows from the size of a block and the measured speed of the GPU,
        between 4,096 and 65,536; small models need many tokens to keep a large GPU busy.

    Example:
        >>> token_budget(model)
        512
    """
    device = input_device(model)
    if is_offloaded(model):
        wanted = _OFFLOADED * _RUN_WELL.get(device.type, _RUN_WELL_ON_GPU)
    elif device.type == "cuda" and attention_name(model.config) == "sdpa" and not _holds_all_scores(model):
        wanted = busy_tokens(_block_seconds(model, device))
    else:
        wanted = _RUN_WELL.get(device.type, _RUN_WELL_ON_GPU)
    room, tokens = free_bytes(device) // _SHARE, wanted
    while tokens > _FEWEST and pass_bytes(model, tokens) > room:
        tokens //= 2
    if tokens < wanted:
        log.info("low memory on %s: token budget reduced from %d to %d", device, wanted, tokens)
    return tokens


class Speeds(NamedTuple):
    """Measured speeds of a GPU.

    Attributes:
        operations: Operations of a matrix product per second.
        transfer: Bytes of a copy per second, read and written.
    """

    operations: float
    transfer: float

    def block_seconds(self, weights: int, hidden: int, itemsize: int) -> float:
        """Estimate the seconds that a block takes for a token in a full pass.

        Args:
            weights: Number of weights in the block.
            hidden: Width of the residual stream.
            itemsize: Bytes of a number.

        Example:
            >>> round(1e9 * Speeds(800e12, 3e12).block_seconds(218_112_000, 4096, 2))
            955
        """
        return 2 * weights / self.operations + hidden * _MOVED * itemsize / 2 / self.transfer


def busy_tokens(block_seconds: float) -> int:
    """The number of tokens from which on a GPU, not Python, takes the time of a pass.

    Args:
        block_seconds: Seconds that a block takes for a token.

    Returns:
        A power of two from 4,096 to 65,536.

    Example:
        >>> busy_tokens(70e-9), busy_tokens(955e-9)
        (32768, 4096)
    """
    wanted = max(round(_BLOCK_SECONDS / block_seconds), 1)
    return min(max(1 << (wanted - 1).bit_length(), _RUN_WELL_ON_GPU), _MOST_ON_GPU)


@cache
def _measured(device: torch.device, dtype: torch.dtype) -> Speeds:  # pragma: no cover - on a GPU
    """Measure a GPU once, for some milliseconds."""
    factor = torch.rand(_SIDE, _SIDE, device=device).to(dtype)
    source = torch.empty(_COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product, copy = [], []
    for _ in range(_ROUNDS):
        torch.cuda.synchronize(device)
        begin = perf_counter()
        torch.mm(factor, factor)
        torch.cuda.synchronize(device)
        middle = perf_counter()
        target.copy_(source)
        torch.cuda.synchronize(device)
        product.append(middle - begin)
        copy.append(perf_counter() - middle)
    return Speeds(2 * _SIDE**3 / min(product), 2 * _COPIED / min(copy))


def pays_to_compile(model: PreTrainedModel, tokens: int) -> bool:
    """Whether compiling the blocks saves more time than it takes: for long captures on a CUDA GPU.

    Args:
        model: A checked model.
        tokens: Number of tokens of all prompts.
    """
    device = input_device(model)
    if device.type != "cuda" or is_offloaded(model):
        return False
    seconds = tokens * describe_model(model).num_layers * _block_seconds(model, device)
    return math.isfinite(seconds) and seconds > _LONG


def _block_seconds(model: PreTrainedModel, device: torch.device) -> float:
    """Estimated seconds that a block takes for a token, if the GPU is busy; infinite without memory to measure it."""
    weights = _used_weights(model)
    try:
        speeds = _measured(device, model.dtype)
    except torch.OutOfMemoryError:
        return math.inf
    return speeds.block_seconds(weights, describe_model(model).hidden_size, model.dtype.itemsize)


def _used_weights(model: PreTrainedModel) -> int:
    """Number of weights in a block that a token uses; of experts, which are one tensor, those that it is routed to."""
    config = model.config.get_text_config(decoder=True)
    routed, count = getattr(config, "num_experts_per_tok", None), 0
    for weight in find_blocks(model).blocks[-1].parameters():  # the first blocks of a mixture may be dense
        experts = weight.dim() == _EXPERT_DIMENSIONS and isinstance(routed, int)
        count += weight.numel() * routed // len(weight) if experts and routed else weight.numel()
    return count


def _holds_all_scores(model: PreTrainedModel) -> bool:
    """Whether attention computes the scores of a whole packed row at once, and not in blocks: see `PackedMask`."""
    return attention_name(model.config) == "eager" or describe_model(model).receipt.get("dense_mask", False)


def pass_bytes(model: PreTrainedModel, tokens: int) -> int:
    """Estimate the memory of a forward pass in bytes, without the weights.

    The estimate is more than most models need. It counts a few dozen states per token, a mask with one row per token
    and, if attention is not computed in blocks, the scores of all heads. On a GPU, blocks hold only what they see.

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
    whole = _holds_all_scores(model)
    heads = getattr(config, "num_attention_heads", 1) if whole else 0
    seen = tokens if whole or input_device(model).type == "cpu" else min(tokens, _SEEN)
    return model.dtype.itemsize * tokens * (numbers + seen * (1 + 2 * heads))
