"""Run decoder blocks compiled by torch.compile.

All blocks of one class share a compiled graph, for rows of one length. Modules and settings of the model stay as they
are; only passes of the thread that captures run compiled code.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from engine.errors import CaptureError, first_line
from engine.models.alterations import take_snapshot
from engine.models.forward import input_device, read_blocks, turn_of
from engine.models.shortcuts import attention_name, head_groups, moved, pack_prompts
from engine.remedies import Remedy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from engine.models.structure import Blocks

log = logging.getLogger(__name__)

_PROMPT = 48  # tokens of the prompts of a trial pass
_SHARED = 16
_COMPARED = 256  # tokens
# PyTorch counts graphs by the code that all models of a class share, and would then run without compiling.
_MOST_GRAPHS = 1000

_COMPILER_LOGS = ("torch._dynamo", "torch._inductor")

_tried: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], str]] = WeakKeyDictionary()


@contextmanager
def compiled_blocks(blocks: Blocks, *, wanted: bool, said: set[str] | None = None) -> Iterator[None]:
    """Run the blocks compiled in this thread while the context is open.

    Args:
        blocks: The blocks, from `find_blocks`. The caller holds their turn, see `turn_of`.
        wanted: False leaves them as they are.
        said: Warnings of the compiler that were logged, and need not be again; new ones are added.

    Raises:
        CaptureError: The compiler fails, which it did not for the row that `why_not_compiled` tried.
    """
    if not wanted:
        yield
        return
    dynamo: Any = torch._dynamo
    limits = {"recompile_limit": _MOST_GRAPHS, "accumulated_recompile_limit": _MOST_GRAPHS}
    owner, compiled = get_ident(), {kind: _compiled(kind.forward) for kind in {type(one) for one in blocks.blocks}}
    try:
        for block in blocks.blocks:
            block.forward = partial(_forward, block, owner, compiled[type(block)])
        with (
            _short_warnings(owner, set() if said is None else said),
            dynamo.config.patch(**limits, fail_on_recompile_limit_hit=True),
        ):
            yield
    except (dynamo.exc.TorchDynamoException, dynamo.exc.FailOnRecompileLimitHit) as failure:
        raise CaptureError(
            f"the compiler fails: {_reason(failure)}",
            expected="code for every length of prompts",
            next_step=Remedy.DO_NOT_COMPILE,
        ) from failure
    finally:
        for block in blocks.blocks:
            vars(block).pop("forward", None)


def _compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The compiled function; PyTorch keeps compiled code with the original, and in files between processes."""
    return torch.compile(forward, dynamic=False)


def _forward(block: nn.Module, owner: int, compiled: Callable[..., Any], *args: Any, **options: Any) -> Any:  # noqa: ANN401
    run = compiled if get_ident() == owner else type(block).forward
    return run(block, *args, **options)


@contextmanager
def _short_warnings(owner: int, said: set[str]) -> Iterator[None]:
    """Log each warning of PyTorch's compiler in a thread as one line and once; it prints tracebacks to stderr.

    It warns of compiled code in its files that cannot be read or written, and then compiles again.
    """

    def passes(record: logging.LogRecord) -> bool:
        if record.thread != owner or record.levelno != logging.WARNING:
            return True
        text = record.getMessage()
        if text not in said:
            said.add(text)
            log.info("PyTorch's compiler warns: %s", text.strip().partition("\n")[0])
        return False

    handlers = [handler for name in _COMPILER_LOGS for handler in logging.getLogger(name).handlers]
    for handler in handlers:
        handler.addFilter(passes)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(passes)


def _reason(failure: BaseException) -> str:
    cause = getattr(failure, "inner_exception", failure)  # what PyTorch's own exception is about
    return f"{type(cause).__name__}: {first_line(cause)}"


def why_not_compiled(model: PreTrainedModel, blocks: Blocks, tokens: int, tolerance: float) -> str:
    """Compile the blocks for rows of some length, and return why that is not possible; empty if it is.

    The first call for a kind of model takes up to a minute, later ones in other processes some seconds, because PyTorch
    keeps compiled code in files, and later ones in this process no time. A row runs compiled and not compiled, and the
    states are compared.

    Args:
        model: A checked model whose prompts can be packed.
        blocks: Its blocks, from `find_blocks`.
        tokens: Length of the rows.
        tolerance: How far the median token's state may move, relative to its norm.
    """
    if attention_name(model.config) != "sdpa":
        return f"its attention implementation is {attention_name(model.config)}, not sdpa"
    if torch._dynamo.config.disable or os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        return "torch.compile is disabled (TORCH_COMPILE_DISABLE or TORCHDYNAMO_DISABLE)"
    with turn_of(blocks.decoder):
        if any("forward" in vars(block) for block in blocks.blocks):
            return "the forward of its blocks was replaced, as accelerate does to spread a model over devices"
        now = take_snapshot(model)  # adapters, for example, may be new
        tried, kind = _tried.setdefault(blocks.decoder, {}), (tokens, model.dtype, now.structure, now.adapters)
        if kind in tried:
            return tried[kind]
        log.info("compiling the decoder blocks for rows of %d tokens, which may take a minute", tokens)
        try:
            tried[kind] = _try(model, blocks, tokens, tolerance)
        except torch.OutOfMemoryError as failure:  # another time there may be more
            return _reason(failure)
        except Exception as failure:  # the compiler may fail with any exception
            tried[kind] = _reason(failure.__cause__ or failure)
        return tried[kind]


def _try(model: PreTrainedModel, blocks: Blocks, tokens: int, tolerance: float) -> str:
    prompts, groups = _prompts(model, tokens), head_groups(blocks)
    packed = pack_prompts(prompts, input_device(model), model.dtype, groups=groups, multiple=tokens, fixed_shape=True)
    some = torch.from_numpy(np.unique(np.concatenate(packed.places))[:: -(-tokens // _COMPARED)])

    def keep(states: Tensor) -> Tensor:
        return states[0, some.to(states.device)].double().cpu()

    layers = range(len(blocks.blocks))
    with compiled_blocks(blocks, wanted=True):
        found = read_blocks(model, blocks, packed.batch, layers, keep)
    expected = read_blocks(model, blocks, packed.batch, layers, keep)
    error = float(torch.stack([moved(found[layer], expected[layer]).median() for layer in layers]).max())
    return "" if error <= tolerance else f"compiled blocks change a token's state by {error:.2g} of its norm"


def _prompts(model: PreTrainedModel, tokens: int) -> Sequence[list[int]]:
    """Seeded prompts with a shared prefix that fill a row of some length."""
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    count = max(1, (tokens - _SHARED) // (_PROMPT - _SHARED))
    ids = torch.randint(3, vocabulary, (count, _PROMPT), generator=torch.Generator().manual_seed(0))
    ids[1:, :_SHARED] = ids[0, :_SHARED]
    return [row[:tokens] for row in ids.tolist()]
