"""Only regular files inside the store are opened."""

import os
import socket
from pathlib import Path

import pytest

from engine.errors import StoreError
from engine.store.files import open_regular


def test_a_regular_file_is_read_also_through_a_link_inside_the_store(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"text")
    (tmp_path / "b.json").symlink_to("a.json")
    for name in ("a.json", "b.json"):
        with open_regular(tmp_path / name, tmp_path) as file:
            assert file.read() == b"text"


def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "dangling.json").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.json"))
        for name, said in (
            ("pipe.json", "is a named pipe, not a regular file"),
            ("folder.json", "is a folder, not a regular file"),
            ("dangling.json", "is a link to a file that does not exist"),
            ("s.json", "cannot be read"),
        ):
            with pytest.raises(StoreError, match=said):
                open_regular(tmp_path / name, tmp_path)


def test_a_link_out_of_the_store_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (tmp_path / "secret.json").write_text("{}")
    (store / "link.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(StoreError, match="is a symbolic link out of the store"):
        open_regular(store / "link.json", store)


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none.json", tmp_path)
