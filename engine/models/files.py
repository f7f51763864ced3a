"""Refuse model files that reach outside their folder, ask for code, or describe a model of absurd size.

Runs before transformers reads them: it follows links and names in an index wherever they lead, downloads and runs a
kernel that a config names, and builds as many blocks as a config asks for.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from engine.errors import ModelError
from engine.remedies import Remedy

_MOST_BLOCKS = 1000  # the deepest released models have fewer than 200
_MOST_EXPERTS = 10_000
_MOST_EXPERTS_IN_ALL = 200_000
_BLOCKS = re.compile(r"(^|[_.])(n_)?(layers?|blocks|depth|block_count)$")
_EXPERTS = re.compile(r"(^|[_.])(experts|expert_count)$")
_KERNELS = ("attn_implementation", "experts_implementation")  # and the same with underscores around
_DOWNLOAD = "download the files again, from a source that you trust"


def require_own_files(folder: Path) -> None:
    """Refuse a model folder with links or names that lead out of it, or entries that are no files.

    A snapshot in the hub's cache may link to the blobs of its own repository, and any folder to blobs in the cache, as
    older versions of the hub client link them.

    Args:
        folder: The model or adapter folder.

    Raises:
        ModelError: A file links out of the folder, is not a regular file, or is an index that names weights elsewhere.
    """
    for path in _entries(folder):
        where = Path(os.path.realpath(path))  # `resolve` raises at a link to itself
        if not any(where.is_relative_to(place) for place in _places(folder)):
            raise ModelError(
                f"{path} links to {where}, outside the model's folder",
                expected="files in the folder itself",
                next_step="copy the file into the folder, if you trust it",
            )
        if not path.is_file():
            raise ModelError(
                f"{path} is not a regular file" + ("" if path.exists() else ": it links to nothing"),
                next_step="remove it, or download the files again",
            )
        if path.name.endswith(".index.json"):
            _require_own_weights(path)


def require_sane_config(config: dict[str, Any], where: str, *, trusted: bool) -> None:
    """Refuse a config that names a kernel to download and run, or asks for an absurd number of blocks.

    Args:
        config: The contents of config.json.
        where: Its path or model, for the message.
        trusted: Whether code that comes with the model may run.

    Raises:
        ModelError: It does.

    Example:
        >>> require_sane_config({"num_hidden_layers": 10**9}, "config.json", trusted=False)
        Traceback (most recent call last):
        ...
        engine.errors.ModelError: config.json says that num_hidden_layers is 1000000000. Expected: at most 1000. ...
    """
    entries = list(_settings(config))
    for name, value in entries:
        if name.strip("_").removesuffix("_internal") in _KERNELS and not trusted:
            _require_no_kernel(name, value, where)
    _require_counts(entries, where)


def require_sane_gguf(path: Path) -> None:
    """Refuse a GGUF file that describes an absurd number of blocks or experts.

    Anything else that is wrong with the file is left to the reader, which ends at its last byte.

    Args:
        path: The file.

    Raises:
        ModelError: It does, or an adapter next to it would be loaded in its place.
    """
    if (path.parent / "adapter_config.json").exists():
        raise ModelError(
            f"{path.parent} contains an adapter_config.json, which transformers would load instead of {path.name}",
            next_step="move the .gguf file into a folder of its own",
        )
    with path.open("rb") as file:
        try:
            entries = list(_gguf_numbers(file))
        except (struct.error, ValueError, OverflowError, OSError):
            return
    _require_counts(entries, path.name)


def _entries(folder: Path) -> Iterator[Path]:
    for directory in (folder, folder / "additional_chat_templates"):
        if directory.is_dir():
            yield from (path for path in sorted(directory.iterdir()) if not path.is_dir())


def _places(folder: Path) -> list[Path]:
    """Return the folders in which the files of a model folder may lie."""
    from huggingface_hub.constants import HF_HUB_CACHE

    own, cache = folder.resolve(), Path(HF_HUB_CACHE).resolve()
    places = [own]
    if own.parent.name == "snapshots" and own.parent.parent.name.startswith("models--"):
        places.append(own.parent.parent / "blobs")
    return [*places, *(cache.glob("models--*/blobs") if not own.is_relative_to(cache) else ())]


def _require_own_weights(index: Path) -> None:
    """Refuse an index of weights that names files elsewhere."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{index} is not an index of weights: {type(error).__name__} {error}"[:300], next_step=_DOWNLOAD
        ) from error
    for name in names:
        path = PurePosixPath(str(name).replace("\\", "/"))
        if not isinstance(name, str) or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
            raise ModelError(
                f"{index.name} names the weights {str(name)[:200]!r}, outside the model's folder",
                expected="names of files in the folder",
                next_step=_DOWNLOAD,
            )
        if not any((index.parent / path).resolve().is_relative_to(place) for place in _places(index.parent)):
            raise ModelError(
                f"{index.name} names the weights {name!r}, which link out of the model's folder", next_step=_DOWNLOAD
            )


def _settings(config: object) -> Iterator[tuple[str, object]]:
    """Every name and value in a config, nested ones included."""
    waiting = [config]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from ((str(name), value) for name, value in one.items())
        waiting += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()


def _require_no_kernel(name: str, value: object, where: str) -> None:
    """Refuse the name of a repository, such as `owner/kernel` or `paged|owner/kernel`."""
    for one in value.values() if isinstance(value, dict) else [value]:
        if isinstance(one, str) and "/" in one:
            raise ModelError(
                f"{where} asks for the kernel {one!r} ({name}), code that transformers would download and run",
                expected="an implementation that transformers contains, such as sdpa or eager",
                next_step=Remedy.TRUST_REMOTE_CODE,
            )


def _require_counts(entries: Iterable[tuple[str, object]], where: str) -> None:
    blocks, experts = 1, 1
    for name, value in entries:
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        for pattern, most in ((_BLOCKS, _MOST_BLOCKS), (_EXPERTS, _MOST_EXPERTS)):
            if pattern.search(name) and value > most:
                raise ModelError(
                    f"{where} says that {name} is {value}", expected=f"at most {most}", next_step=_DOWNLOAD
                )
        blocks = max(blocks, value) if _BLOCKS.search(name) else blocks
        experts = max(experts, value) if _EXPERTS.search(name) else experts
    if blocks * experts > _MOST_EXPERTS_IN_ALL:
        raise ModelError(
            f"{where} describes {blocks} blocks of {experts} experts",
            expected=f"at most {_MOST_EXPERTS_IN_ALL} experts",
            next_step=_DOWNLOAD,
        )


GGUF_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""Kinds of numbers in the metadata of a GGUF file, and how `struct` reads them."""
GGUF_TEXT, GGUF_ARRAY = 8, 9
"""Its two other kinds."""


def _gguf_numbers(file: BinaryIO) -> Iterator[tuple[str, object]]:
    """Read the single numbers in the metadata of a GGUF file."""
    size = os.fstat(file.fileno()).st_size

    def read(form: str) -> Any:  # noqa: ANN401 - the number
        return struct.unpack(form, file.read(struct.calcsize(form)))[0]

    def skip(length: int) -> None:
        if file.seek(file.tell() + length) > size:
            raise ValueError("ends early")

    file.seek(16)
    for _ in range(read("<Q")):
        length = read("<Q")
        name = file.read(min(length, size)).decode("utf-8")
        kind = read("<I")
        if kind in GGUF_NUMBERS:
            yield name, read(GGUF_NUMBERS[kind])
        elif kind == GGUF_TEXT:
            skip(read("<Q"))
        elif kind == GGUF_ARRAY:
            element, count = read("<I"), read("<Q")
            if element in GGUF_NUMBERS:
                skip(count * struct.calcsize(GGUF_NUMBERS[element]))
                continue
            for _ in range(count):
                skip(read("<Q"))
        else:
            raise ValueError(f"unknown kind {kind}")
