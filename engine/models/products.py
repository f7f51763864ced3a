"""float32 matrix products through oneDNN while states are read, where that is as exact as PyTorch's own.

PyTorch sends float32 products on a CPU through oneDNN when it may use less than float32 for them, and oneDNN then uses
float32 all the same on a processor without units for anything less; on some it is twice as fast as what PyTorch uses
else. Where there are such units (AMX), oneDNN rounds in products above a certain size and not in smaller ones. Whether
a machine is of that kind is for `engine.models.shortcuts` to measure.

The setting holds for the whole process. Threads that read states with it and threads that must not have it therefore
wait for each other; a forward pass that somebody else runs meanwhile has its products summed in another order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Condition, local
from typing import Any

import torch
from torch.nn.functional import linear

_TOKENS = 512  # in a pass on a CPU
_LARGEST = 4096  # rows and columns of a weight: what rounds larger ones rounds these

_changed = Condition()
_inside = {True: 0, False: 0}  # threads at work with oneDNN and without it
_found = ""
_own = local()  # of a thread: the kind that it is at work with


def _setting() -> Any | None:  # noqa: ANN401 - a module of settings, which older versions of torch lack
    backend = getattr(torch.backends.mkldnn, "matmul", None)
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return backend if available and hasattr(backend, "fp32_precision") else None


def onednn_possible() -> bool:
    """Whether this build of PyTorch has oneDNN, and the setting that leads products there."""
    return _setting() is not None


def product_error(shapes: Iterable[tuple[int, int]]) -> float:
    """How far products move, relative to their norm, that go through oneDNN in place of PyTorch's own.

    Largest over weights, for as many tokens as a pass on a CPU has: as much as oneDNN will be given.

    Args:
        shapes: Those of weights, `(outputs, inputs)`; only so much of one is multiplied as shows what oneDNN does.

    Example:
        >>> product_error([(64, 64)]) < 1e-2
        True
    """
    generator, errors = torch.Generator().manual_seed(0), [0.0]
    for rows, columns in {(min(rows, _LARGEST), min(columns, _LARGEST)) for rows, columns in shapes}:
        weight = torch.empty(rows, columns).uniform_(-1, 1, generator=generator)
        states = torch.empty(_TOKENS, columns).uniform_(-1, 1, generator=generator)
        with onednn_products(wanted=False):
            expected = linear(states, weight)
        with onednn_products(wanted=True):
            found = linear(states, weight)
        errors.append(float((found - expected).norm() / expected.norm()))
    return max(errors)


@contextmanager
def onednn_products(*, wanted: bool | None) -> Iterator[None]:
    """Send float32 products through oneDNN, or keep other threads from doing so meanwhile.

    Args:
        wanted: Whether to use oneDNN; None where it makes no difference, as on a GPU.

    Example:
        >>> with onednn_products(wanted=True):
        ...     product = torch.ones(2, 2) @ torch.ones(2, 2)
        >>> product.tolist()
        [[2.0, 2.0], [2.0, 2.0]]
    """
    if _setting() is None or wanted is None:
        yield
        return
    before = getattr(_own, "kind", None)  # a thread that is at work already cannot wait for itself
    _enter(wanted, alone=before is None)
    _own.kind = wanted
    try:
        yield
    finally:
        _own.kind = before
        _leave(wanted)


def _enter(wanted: bool, *, alone: bool) -> None:
    global _found
    with _changed:
        if alone:
            _changed.wait_for(lambda: not _inside[not wanted])
        setting = _setting()
        if wanted and setting is not None and not _inside[True]:
            _found = setting.fp32_precision
            setting.fp32_precision = "bf16"
        _inside[wanted] += 1


def _leave(wanted: bool) -> None:
    with _changed:
        _inside[wanted] -= 1
        setting = _setting()
        if wanted and setting is not None and not _inside[True]:
            setting.fp32_precision = _found
        _changed.notify_all()
