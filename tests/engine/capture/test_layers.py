"""What a user writes for layers, and which blocks it means."""

from typing import Any

import pytest

from engine.capture.layers import LayerSpec, parse_layers, recommended_layers
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
    ],
)
def test_layers_are_ascending_numbers_from_zero_each_once(given: LayerSpec, meant: list[int]) -> None:
    assert parse_layers(given, 30) == meant


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (30, r"layer 30 is out of range for a model of 30 layers.*0 to 29, or -30 to -1"),
        (-31, "layer -31 is out of range"),
        ([3, 30], "layer 30 is out of range"),
        ("3,30", "layer 30 is out of range"),
        ("20-30", "layer 30 is out of range"),
        ("12-10", r"'12-10' runs backwards\. Expected: 10-12"),
        ("3,,4", "'3,,4' cannot be read at ''"),
        ("", "cannot be read"),
        ("middle", "'middle' cannot be read"),
        ("1-2-3", "cannot be read"),
        ("1.5", "cannot be read"),
        ([], "no layers were asked for"),
        (True, "True is not a layer number"),
        ([1.0], r"1\.0 is not a layer number"),
        (["3"], "'3' is not a layer number"),
    ],
)
def test_what_means_no_layer_is_refused(given: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        parse_layers(given, 30)


@pytest.mark.parametrize("num_layers", range(1, 129))
def test_the_recommended_layers_run_from_45_to_85_percent(num_layers: int) -> None:
    """In whole numbers: 0.85 · 20 must not fall below 17 for want of a bit."""
    layers = recommended_layers(num_layers)
    assert layers == list(range(45 * num_layers // 100, 85 * num_layers // 100 + 1))
    assert 0 <= layers[0] <= layers[-1] < num_layers
