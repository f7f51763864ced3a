"""Random models have the sizes of real ones, and are measured like them."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from benchmarks.capture_speed import read_arguments
from benchmarks.random_shapes import (
    SHAPES,
    load_tokenizer,
    measure_shape,
    random_model,
    seconds_outside_decoder,
)
from engine.concepts.chat import render_chats
from engine.models import forward
from engine.models.registry import find_source
from engine.models.sources import convert
from engine.records.captures import Message
from tests.conftest import Loaded

PARAMETERS = {"8B": 8_030_261_248, "1.5B": 1_543_714_304, "135M": 134_515_008}  # of the checkpoints


@pytest.mark.parametrize("name", PARAMETERS)
def test_random_models_have_the_size_of_the_real_ones(name: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = random_model(SHAPES[name], tiny_tokenizer, torch.device("meta"))
    assert sum(weight.numel() for weight in model.parameters()) == PARAMETERS[name]
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert {weight.device.type for weight in model.parameters()} == {"meta"}


def test_the_vocabulary_covers_the_tokenizer(tiny_tokenizer: PreTrainedTokenizerFast, smollm2: Loaded) -> None:
    assert random_model(SHAPES["tiny"], tiny_tokenizer, torch.device("meta")).vocab_size == 1024
    model = random_model(SHAPES["tiny"], smollm2.tokenizer, torch.device("meta"))
    assert model.vocab_size == smollm2.model.get_input_embeddings().num_embeddings


def test_the_scale_of_the_weights_makes_up_for_the_width(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = random_model(SHAPES["tiny"], tiny_tokenizer, torch.device("cpu"))
    states = torch.randn(1000, 64, dtype=torch.bfloat16)
    gain = model.model.layers[1].mlp.up_proj(states).detach().float().std()
    assert float(gain) == pytest.approx(0.02 * 576**0.5, rel=0.05)  # that of SmolLM2-135M


def test_a_tokenizer_loads_without_a_model(
    tmp_path: Path, smollm2: Loaded, monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    monkeypatch.delattr(AutoModelForCausalLM, "from_pretrained")
    folder, chat = convert(find_source("smollm2")), [Message(role="user", content="Is it true?")]
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(folder / name, tmp_path)
    (expected,) = render_chats(smollm2.tokenizer, [chat])
    for found in (load_tokenizer(None), load_tokenizer(str(tmp_path))):
        assert render_chats(found, [chat]) == [expected]
        assert found(expected)["input_ids"] == smollm2.tokenizer(expected)["input_ids"]
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(SystemExit, match="has no chat template"):
        load_tokenizer(str(tmp_path / "base"))


def test_the_host_part_is_what_is_outside_of_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]

    def stops_early() -> None:
        now[0] += 5
        raise InterruptedError

    def capture() -> None:
        now[0] += 0.25  # tokenize and plan
        for _ in range(3):
            with pytest.raises(InterruptedError):
                forward.run_decoder()  # type: ignore[call-arg]
            now[0] += 0.5  # check the states

    monkeypatch.setattr(forward, "run_decoder", stops_early)
    assert seconds_outside_decoder(capture, lambda: now[0]) == 1.75
    with pytest.raises(RuntimeError, match="did not call"):
        seconds_outside_decoder(lambda: None, lambda: now[0])


def test_a_shape_is_measured_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--shapes", "tiny", "--device", "cpu", "--threads", "1", "--rounds", "1", "--prompts", "8", "--markdown"]
    measure_shape("tiny", read_arguments(options))
    said = capsys.readouterr()
    assert re.findall(r"^(\w+): states differ from layerscope's by", said.err, re.M) == [
        "expert",
        "hooks",
        "hidden_states",
    ]
    title, *rest = [line for line in said.out.splitlines() if line]
    assert "tokens, last token of every layer, random weights in the shape of a tiny Llama, CPU; bfloat16;" in title
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in rest[2:6]]
    assert [row[0] for row in rows] == [
        "plain forward, batches of 64, no capture",
        "by hand: sorted, decoder only, hooks",
        "layerscope, --use-hooks",
        "layerscope",
    ]
    assert rows[1][1] == "1.00"
    host, latency = rest[6:]
    assert re.fullmatch(r"host part of layerscope, --use-hooks: \d+\.\d{3} s, \d+\.\d{3} ms per prompt", host)
    assert re.fullmatch(
        r"one prompt of 30 tokens: plain forward \d+\.\d ms, layerscope, --use-hooks \d+\.\d ms", latency
    )
