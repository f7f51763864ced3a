"""Parsing of layer and position arguments."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from engine.capture.selection import (
    LayerSpec,
    PositionSpec,
    captured_layer,
    parse_layers,
    parse_positions,
    recommended_layers,
)
from engine.errors import RequestError


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (None, list(range(30))),
        ("all", list(range(30))),
        ("recommended", list(range(13, 26))),
        (5, [5]),
        (-1, [29]),
        ([16, 14, 15, 14], [14, 15, 16]),
        ((0, -30), [0]),
        (range(3), [0, 1, 2]),
        ("14,15", [14, 15]),
        (" 14 , 15 ", [14, 15]),
        ("10-12", [10, 11, 12]),
        ("5-5", [5]),
        ("-3--1", [27, 28, 29]),
        ("28--1", [28, 29]),
        ("0,10-12,11,-1", [0, 10, 11, 12, 29]),
        (np.int64(2), [2]),
        (np.array(2), [2]),
        (np.array([1, 2]), [1, 2]),
        (pd.Series([1, -1]), [1, 29]),
        (torch.tensor(2), [2]),
        (torch.tensor([2, 1]), [1, 2]),
        ({3: None, 1: None}.keys(), [1, 3]),
        (np.str_("14,15"), [14, 15]),
    ],
)
def test_layers_are_ascending_numbers_from_zero_each_once(given: LayerSpec, meant: list[int]) -> None:
    numbers = parse_layers(given, 30)
    assert numbers == meant
    assert {type(number) for number in numbers} == {int}  # NumPy integers cannot be saved


def test_layers_may_be_a_generator() -> None:
    assert parse_layers((layer for layer in (3, 1)), 30) == [1, 3]


@pytest.mark.parametrize(
    "given", [2.0, True, np.float64(2), np.bool_(True), np.array([True, False]), torch.tensor([1.0]), {1: 2}, b"12"]
)
def test_only_whole_numbers_are_layers(given: Any) -> None:
    with pytest.raises(RequestError, match="not a layer number"):
        parse_layers(given, 30)


@pytest.mark.parametrize("given", ["", " ", ",", "9" * 5000, "1-" + "9" * 5000])
def test_invalid_layer_text_is_refused(given: str) -> None:
    with pytest.raises(RequestError, match="cannot be parsed"):
        parse_layers(given, 30)


def test_a_layer_of_a_capture_is_found_by_any_whole_number() -> None:
    assert [captured_layer(layer, [1, 2]) for layer in (2, np.int64(2), torch.tensor(2))] == [2, 2, 2]
    for layer in (3, 2.0, True, "2", [2]):
        with pytest.raises(RequestError, match=r"was not captured. Expected: one of \[1, 2\]"):
            captured_layer(layer, [1, 2])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (30, r"layer 30 is out of range for a model with 30 layers.*0 to 29, or -30 to -1"),
        (-31, "layer -31 is out of range"),
        ([3, 30], "layer 30 is out of range"),
        ("3,30", "layer 30 is out of range"),
        ("20-30", "layer 30 is out of range"),
        ("12-10", r"'12-10' is reversed\. Expected: 10-12"),
        ("3,,4", "'3,,4' cannot be parsed at ''"),
        ("", "cannot be parsed"),
        ("middle", "'middle' cannot be parsed"),
        ("1-2-3", "cannot be parsed"),
        ("1.5", "cannot be parsed"),
        ([], "no layers were requested"),
        (True, "True is not a layer number"),
        ([1.0], r"1\.0 is not a layer number"),
        (["3"], "'3' is not a layer number"),
    ],
)
def test_an_empty_selection_of_layers_is_refused(given: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        parse_layers(given, 30)


@pytest.mark.parametrize("num_layers", range(1, 129))
def test_the_recommended_layers_run_from_45_to_85_percent(num_layers: int) -> None:
    """Checked in integers: rounding must not put 0.85 · 20 below 17."""
    layers = recommended_layers(num_layers)
    assert layers == list(range(45 * num_layers // 100, 85 * num_layers // 100 + 1))
    assert 0 <= layers[0] <= layers[-1] < num_layers


LENGTHS = [7, 4, 5]
WIDTH = 6


@pytest.fixture
def states() -> torch.Tensor:
    """Random states of three right-padded prompts; padding is NaN, so that any use of it shows."""
    states = torch.randn(len(LENGTHS), max(LENGTHS), WIDTH, generator=torch.Generator().manual_seed(0))
    for row, length in enumerate(LENGTHS):
        states[row, length:] = float("nan")
    return states


def taken_by(given: PositionSpec, states: torch.Tensor) -> list[torch.Tensor]:
    """The states of each prompt's span, or their mean."""
    positions = parse_positions(given)
    parts = [states[row, slice(*positions.span(length))] for row, length in enumerate(LENGTHS)]
    return [part.mean(dim=0, keepdim=True) if positions.mean else part for part in parts]


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


def test_the_mean_excludes_the_first_token(states: torch.Tensor) -> None:
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
    tokens = "1 token" if length == 1 else f"{length} tokens"
    expected = "two or more tokens, because the mean" if given == "mean" else f"tokens 0 to {length - 1}"
    said = rf"prompt 3 has {tokens}, so positions '{given}' do not exist. Expected: {expected}"
    with pytest.raises(RequestError, match=said):
        parse_positions(given).span(length, "prompt 3")


@pytest.mark.parametrize(
    "given",
    [
        "",
        "first",
        "1.5",
        "1:2:3",
        "mean:last",
        "mean:",
        "mean:3",
        "2:x",
        "-:5",
        "3:-",
        (2, None),
        (2,),
        (0, 1, 2),
        True,
        None,
    ],
)
def test_invalid_positions_are_refused(given: Any) -> None:
    with pytest.raises(RequestError, match=r"cannot be parsed\. Expected: all, last, mean, an index"):
        parse_positions(given)
