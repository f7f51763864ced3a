"""Translate exceptions from loading or checking a model into readable errors.

transformers, tokenizers, quantization libraries and a model's own code raise all kinds of exceptions. Each becomes a
`ModelError` that names the cause, and the package to install if one is missing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import transformers

from engine.errors import LayerscopeError, ModelError, out_of_memory
from engine.remedies import Remedy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Text in an error message to the packages to install; the first match wins. Messages may name only one of several
# packages, or an import name that differs from the package name.
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
_PIP_INSTALL = re.compile(r"pip install (?:-U |--upgrade )?[`'\"]?([A-Za-z0-9._-]+)")
_MISSING = ("install", "no module named", "not found in your environment")
_UPGRADE = "pip install --upgrade transformers tokenizers"
_NEWER: dict[str, str | Remedy] = {
    "untagged enum": (
        f"tokenizer.json needs a newer version of tokenizers, or is damaged: {_UPGRADE}, or download it again"
    ),
    "does not recognize this architecture": f"{_UPGRADE}: the model may be newer than the installed versions",
    "Weights only load failed": "use a safetensors checkpoint: this one is a pickle with code, which is never run",
    "trust_remote_code": Remedy.TRUST_REMOTE_CODE,
}


_FILES = "config.json, tokenizer files and complete weights that transformers can read"


_COMPILED_CODE = "TORCHINDUCTOR_CACHE_DIR"


def require_cache_folder() -> None:
    """Refuse a folder for PyTorch's compiled code that cannot be made: transformers could not be imported.

    Raises:
        ModelError: There is no such folder, and it cannot be made.
    """
    folder = os.environ.get(_COMPILED_CODE)
    if folder is None:
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(
            f"PyTorch cannot make the folder {folder}: {error.strerror}",
            expected=f"{_COMPILED_CODE} to name a folder for compiled code",
            next_step=Remedy.SET_CACHE_FOLDER,
        ) from error


@contextmanager
def readable_load_errors(name: str, location: str, expected: str = _FILES) -> Iterator[None]:
    """Turn any exception raised while loading into a readable error.

    A `LayerscopeError` or `MemoryError` passes through.

    Args:
        name: Name of the model or adapter.
        location: Where it is loaded from.
        expected: The expected files, for the message.

    Raises:
        ModelError: Replaces any other exception.
    """
    try:
        yield
    except (LayerscopeError, MemoryError):
        raise
    except Exception as error:
        raise _no_memory(error, f"while loading {name}") or ModelError(
            f"{name} cannot be loaded from {location}: {cause_of(error)}",
            expected=expected,
            next_step=_remedy(error) or _default_remedy(error),
        ) from error


@contextmanager
def readable_check_errors(model: PreTrainedModel) -> Iterator[None]:
    """Turn any exception raised while a model is checked into a readable error.

    A `LayerscopeError` or `MemoryError` passes through.

    Args:
        model: Any model. One that needs inputs other than tokens may raise anything.

    Raises:
        ModelError: Replaces any other exception.
    """
    try:
        yield
    except (LayerscopeError, MemoryError):
        raise
    except Exception as error:
        raise _no_memory(error, "during the load check") or ModelError(
            f"the load check cannot run {type(model).__name__}: {cause_of(error)}",
            expected="a decoder that only needs token ids, their positions and a mask",
            next_step=_remedy(error) or "choose a model from another family",
        ) from error


def cause_of(error: BaseException) -> str:
    """Return the first line of an error, with its type if the line says little.

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
    """Return the next step for a known cause; empty for an unknown one."""
    text = str(error)
    for words, step in _NEWER.items():
        if words in text:
            return step
    lowered = text.lower()
    if isinstance(error, ImportError) or any(words in lowered for words in _MISSING):
        suggested = _PIP_INSTALL.search(text)
        module = str(error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        known = next((package for words, package in _PACKAGES.items() if words in lowered), "")
        package = known or (suggested[1] if suggested else "") or module
        if package and package not in ("torch", "transformers"):
            return f"pip install {package}"
        if isinstance(error, ImportError):
            return f"install the transformers version this code was written for, instead of {transformers.__version__}"
    return ""


def _default_remedy(error: BaseException) -> str:
    """Return the next step for an unknown cause.

    It depends on whether reading or parsing the files failed.
    """
    if isinstance(error, OSError | EOFError):
        return "check the files, or download them again"
    return f"check config.json, or download the files again; if they are from a newer release: {_UPGRADE}"


def _no_memory(error: BaseException, when: str) -> ModelError | None:
    if out_of_memory(error):
        return ModelError(f"out of memory {when}", next_step=Remedy.USE_SMALLER_MODEL_OR_DTYPE)
    return None
