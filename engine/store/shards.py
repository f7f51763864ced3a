"""The shards of a large capture: written whole or not at all, read layer by layer without reading the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from engine.capture.run import align_rows, aligned_mask
from engine.capture.selection import captured_layer
from engine.errors import Remedy, RequestError, StoreError, first_line
from engine.records.captures import ActivationData, ContrastData, Factors
from engine.stats.summary import StateSums
from engine.store.catalog import shard_files, show_capture
from engine.store.names import SHARD, CapturePaths, locate
from engine.store.write import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from engine.capture.prompts import TokenizedPrompt
    from engine.capture.run import StackedStates


_HALVES = "surrogatepass"  # a token may be half a character


@dataclass(frozen=True)
class Shard:
    """A part of a capture on disk. Opening one reads nothing but what is asked for.

    Attributes:
        path: The file.
        start: Number of its first prompt.
        layers: The captured layers, ascending.
    """

    path: Path
    start: int
    layers: list[int]

    def states(self, layer: int) -> Tensor:
        """States of a layer, `(kept tokens of all its prompts, hidden)`; mapped: read as they are used.

        Raises:
            RequestError: The layer was not captured.
            StoreError: The file is missing or damaged.
        """
        return self._read(f"layer.{captured_layer(layer, self.layers)}")

    @property
    def kept(self) -> list[int]:
        """Number of kept tokens of each prompt: what `torch.split` needs to take `states` apart."""
        return [int(number) for number in self._read("kept")]

    @property
    def prompts(self) -> list[str]:
        """The exact texts; of a contrast the positive and the negative prompt of each pair in turn."""
        return self._read_texts("text")

    @property
    def factors(self) -> list[Factors]:
        """What each pair of a contrast was made from; empty where that is not known, and for prompts."""
        return msgspec.json.decode(bytes(self._read("factors").tolist()), type=list[Factors])

    @property
    def tokens(self) -> list[list[str]]:
        """Token strings of each whole prompt."""
        spelt = dict(zip(self._read("vocabulary").tolist(), self._read_texts("vocabulary_text"), strict=True))
        return [[spelt[one] for one in ids.tolist()] for ids in self.input_ids]

    @property
    def input_ids(self) -> list[Tensor]:
        """Token ids of each whole prompt, `(tokens,)`."""
        return list(torch.split(self._read("input_ids"), self._read("lengths").tolist()))

    @property
    def sums(self) -> dict[int, StateSums]:
        """Layer to the sums of its states, for the statistics of the whole capture."""
        return {layer: StateSums(*row) for layer, row in zip(self.layers, self._read("sums").tolist(), strict=True)}

    def _read_texts(self, name: str) -> list[str]:
        texts = bytes(self._read(f"{name}s").tolist())
        ends = self._read(f"{name}_lengths").cumsum(0).tolist()
        return [texts[begin:end].decode(errors=_HALVES) for begin, end in zip([0, *ends], ends, strict=False)]

    def _read(self, name: str) -> Tensor:
        try:
            with safe_open(self.path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
                return tensor
        except (SafetensorError, OSError) as error:
            raise StoreError(
                f"the shard {self.path} is damaged: {first_line(error)}",
                next_step="delete it and capture again: only what is missing is run",
            ) from error


def open_shards(name: str | Path, *, store: str | Path | None = None) -> list[Shard]:
    r"""The parts of a capture in shards, in the order of the prompts.

    Args:
        name: A path, as in "activations/questions"; a plain name when `store` is given.
        store: The folder to read from.

    Raises:
        StoreError: There is no such capture, it is unfinished or damaged.
        RequestError: It is not in shards.

    Example:
        >>> count = Path("questions.txt").write_text("Is the sky blue?\nIs grass green?\n")
        >>> paths = capture_prompt_file(
        ...     model, tokenizer, "questions.txt", "runs/questions", positions="last", force=True
        ... )
        >>> shards = open_shards("runs/questions")
        >>> shards[0].prompts
        ['Is the sky blue?', 'Is grass green?']
        >>> shards[0].states(16).shape
        torch.Size([2, 576])
    """
    paths = locate(name, store)
    record = show_capture(name, store=store)
    if not paths.in_shards:
        raise RequestError(f"the capture {paths.name!r} is one file", next_step="load_activations reads it")
    return [Shard(path, int(path.stem), record["captured_layers"]) for path in shard_files(paths)]


def shard_at(paths: CapturePaths, start: int, layers: list[int]) -> Shard:
    """The shard that begins with a prompt, whether it is there yet or not.

    Args:
        paths: Of the capture.
        start: Number of the prompt.
        layers: The captured layers, ascending.
    """
    return Shard(paths.shards / f"{start:012d}{SHARD}", start, layers)


def pack_shard(prompts: Sequence[TokenizedPrompt], states: StackedStates, factors: Sequence[Factors] = ()) -> bytes:
    """The content of a shard.

    Args:
        prompts: Its prompts.
        states: Their states.
        factors: What its pairs were made from.
    """
    ids = [prompt.ids for prompt in prompts]
    spelt = {one: token for prompt in prompts for one, token in zip(prompt.ids, prompt.tokens, strict=True)}
    vocabulary = sorted(spelt)
    tensors = {f"layer.{layer}": rows for layer, rows in states.layers.items()} | {
        "input_ids": torch.tensor([one for row in ids for one in row], dtype=torch.int32),
        "lengths": torch.tensor([len(row) for row in ids]),
        "kept": torch.tensor(states.kept),
        "sums": torch.tensor([_sums(rows[states.counted]) for rows in states.layers.values()], dtype=torch.float64),
        "vocabulary": torch.tensor(vocabulary),
        "factors": _bytes(msgspec.json.encode(factors)),
        **_packed_texts("text", [prompt.text for prompt in prompts]),
        **_packed_texts("vocabulary_text", [spelt[one] for one in vocabulary]),
    }
    return save(tensors)


def write_shard(shard: Shard, content: bytes) -> None:
    """Write a shard: under its name there is all of it or nothing.

    Args:
        shard: Which.
        content: From `pack_shard`.

    Raises:
        StoreError: It cannot be written; those before it are whole.
    """
    try:
        write_atomically(shard.path, content)
    except StoreError as error:
        done = len(list(shard.path.parent.glob(f"[0-9]*{SHARD}")))
        raise StoreError(
            f"the shard {shard.path.name} could not be saved: {error.problem}",
            expected=f"room for it; the {done} shards before it are saved and stay",
            next_step=Remedy.MAKE_ROOM,
        ) from error


def _packed_texts(name: str, texts: Sequence[str]) -> dict[str, Tensor]:
    encoded = [text.encode(errors=_HALVES) for text in texts]
    lengths = torch.tensor([len(text) for text in encoded])
    return {f"{name}s": _bytes(b"".join(encoded)), f"{name}_lengths": lengths}


def _bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.zeros(0, dtype=torch.uint8)


def _sums(states: Tensor) -> list[float]:
    sums = StateSums()
    sums.add(states.double())
    return [sums.count, sums.tokens, sums.total, sums.squares, sums.norms]


_OPEN = 4  # layers of shards that are mapped at the same time: those of one layer are read one after the other


class _Shards:
    """The shards of a capture, with what was read last at hand."""

    def __init__(self, shards: list[Shard]) -> None:
        self.shards = shards
        self.states = lru_cache(maxsize=_OPEN)(self._states)

    def _states(self, number: int, layer: int) -> Tensor:
        return self.shards[number].states(layer)


class MappedStates(Mapping[int, "Tensor"]):
    """Layer to the states of one prompt, `(1, kept tokens, hidden)`.

    Args:
        shards: All shards.
        number: In which of them it lies.
        start: Its first row there.
        stop: The row after its last.
    """

    def __init__(self, shards: _Shards, number: int, start: int, stop: int) -> None:
        self._shards, self._number, self._rows = shards, number, slice(start, stop)

    def __getitem__(self, layer: int) -> Tensor:
        if layer not in self._shards.shards[self._number].layers:
            raise KeyError(layer)
        return self._shards.states(self._number, layer)[None, self._rows]

    def __iter__(self) -> Iterator[int]:
        return iter(self._shards.shards[self._number].layers)

    def __len__(self) -> int:
        return len(self._shards.shards[self._number].layers)


class MappedBatch(Mapping[int, "Tensor"]):
    """Layer to the states of all prompts, `(prompts, kept tokens, hidden)`, rows ending together; read when asked for.

    Args:
        shards: All shards, at least one.
    """

    def __init__(self, shards: list[Shard]) -> None:
        self._shards = shards

    def __getitem__(self, layer: int) -> Tensor:
        if layer not in self._shards[0].layers:
            raise KeyError(layer)
        states = torch.cat([shard.states(layer) for shard in self._shards])
        return align_rows(states, [kept for shard in self._shards for kept in shard.kept])

    def __iter__(self) -> Iterator[int]:
        return iter(self._shards[0].layers)

    def __len__(self) -> int:
        return len(self._shards[0].layers)


def mapped_contrast(shards: list[Shard], num_layers: int, concept: str | None) -> ContrastData:
    """The pairs of a capture in shards; what they were made from is there as far as it is known.

    Args:
        shards: All its shards, in order.
        num_layers: Decoder blocks of the model.
        concept: Name of the concept.
    """
    prompts = list(_prompts(shards, num_layers))
    factors: list[Factors] = [one for shard in shards for one in shard.factors]
    data = ContrastData(
        positive=prompts[0::2],
        negative=prompts[1::2],
        num_pairs=len(prompts) // 2,
        concept=concept,
        layers=shards[0].layers,
    )
    if any(value for one in factors for value in one.values()):
        data["factors"] = factors
    return data


def mapped_prompts(shards: list[Shard], num_layers: int) -> ActivationData:
    """The prompts of a capture in shards, as several prompts are captured together.

    Args:
        shards: All its shards, in order.
        num_layers: Decoder blocks of the model.
    """
    ids = [row for shard in shards for row in shard.input_ids]
    return ActivationData(
        activations=cast("dict[int, Tensor]", MappedBatch(shards)),
        input_ids=align_rows(torch.cat(ids).long(), [len(row) for row in ids]),
        tokens=[tokens for shard in shards for tokens in shard.tokens],
        prompt=[text for shard in shards for text in shard.prompts],
        num_layers=num_layers,
        captured_layers=shards[0].layers,
        attention_mask=aligned_mask([kept for shard in shards for kept in shard.kept]).long(),
    )


def _prompts(shards: list[Shard], num_layers: int) -> Iterator[ActivationData]:
    together = _Shards(shards)
    for number, shard in enumerate(shards):
        kept = shard.kept
        ends = list(accumulate(kept))
        for text, ids, tokens, rows, end in zip(shard.prompts, shard.input_ids, shard.tokens, kept, ends, strict=True):
            states: Any = MappedStates(together, number, end - rows, end)
            yield ActivationData(
                activations=states,
                input_ids=ids.long()[None],
                tokens=tokens,
                prompt=text,
                num_layers=num_layers,
                captured_layers=shard.layers,
            )
