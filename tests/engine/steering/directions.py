"""Directions made by hand, and a block changed without hooks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from engine.models.structure import find_blocks
from engine.records.files import Direction
from tests.families import WIDTH

NORM = 6.0


def direction_at(layer: int, seed: int = 0, **fields: Any) -> Direction:
    """A random unit vector at a layer, whose class means are 3 apart."""
    vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
    direction = Direction(
        layer=layer,
        vector=vector / vector.norm(),
        negative_mean=-1.0,
        positive_mean=2.0,
        method="mean_diff",
        concept="loudness",
        num_pairs=3,
        provenance=None,
        norm=NORM,
    )
    return Direction(**{**direction, **fields})  # type: ignore[typeddict-item]  # fields of a direction


@contextmanager
def patched(model: PreTrainedModel, layer: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace the forward of a block, so that no hook is involved."""
    block = find_blocks(model).blocks[layer]
    forward = block.forward

    def changed(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if isinstance(output, tuple | list):
            return type(output)([change(output[0]), *output[1:]])
        return change(output)

    block.forward = changed
    try:
        yield
    finally:
        del block.forward


def logits_of(model: PreTrainedModel, ids: Tensor, **options: Any) -> Tensor:
    """Logits of a plain pass, `(batch, tokens, vocabulary)`."""
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, **options).logits
    return logits


def some_ids(rows: int = 2, tokens: int = 7, seed: int = 1) -> Tensor:
    return torch.randint(3, 100, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def hook_count(model: PreTrainedModel) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
