"""Whether a model can be had from the Hugging Face hub, asked once and quickly before a download begins.

Without this, transformers tries an unreachable hub for half a minute for each file.
"""

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

from engine.errors import ModelError, Remedy, first_line
from engine.models.devices import require_room

if TYPE_CHECKING:
    from engine.records.models import ModelSource


TIMEOUT_S = 10.0


def require_on_hub(source: ModelSource) -> None:
    """Ask the hub for a model it is to deliver.

    Raises:
        ModelError: The hub is out of reach, or has no such model or revision, or does not show it to this user.
    """
    from huggingface_hub import HfApi, errors

    try:
        HfApi().model_info(source.model_id, revision=source.revision, timeout=TIMEOUT_S)
    except (errors.GatedRepoError, errors.RepositoryNotFoundError) as error:
        raise ModelError(
            f"the hub shows no model {source.model_id!r}",
            expected="a public model, or one whose licence you accepted while logged in",
            next_step=f"check the name at https://huggingface.co/{source.model_id}, then `hf auth login`",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(
            f"{source.model_id} has no revision {source.revision!r}", next_step="correct it in models.toml"
        ) from error
    except Exception as error:  # whatever HTTP library the hub's client is built on today
        raise ModelError(
            f"{source.model_id} is not on this machine and the hub is out of reach ({type(error).__name__})",
            expected="a connection to huggingface.co, or a model or folder that is already here",
            next_step=Remedy.LIST_MODELS,
        ) from error


log = logging.getLogger(__name__)


def conversion_folder(source: ModelSource) -> Path:
    """Where the conversion of these very bytes by this transformers lies, or will lie.

    Raises:
        ModelError: The file is not GGUF.
    """
    path = Path(source.location) / str(source.gguf_file)
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{path} is not a GGUF file", next_step="check the path, or fetch the file again")
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    name = f"{digest[:16]}-transformers-{transformers.__version__}"
    return platformdirs.user_cache_path("layerscope") / "converted" / name


def convert(source: ModelSource) -> Path:
    """Convert a GGUF file, or find that it has been converted before.

    Returns:
        A folder as `save_pretrained` writes it, model and tokenizer.

    Raises:
        ModelError: The file is damaged, of an architecture that transformers does not read, or there is no room.
    """
    folder = conversion_folder(source)
    if folder.is_dir():
        return folder
    log.info("converting %s, once: later loads take what is kept in %s", source.gguf_file, folder.parent)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unfinished-") as unfinished:
            _write_conversion(source, Path(unfinished) / folder.name)
            try:
                (Path(unfinished) / folder.name).rename(folder)
            except OSError:
                if not folder.is_dir():  # else a second process was quicker, and its folder holds the same
                    raise
    except OSError as error:
        raise ModelError(
            f"the converted weights of {source.gguf_file} cannot be kept in {folder.parent}: {error}",
            expected="a cache folder that can be written, with room for four bytes a parameter",
            next_step="make room there, or set XDG_CACHE_HOME to another folder",
        ) from error
    return folder


def _write_conversion(source: ModelSource, folder: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        config = AutoConfig.from_pretrained(source.location, gguf_file=source.gguf_file)
        require_room(config, torch.float32, torch.device("cpu"), "use the model's original weights with a device map")
        tokenizer = AutoTokenizer.from_pretrained(source.location, gguf_file=source.gguf_file)
        model = AutoModelForCausalLM.from_pretrained(
            source.location,
            gguf_file=source.gguf_file,
            config=config,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
    except (ValueError, KeyError, IndexError, TypeError, RuntimeError, struct.error) as error:
        raise ModelError(
            f"{source.gguf_file} cannot be read: {first_line(error)}",
            expected="a whole GGUF file of an architecture that transformers reads",
            next_step="fetch the file again, or use the model's original weights",
        ) from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
