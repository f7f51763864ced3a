"""Prepare model files: check the hub before downloads, convert GGUF files once."""

from __future__ import annotations

import hashlib
import logging
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
import torch
import transformers

from engine.errors import ModelError, first_line
from engine.models.devices import require_room
from engine.models.files import require_sane_gguf
from engine.remedies import Remedy

if TYPE_CHECKING:
    from engine.records.models import ModelSource


TIMEOUT_S = 10.0


def require_on_hub(source: ModelSource) -> None:
    """Check that the hub can serve a model, before a download starts.

    Without this check, transformers tries an unreachable hub for half a minute per file.

    Raises:
        ModelError: The hub is unreachable, has no such model or revision, or does not show it to this user.
    """
    from huggingface_hub import HfApi, errors

    try:
        HfApi().model_info(source.model_id, revision=source.revision, timeout=TIMEOUT_S)
    except (errors.GatedRepoError, errors.RepositoryNotFoundError) as error:
        raise ModelError(
            f"the hub has no model {source.model_id!r} that you can access",
            expected="a public model, or one whose license you accepted while logged in",
            next_step=f"check the name at https://huggingface.co/{source.model_id}, then run `hf auth login`",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(
            f"{source.model_id} has no revision {source.revision!r}", next_step="correct it in models.toml"
        ) from error
    except Exception as error:  # the exception depends on the hub client's HTTP library
        raise ModelError(
            f"{source.model_id} is not on this machine and the hub is unreachable ({type(error).__name__})",
            expected="a connection to huggingface.co, or a model or folder that is already here",
            next_step=Remedy.LIST_MODELS,
        ) from error


log = logging.getLogger(__name__)


def conversion_folder(source: ModelSource) -> Path:
    """Return the cache folder for the conversion of a GGUF file.

    Its name is the file's hash and the version of transformers.

    Raises:
        ModelError: The file is not a GGUF file.
    """
    path = Path(source.location) / str(source.gguf_file)
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{path} is not a GGUF file", next_step="check the path, or download the file again")
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    name = f"{digest[:16]}-transformers-{transformers.__version__}"
    return platformdirs.user_cache_path("layerscope") / "converted" / name


def convert(source: ModelSource) -> Path:
    """Convert a GGUF file to safetensors, or reuse an earlier conversion.

    Returns:
        A folder with model and tokenizer, written by `save_pretrained`.

    Raises:
        ModelError: The file is damaged, transformers does not support its architecture, or there is not enough memory
            or disk space.
    """
    folder = conversion_folder(source)
    if folder.is_dir():
        return folder
    log.info("converting %s once; later loads reuse the result in %s", source.gguf_file, folder.parent)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unfinished-") as unfinished:
            _write_conversion(source, Path(unfinished) / folder.name)
            try:
                (Path(unfinished) / folder.name).rename(folder)
            except OSError:
                if not folder.is_dir():  # otherwise another process was faster, and its result is the same
                    raise
    except OSError as error:
        raise ModelError(
            f"cannot write the converted weights of {source.gguf_file} to {folder.parent}: {error}",
            expected="a writable cache folder with room for four bytes per parameter",
            next_step="free some disk space, or set XDG_CACHE_HOME to another folder",
        ) from error
    return folder


def _write_conversion(source: ModelSource, folder: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        require_sane_gguf(Path(source.location) / str(source.gguf_file))
        config = AutoConfig.from_pretrained(source.location, gguf_file=source.gguf_file, trust_remote_code=False)
        require_room(config, torch.float32, torch.device("cpu"), "use the model's original weights with a device map")
        tokenizer = AutoTokenizer.from_pretrained(source.location, gguf_file=source.gguf_file, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            source.location,
            gguf_file=source.gguf_file,
            config=config,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            trust_remote_code=False,
        )
    except (ValueError, KeyError, IndexError, TypeError, RuntimeError, struct.error) as error:
        raise ModelError(
            f"{source.gguf_file} cannot be read: {first_line(error)}",
            expected="a complete GGUF file of an architecture that transformers supports",
            next_step="download the file again, or use the model's original weights",
        ) from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
