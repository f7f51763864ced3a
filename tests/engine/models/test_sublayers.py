"""The sublayers of a block are found only where their sum is exact."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.models.sublayers import Sublayers, SublayerSearch
from tests.conftest import family_called
from tests.families import build

WIDTH = 32
NOTHING = Sublayers(None, None)


class Norm(nn.Module):
    """A norm of half the usual size, so that omitting it or counting it twice shows."""

    def forward(self, states: Tensor) -> Any:
        return states / states.norm(dim=-1, keepdim=True) / 2


class Block(nn.Module):
    """A block with linear maps as attention and MLP; subclasses change how they are added."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.second_norm, self.dropout = Norm(), Norm(), nn.Dropout()
        self.attention: nn.Module = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Linear(WIDTH, WIDTH)

    def forward(self, stream: Tensor) -> Any:
        stream = stream + self.dropout(self.attention(self.norm(stream)))
        return stream + self.dropout(self.mlp(self.second_norm(stream)))


class Parallel(Block):
    def forward(self, stream: Tensor) -> Any:
        return self.mlp(self.norm(stream)) + self.attention(self.norm(stream)) + stream


class NormsAfter(Block):
    def forward(self, stream: Tensor) -> Any:
        stream = stream + self.norm(self.attention(stream))
        return stream + self.second_norm(self.mlp(stream))


class InPlace(Block):
    def forward(self, stream: Tensor) -> Any:
        attended, out = self.attention(self.norm(stream)), self.mlp(self.norm(stream))
        out += attended
        return out + stream


class Scaled(Block):
    def forward(self, stream: Tensor) -> Any:
        stream = stream + self.attention(self.norm(stream)) * 1.01
        return stream + self.mlp(self.second_norm(stream))


class NormOnTheStream(Block):
    def forward(self, stream: Tensor) -> Any:
        return self.second_norm(stream + self.attention(stream) + self.mlp(stream))


class Twice(Block):
    def forward(self, stream: Tensor) -> Any:
        stream = stream + self.attention(stream)
        return self.mlp(stream) + stream + 0 * self.mlp(stream)


class FlatFeedForward(Block):
    """The MLP drops the batch dimension, as experts and OPT do."""

    def forward(self, stream: Tensor) -> Any:
        stream = stream + self.attention(self.norm(stream))
        return stream + self.mlp(self.second_norm(stream).flatten(0, 1)).reshape(stream.shape)


class Convolution(Block):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.attention = self.attention, nn.Identity()

    def forward(self, stream: Tensor) -> Any:
        stream = stream + self.conv(self.norm(stream))
        return stream + self.mlp(self.second_norm(stream))


def search(*blocks: nn.Module, dtype: torch.dtype = torch.float32, stream: float = 1.0) -> Sublayers:
    """Run blocks in sequence on a stream scaled by `stream`."""
    found = SublayerSearch()
    states = (stream * torch.randn(1, 5, WIDTH, generator=torch.Generator().manual_seed(0))).to(dtype)
    for block in blocks:
        hooks = found.watch(block.eval().to(dtype))
        with torch.no_grad():
            states = block(states)
        for hook in hooks:
            hook.remove()
    return found.found()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Block, Sublayers("attention", "mlp")),
        (Parallel, Sublayers("attention", "mlp")),
        (InPlace, Sublayers("attention", "mlp")),
        (FlatFeedForward, Sublayers("attention", "mlp")),
        (NormsAfter, Sublayers("norm", "second_norm")),
        (Convolution, Sublayers(None, "mlp")),
        (Scaled, NOTHING),
        (NormOnTheStream, NOTHING),
        (Twice, NOTHING),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sublayer_outputs_are_found(kind: Callable[[], Block], expected: Sublayers, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    assert search(kind(), kind(), dtype=dtype) == expected


def test_a_sum_within_rounding_is_not_enough() -> None:
    """In bfloat16, rounding a stream of norm 300 hides the error of 1% of attention here."""
    torch.manual_seed(0)
    assert search(Scaled(), dtype=torch.bfloat16, stream=50.0) == NOTHING


def test_different_blocks_share_sublayers_of_the_same_name() -> None:
    assert search(Block(), Convolution()) == Sublayers(None, "mlp")
    assert search(Block(), NormsAfter()) == search(Block(), Scaled()) == NOTHING


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("hyperclovax", Sublayers("post_norm1", "post_norm2")),  # norms with uninformative names
        ("dbrx", Sublayers("norm_attn_norm.attn", "ffn")),  # attention is one level deeper
        ("bloom", Sublayers("self_attention.dense", "mlp.dense_4h_to_h")),  # both add to the stream themselves
        ("recurrent_gemma", Sublayers(None, "mlp_block")),  # one name for attention and recurrence
    ],
)
def test_families_with_unusual_structure(family: str, expected: Sublayers) -> None:
    model = build(family_called(family))
    found = SublayerSearch()
    hooks = [hook for block in _layers(model) for hook in found.watch(block)]
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7]]))
    for hook in hooks:
        hook.remove()
    assert found.found() == expected


def _layers(model: nn.Module) -> list[nn.Module]:
    return list(next(module for module in model.modules() if isinstance(module, nn.ModuleList)))
