"""Run float32 products through oneDNN during captures, where it is exact enough.

PyTorch sends float32 products on a CPU through oneDNN only if lower precision is allowed. On a processor without
low-precision units oneDNN still computes in float32, on some processors twice as fast as PyTorch's default. With such
units (AMX), oneDNN rounds products above a certain size, but not smaller ones. `engine.models.shortcuts` measures
whether a machine rounds.

The setting applies to the whole process. Captures with it and captures without it therefore wait for each other. Any
other forward pass that runs in the meantime sums its products in a different order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Condition, local
from typing import Any

import torch
from torch.nn.functional import linear

_TOKENS = 512  # in a forward pass on a CPU
_LARGEST = 4096  # rows and columns of a weight: oneDNN rounds larger products only if it rounds these

_changed = Condition()
_inside = {True: 0, False: 0}  # number of threads using oneDNN and PyTorch's default
_found = ""
_own = local()  # per thread: whether it uses oneDNN


def _setting() -> Any | None:  # noqa: ANN401 - a settings module that older versions of torch lack
    backend = getattr(torch.backends.mkldnn, "matmul", None)
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return backend if available and hasattr(backend, "fp32_precision") else None


def onednn_possible() -> bool:
    """Whether this build of PyTorch has oneDNN and the setting to use it."""
    return _setting() is not None


def product_error(shapes: Iterable[tuple[int, int]]) -> float:
    """Measure the relative error of products through oneDNN against PyTorch's default.

    The error is the norm of the difference divided by the norm of the product, for as many tokens as a forward pass on
    a CPU has. Returns the largest over all weight shapes.

    Args:
        shapes: Shapes of weights, `(outputs, inputs)`. Each is capped at a size that shows whether oneDNN rounds.

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
    """Send float32 products through oneDNN, or keep other threads from doing so.

    Args:
        wanted: Whether to use oneDNN; None if it makes no difference, for example on a GPU.

    Example:
        >>> with onednn_products(wanted=True):
        ...     product = torch.ones(2, 2) @ torch.ones(2, 2)
        >>> product.tolist()
        [[2.0, 2.0], [2.0, 2.0]]
    """
    if _setting() is None or wanted is None:
        yield
        return
    before = getattr(_own, "kind", None)  # a nested call must not wait for its own thread
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
