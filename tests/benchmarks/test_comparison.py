"""Methods of capturing are compared with layerscope before they are timed."""

import re

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.comparison import ALL_WAYS, checked
from benchmarks.ways import Read, States, Way, Work, by_hand

TEXTS = ["w3 w4 w5 w6", "w7", "w8 w9 w10", "w11 w12 w13 w14 w15"]


@torch.no_grad()
def test_ways_by_hand_capture_what_layerscope_does(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Including the last layer, which `output_hidden_states` returns after the final norm."""
    for name in ("howto", "batched", "expert"):
        read, says = checked(name, Work(tiny_llama.eval(), tiny_tokenizer, [0, 3], "last"), TEXTS)
        assert read is not None
        (distance,) = re.findall(r"at most (\S+) of their norm", says)
        assert float(distance) < 1e-5


@torch.no_grad()
def test_a_tool_that_captures_something_else_or_fails_is_not_timed(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work(tiny_llama.eval(), tiny_tokenizer, [0, 1], "last")

    def one_layer_late(work: Work) -> Read:
        read = by_hand(Work(work.model, work.tokenizer, [1, 2], "last"))

        def read_late(texts: list[str]) -> States:
            return {layer - 1: states for layer, states in read(texts).items()}

        return read_late

    def broken(_: Work) -> Read:
        raise AttributeError("np.float_ was removed")

    monkeypatch.setitem(ALL_WAYS, "nnsight", Way("late", one_layer_late))
    read, says = checked("nnsight", work, TEXTS)
    assert read is None
    assert says.startswith("states differ from layerscope's by")
    monkeypatch.setitem(ALL_WAYS, "nnsight", Way("broken", broken))
    assert checked("nnsight", work, TEXTS) == (None, "it fails with AttributeError: np.float_ was removed")
