"""Which capture a command is about: by name in a store, or by the path of one of its files."""

from pathlib import Path

from engine.records.files import CaptureRecord
from engine.store.catalog import show_capture
from engine.store.names import locate


def find_record(name: str, store: Path) -> CaptureRecord:
    """The record of a capture; made from its tensors where a `.pt` came alone.

    Args:
        name: A name in the store, or a path.
        store: The folder that plain names are looked up in.

    Raises:
        StoreError: There is no such capture, or it cannot be used.
    """
    path = capture_path(name, store)
    paths = locate(path)
    if paths.record.exists() or not paths.tensors.exists():
        return show_capture(path)
    from engine.store.read import describe_tensors

    return describe_tensors(path)


def capture_path(name: str, store: Path) -> Path:
    """Where a capture lies, without suffix.

    Args:
        name: A name in the store, or a path.
        store: The folder that plain names are looked up in.

    Raises:
        StoreError: The name is not allowed.
    """
    paths = locate(name) if is_path(name) else locate(name, store)
    return paths.store / paths.name


def is_path(name: str) -> bool:
    """Whether what was given is a path and not a name in the store."""
    return "/" in name or "\\" in name or name.endswith((".pt", ".json", ".safetensors"))
