"""Which tokens are kept, and that what is kept is theirs."""

from typing import Any

import pytest
import torch

from engine.capture.positions import PositionSpec, parse_positions
from engine.errors import RequestError

LENGTHS = [7, 4, 5]
WIDTH = 6


@pytest.fixture
def states() -> torch.Tensor:
    """Random states of three prompts padded on the right; padding is NaN, so that one padded value shows."""
    states = torch.randn(len(LENGTHS), max(LENGTHS), WIDTH, generator=torch.Generator().manual_seed(0))
    for row, length in enumerate(LENGTHS):
        states[row, length:] = float("nan")
    return states


def taken_by(given: PositionSpec, states: torch.Tensor) -> list[torch.Tensor]:
    """What is kept of each prompt, all handed over at once."""
    positions = parse_positions(given)
    parts = [states[row, slice(*positions.span(length))] for row, length in enumerate(LENGTHS)]
    counts = [len(part) for part in parts]
    kept = positions.finish({3: torch.cat(parts)}, counts)[3]
    return list(torch.split(kept, [1] * len(parts) if positions.mean else counts))


@pytest.mark.parametrize(
    ("given", "by_hand"),
    [
        ("all", slice(None)),
        ("last", slice(-1, None)),
        (-1, slice(-1, None)),
        ("-1", slice(-1, None)),
        ("0", slice(0, 1)),
        (2, slice(2, 3)),
        (-2, slice(-2, -1)),
        (-4, slice(-4, -3)),
        ("1:3", slice(1, 3)),
        ((1, 3), slice(1, 3)),
        ("-3:", slice(-3, None)),
        (":2", slice(0, 2)),
        (":-1", slice(0, -1)),
        ("-3:-1", slice(-3, -1)),
        (":", slice(None)),
    ],
)
def test_positions_are_slices_of_each_prompt_without_its_padding(
    states: torch.Tensor, given: PositionSpec, by_hand: slice
) -> None:
    taken = taken_by(given, states)
    assert len(taken) == len(LENGTHS)
    for row, length in enumerate(LENGTHS):
        assert torch.equal(taken[row], states[row, :length][by_hand])


@pytest.mark.parametrize(
    ("given", "by_hand"),
    [("mean", slice(1, None)), ("mean:0:", slice(None)), ("mean:1:3", slice(1, 3)), ("mean:-2:", slice(-2, None))],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mean_is_one_state_in_float32(states: torch.Tensor, given: str, by_hand: slice, dtype: torch.dtype) -> None:
    held = states.to(dtype)
    taken = taken_by(given, held)
    for row, length in enumerate(LENGTHS):
        assert (taken[row].dtype, taken[row].shape) == (torch.float32, (1, WIDTH))
        expected = held[row, :length][by_hand].double().mean(dim=0, keepdim=True)
        torch.testing.assert_close(taken[row].double(), expected, rtol=1e-6, atol=1e-6)


def test_the_mean_leaves_out_the_first_token(states: torch.Tensor) -> None:
    before = taken_by("mean", states)
    states[:, 0] = 1e6
    after = taken_by("mean", states)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_states_keep_their_dtype(states: torch.Tensor) -> None:
    assert {kept.dtype for kept in taken_by("2:4", states.bfloat16())} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("given", "length"), [("4", 4), (-5, 4), ("2:5", 4), ("-5:", 4), ("3:3", 4), ("3:1", 4), ("-1:-2", 4), ("mean", 1)]
)
def test_a_prompt_without_such_tokens_is_named(given: PositionSpec, length: int) -> None:
    with pytest.raises(RequestError, match=rf"prompt 3 has {length} tokens and so no positions '{given}'"):
        parse_positions(given).span(length, "prompt 3")


@pytest.mark.parametrize(
    "given",
    ["", "first", "1.5", "1:2:3", "mean:last", "mean:", "mean:3", "2:x", "-:5", "3:-", (2, None), True, None],
)
def test_what_cannot_be_read_is_refused(given: Any) -> None:
    with pytest.raises(RequestError, match=r"cannot be read\. Expected: all, last, mean, an index"):
        parse_positions(given)
