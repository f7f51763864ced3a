"""Whatever happens to the files of one capture, every reader works or says why not, and the others stay usable."""

import contextlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.errors import LayerscopeError
from engine.records.captures import ContrastData
from engine.store.catalog import list_captures, show_capture
from engine.store.delete import delete_capture
from engine.store.summaries import stamp_store, summarise_capture

HOSTILE_VALUES: list[Callable[[], Any]] = [
    lambda: None,
    lambda: [],
    lambda: {},
    lambda: "",
    lambda: "\x1b[31m",
    lambda: True,
    lambda: -1,
    lambda: 10**400,
    lambda: 1e308,
    lambda: [[]] * 1000,
    lambda: {"layers": []},
]


def flip(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 4, 64))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def truncate(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def insert(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content))
    return content[:at] + chance.randbytes(chance.choice((1, 8, 4096))) + content[at:]


def blank(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content))
    return content[:at] + bytes(min(512, len(content) - at)) + content[at + 512 :]


def nest(content: bytes, chance: random.Random) -> bytes:
    depth = chance.choice((500, 5000, 200_000))
    return content.replace(b": ", b": " + chance.choice((b"[", b'{"a": ')) * depth, 1 + chance.randrange(20))


def replace_value(content: bytes, chance: random.Random) -> bytes:
    """Replace a value anywhere in a JSON file by one of another type or size."""
    try:
        whole: Any = json.loads(content)
    except ValueError:
        return flip(content, chance)
    places = list(_places(whole))
    table, key = chance.choice(places)
    table[key] = chance.choice(HOSTILE_VALUES)()
    return json.dumps(whole).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield value, key
        yield from _places(one)


DAMAGES = [flip, flip, flip, truncate, insert, blank, nest, replace_value, replace_value, replace_value]


def put_pipe(path: Path) -> None:
    os.mkfifo(path)


def put_nothing_linked(path: Path) -> None:
    path.symlink_to("nowhere")


def put_loop(path: Path) -> None:
    path.symlink_to(path.name)


def put_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def put_link_out(path: Path) -> None:
    path.symlink_to(path.parent.parent / "outside")


KINDS: list[Callable[[Path], object]] = [Path.mkdir, put_pipe, put_nothing_linked, put_loop, put_device, put_link_out]


def pack(content: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    torch.save({}, out)
    with zipfile.ZipFile(out) as before, zipfile.ZipFile(packed := io.BytesIO(), "w", compression) as after:
        for name in before.namelist():
            after.writestr(name, content if name.endswith(".pkl") else before.read(name))
    return packed.getvalue()


def saved(content: object) -> bytes:
    torch.save(content, out := io.BytesIO())
    return out.getvalue()


HOSTILE_ARCHIVES: list[Callable[[], bytes]] = [
    lambda: pack(b"\x80\x02" + b"(" * 3_000_000 + b"."),
    lambda: pack(b"\x80\x02" + b"]" * 3_000_000 + b"."),
    lambda: pack(b"\x80\x02]" + b"a" * 100 + b"."),
    lambda: pack(b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\xe4\x0b\x54\x02\x85R."),
    lambda: pack(b"N." + bytes(2**28), zipfile.ZIP_DEFLATED),
    lambda: saved({"activations": {0: torch.zeros(1).expand(1, 10**9, 10**6)}}),
    lambda: saved([[[]]]),
    lambda: pickle.dumps({"activations": {}}),
]


def load_all(name: str, store: Path) -> None:
    data: Any = engine.load_activations(name, store=store)
    for one in (*data["positive"], *data["negative"]) if "positive" in data else (data,):
        assert all(one["activations"][layer].ndim == 3 for layer in one["captured_layers"])


READERS: list[Callable[[str, Path], object]] = [
    lambda _name, store: msgspec.json.encode(list_captures(store)),
    lambda _name, store: stamp_store(store),
    lambda name, store: show_capture(name, store=store),
    summarise_capture,
]


def read_shards(name: str, store: Path) -> None:
    """Read everything in the shards of a capture."""
    for shard in engine.open_shards(name, store=store):
        for layer in shard.layers:
            shard.states(layer)
        assert len(shard.prompts) == len(shard.tokens) == len(shard.kept)
        assert len(shard.sums) == len(shard.layers)
        assert shard.factors is not None


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Fuzzer:
    """A store with two healthy captures, "good" and "whole", beside which damaged copies are put."""

    def __init__(self, store: Path) -> None:
        self.store = store
        (store.parent / "outside").write_text("{}")
        self._kept = {path.name for path in store.iterdir()}

    def damage(self, chance: random.Random) -> str:
        """Put a damaged capture into the store, and return the name of the changed file."""
        for suffix in (".pt", ".json"):
            shutil.copy(self.store / f"good{suffix}", self.store / f"bad{suffix}")
        if chance.random() < 0.3:
            shutil.copytree(self.store / "whole", self.store / "bad")
            shutil.copy(self.store / "whole.json", self.store / "bad.json")
            (self.store / "bad.pt").unlink()
        files = sorted(path for path in (*self.store.glob("bad.*"), *self.store.glob("bad/*")))
        path = chance.choice(files)
        content = path.read_bytes()
        what = chance.random()
        if what < 0.2:
            path.unlink()
            chance.choice(KINDS)(path)
        elif what < 0.35 and path.suffix == ".pt":
            path.write_bytes(chance.choice(HOSTILE_ARCHIVES)())
            if chance.random() < 0.7:
                (self.store / "bad.json").unlink()
        else:
            path.write_bytes(chance.choice(DAMAGES)(content, chance))
        return str(path.relative_to(self.store))

    def read_all(self) -> None:
        """Call every reader; then the damaged capture is deleted by its name in the list."""
        names = {entry.name for entry in list_captures(self.store)} - {"good", "whole"}
        assert names == {"bad"}
        for read in (*READERS, load_all, read_shards):
            with contextlib.suppress(LayerscopeError):
                read("bad", self.store)
            assert {entry.name for entry in list_captures(self.store) if entry.record} >= {"good", "whole"}
        load_all("good", self.store)
        delete_capture("bad", store=self.store)
        assert {path.name for path in self.store.iterdir()} == self._kept


@pytest.fixture
def fuzzer(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, ranked_data: ContrastData, tmp_path: Path
) -> Fuzzer:
    store = tmp_path / "store"
    engine.save_activations(ranked_data, "good", store=store)
    (tmp_path / "prompts.txt").write_text("w5 w6\nw7 w8 w9\n")
    engine.capture_prompt_file(tiny_llama, tiny_tokenizer, tmp_path / "prompts.txt", "whole", store=store)
    return Fuzzer(store)


@pytest.mark.parametrize("seeds", [range(15), pytest.param(range(15, 215), marks=pytest.mark.slow)])
def test_no_damage_takes_the_readers_down(fuzzer: Fuzzer, seeds: range) -> None:
    before = peak_memory()
    for seed in seeds:
        damaged = fuzzer.damage(random.Random(seed))  # noqa: S311 - not a secret
        try:
            fuzzer.read_all()
        except Exception as error:
            error.add_note(f"seed {seed}, {damaged}")
            raise
    assert peak_memory() - before < 2**30  # a quarter of it is the test's own, to make a compressed archive
