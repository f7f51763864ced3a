"""What goes wrong while a model is loaded or checked, as errors for people.

transformers, tokenizers, quantization libraries and a model's own code raise what they like. All of it becomes a
`ModelError` that names the cause, and the package to install where that is the cause.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import transformers

from engine.errors import LayerscopeError, ModelError, Remedy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What an error message mentions, and what to install then; the first that fits. Messages name one package of several,
# or one that is called otherwise than what it is imported as.
_PACKAGES = {
    "bitsandbytes": "bitsandbytes",
    "awq": "gptqmodel",
    "gptq": "gptqmodel optimum",
    "compressed-tensors": "compressed-tensors",
    "compressed_tensors": "compressed-tensors",
    "hqq": "hqq",
    "aqlm": "aqlm",
    "vptq": "vptq",
    "quanto": "optimum-quanto",
    "torchao": "torchao",
    "quark": "amd-quark",
    "auto-round": "auto-round",
    "flash_attn": "flash-attn",
    "flash attention": "flash-attn",
    "flashattention": "flash-attn",
    "sentencepiece": "sentencepiece",
    "tiktoken": "tiktoken",
    "protobuf": "protobuf",
}
_TOLD = re.compile(r"pip install (?:-U |--upgrade )?[`'\"]?([A-Za-z0-9._-]+)")
_LACKING = ("install", "no module named", "not found in your environment")
_UPGRADE = "pip install --upgrade transformers tokenizers"
_NEWER: dict[str, str | Remedy] = {
    "untagged enum": f"tokenizer.json is of a newer version of tokenizers, or damaged: {_UPGRADE}, or fetch it again",
    "does not recognize this architecture": f"{_UPGRADE}: the model may be newer than these",
    "Weights only load failed": "use a checkpoint in safetensors: this one is a pickle, of which torch runs nothing",
    "trust_remote_code": Remedy.TRUST_REMOTE_CODE,
}


_FILES = "config.json, tokenizer files and whole weights, as transformers reads them"


@contextmanager
def readable_load_errors(name: str, location: str, expected: str = _FILES) -> Iterator[None]:
    """Turn whatever loading raises into an error for people; an error of layerscope, and of Python's memory, passes.

    Args:
        name: What is loaded.
        location: From where.
        expected: What should be there.

    Raises:
        ModelError: In the place of any other error.
    """
    try:
        yield
    except (LayerscopeError, MemoryError):
        raise
    except Exception as error:
        raise _out_of_memory(error, f"loading {name}") or ModelError(
            f"{name} cannot be loaded from {location}: {cause_of(error)}",
            expected=expected,
            next_step=_remedy(error) or _without_advice(error),
        ) from error


@contextmanager
def readable_check_errors(model: PreTrainedModel) -> Iterator[None]:
    """Turn whatever a model raises while it is checked into an error for people.

    Args:
        model: Any model; one that needs other inputs than tokens may raise anything.

    Raises:
        ModelError: In the place of any error but those of layerscope.
    """
    try:
        yield
    except (LayerscopeError, MemoryError):
        raise
    except Exception as error:
        raise _out_of_memory(error, "the check at load") or ModelError(
            f"{type(model).__name__} cannot be run by the check at load: {cause_of(error)}",
            expected="a decoder that needs token ids, their positions and a mask, and nothing else",
            next_step=_remedy(error) or "choose a model of another family",
        ) from error


def cause_of(error: BaseException) -> str:
    """What another library says is wrong: its first sentence, with the type where that alone says little.

    Example:
        >>> cause_of(AttributeError("module 'torch' has no attribute 'bf16'"))
        "AttributeError: module 'torch' has no attribute 'bf16'"
    """
    if isinstance(error, KeyError):
        return f"{error} is missing, or transformers {transformers.__version__} does not know it (KeyError)"
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines and lines[0].endswith(":") else next(iter(lines), "")
    says_enough = isinstance(error, OSError | ValueError | RuntimeError | ImportError) and text
    return text if says_enough else ": ".join(filter(None, (type(error).__name__, text)))


def _remedy(error: BaseException) -> str | Remedy:
    """What to do about a cause that is known; empty if it is not."""
    text = str(error)
    for words, step in _NEWER.items():
        if words in text:
            return step
    lowered = text.lower()
    if isinstance(error, ImportError) or any(words in lowered for words in _LACKING):
        told = _TOLD.search(text)
        module = str(error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        known = next((package for words, package in _PACKAGES.items() if words in lowered), "")
        package = known or (told[1] if told else "") or module
        if package and package not in ("torch", "transformers"):
            return f"pip install {package}"
        if isinstance(error, ImportError):
            return f"install the transformers that this code was written for; here it is {transformers.__version__}"
    return ""


def _without_advice(error: BaseException) -> str:
    """What to do where nothing is known of the cause, by whether the files or their contents are at fault."""
    if isinstance(error, OSError | EOFError):
        return "check or fetch the files again"
    return f"check config.json or fetch the files again; if they are from a newer release: {_UPGRADE}"


def _out_of_memory(error: BaseException, doing: str) -> ModelError | None:
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return ModelError(f"memory ran out while {doing}", next_step=Remedy.USE_SMALLER_MODEL_OR_DTYPE)
    return None
