"""Exceptions of other libraries during loading or checking become errors that name the cause and the remedy."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import engine
from engine.errors import ModelError, RequestError
from engine.models.load_errors import readable_load_errors
from tests.program import Program


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImportError("the package flash_attn seems to be not installed"), "Next: pip install flash-attn"),
        (
            ImportError("This modeling file requires the following packages: einops. Run `pip install einops`"),
            "install einops",
        ),
        (ModuleNotFoundError("No module named 'mamba_ssm'", name="mamba_ssm"), "Next: pip install mamba_ssm"),
        (ValueError("You need to have sentencepiece or tiktoken installed"), "Next: pip install sentencepiece"),
        (ValueError("loading it needs `trust_remote_code=True`"), "only if you trust the model's author"),
        (ZeroDivisionError(), r"from here: ZeroDivisionError\. .*check config.json"),
        (OSError("cut short"), "from here: cut short.*check the files, or download them again"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory while loading mine.*device_map"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory while loading mine"),
    ],
)
def test_a_library_error_says_what_to_do(error: Exception, said: str) -> None:
    with pytest.raises(ModelError, match=said), readable_load_errors("mine", "here"):
        raise error


_TWICE = """
import sys
import engine
from engine.steering.vectors import find_shape
for load in (engine.load_model_and_tokenizer, engine.load_model_and_tokenizer, find_shape):
    try:
        load(sys.argv[1])
    except engine.LayerscopeError as error:
        print(error)
"""


def test_a_folder_for_compiled_code_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """Every time, though PyTorch's own error is another one when transformers is imported again."""
    (tmp_path / "file").touch()
    program, folder = Program(tmp_path), str(tmp_path / "file" / "below")
    result = program.python("-c", _TWICE, "smollm2", TORCHINDUCTOR_CACHE_DIR=folder)
    said = f"PyTorch cannot make the folder {folder}: Not a directory. Expected: TORCHINDUCTOR_CACHE_DIR to name a"
    assert result.stdout.count(said) == 3, result.stderr
    result = program.child("capture", "--prompt", "Hello", TORCHINDUCTOR_CACHE_DIR=folder)
    assert result.returncode == 3
    assert f"error: {said}" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("error", [RequestError("as it is"), MemoryError(), KeyboardInterrupt()])
def test_readable_errors_pass_through(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, readable_load_errors("mine", "here"):
        raise error
    assert caught.value is error


class _NeedsMore(LlamaForCausalLM):
    """A model that needs another input besides tokens, like CPM-Ant."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.model.forward = self._forward

    def _forward(self, input_ids: torch.Tensor, span: torch.Tensor, **_more: object) -> None:
        raise AssertionError((input_ids, span))


def test_a_model_that_needs_other_inputs_is_refused(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    config = LlamaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    with pytest.raises(ModelError, match=r"the load check cannot run _NeedsMore: TypeError: .*'span'"):
        engine.capture_activations(_NeedsMore(config), tiny_tokenizer, "w5")


def test_a_model_not_from_transformers_is_refused(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model: Any
    for model in (nn.Linear(2, 2), "smollm2"):
        with pytest.raises(ModelError):
            engine.capture_activations(model, tiny_tokenizer, "w5")
