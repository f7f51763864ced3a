"""Write shards atomically, and read them one layer at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import torch

from engine.capture.run import align_rows, aligned_mask, flat_ids
from engine.capture.selection import captured_layer
from engine.errors import RequestError, StoreError
from engine.records.captures import ActivationData, ContrastData, Factors, ResponseText
from engine.remedies import Remedy
from engine.stats.summary import StateSums
from engine.store.catalog import show_capture
from engine.store.locks import folder_lock
from engine.store.names import PLAN, SHARD, CapturePaths, locate, shard_files
from engine.store.plan import read_plan
from engine.store.replace import Version, read_whole, version_of
from engine.store.tensor_files import encode_tensors, read_tensors, said_as_damage, with_checksums
from engine.store.write import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from engine.capture.prompts import TokenizedPrompt
    from engine.capture.run import StackedStates


_HALVES = "surrogatepass"  # a token may be a lone surrogate
_DIMENSIONS = 2  # kept tokens, hidden
_DTYPES = {
    "input_ids": torch.int32,
    "sums": torch.float64,
    **dict.fromkeys(("kept", "lengths", "vocabulary", "text_lengths", "vocabulary_text_lengths"), torch.int64),
    **dict.fromkeys(("factors", "texts", "vocabulary_texts", "responses"), torch.uint8),
}


@dataclass(frozen=True)
class Shard:
    """One shard of a capture on disk; each attribute reads only its own tensors.

    Attributes:
        path: The file.
        start: Number of its first prompt.
        layers: The captured layers, ascending.
        version: What tells its capture from one that replaces it, see `version_of`; None to read either.
    """

    path: Path
    start: int
    layers: list[int]
    version: Version | None = None

    def states(self, layer: int) -> Tensor:
        """States of a layer, `(kept tokens of all prompts, hidden)`, memory-mapped.

        Raises:
            RequestError: The layer was not captured.
            StoreError: The file is missing or damaged.
        """
        name = f"layer.{captured_layer(layer, self.layers)}"
        states, kept = self._read(name, "kept")
        with self._damage():
            if not states.is_floating_point() or states.ndim != _DIMENSIONS or len(states) != int(kept.sum()):
                raise ValueError(f"{name!r} does not hold the states of the kept tokens")
        return states

    @property
    def kept(self) -> list[int]:
        """Number of kept tokens of each prompt, for `torch.split` of the states."""
        return [int(number) for number in self._read("kept")[0]]

    @property
    def prompts(self) -> list[str]:
        """The exact prompt texts; for a contrast, positive and negative prompts alternate."""
        return self._read_texts("text")

    @property
    def responses(self) -> list[ResponseText] | None:
        """The responses to the prompts, in the same order; None if the capture has none.

        Raises:
            StoreError: The shard or the plan of the capture is damaged.
        """
        with self._same_capture():
            plan = read_plan(self.path.parent / PLAN)
        if "responses" not in plan["provenance"]:
            return None
        with self._damage():
            return msgspec.json.decode(bytes(self._read("responses")[0].tolist()), type=list[ResponseText])

    @property
    def factors(self) -> list[Factors]:
        """Persona, template and topic of each pair; empty if unknown, and for prompts."""
        with self._damage():
            return msgspec.json.decode(bytes(self._read("factors")[0].tolist()), type=list[Factors])

    @property
    def tokens(self) -> list[list[str]]:
        """Token strings of each prompt with its response, including tokens that were not kept."""
        with self._damage():
            texts = self._read_texts("vocabulary_text")
            spelt = dict(zip(self._read("vocabulary")[0].tolist(), texts, strict=True))
            return [[spelt[one] for one in ids.tolist()] for ids in self.input_ids]

    @property
    def input_ids(self) -> list[Tensor]:
        """Token ids of each prompt with its response, `(tokens,)`, including tokens that were not kept."""
        with self._damage():
            ids, lengths = self._read("input_ids", "lengths")
            return list(torch.split(ids, lengths.tolist()))

    @property
    def sums(self) -> dict[int, StateSums]:
        """Layer to the sums of its states, for statistics of the whole capture."""
        with self._damage():
            rows = self._read("sums")[0].tolist()
            return {layer: StateSums(*row) for layer, row in zip(self.layers, rows, strict=True)}

    def _read_texts(self, name: str) -> list[str]:
        with self._damage():
            content, lengths = self._read(f"{name}s", f"{name}_lengths")
            texts, ends = bytes(content.tolist()), lengths.cumsum(0).tolist()
            return [texts[begin:end].decode(errors=_HALVES) for begin, end in zip([0, *ends], ends, strict=False)]

    def _read(self, *names: str) -> list[Tensor]:
        with self._same_capture():
            tensors = read_tensors(self.path, [*names], store=self.path.parent.parent, remedy=Remedy.DELETE_SHARD)
        with self._damage():
            for name, tensor in zip(names, tensors, strict=True):
                if tensor.dtype != _DTYPES.get(name, tensor.dtype):
                    raise ValueError(f"{name!r} has the wrong type")
        return tensors

    @contextmanager
    def _same_capture(self) -> Iterator[None]:
        """Refuse what is read from a capture that has taken the place of the opened one."""
        self._require_same_capture()
        try:
            yield
        except StoreError:
            store = self.path.parent.parent
            # A capture is replaced or deleted under this lock, its plan after its shards.
            with folder_lock(store) if self.version is not None and store.is_dir() else nullcontext():
                self._require_same_capture()
            raise
        self._require_same_capture()

    def _require_same_capture(self) -> None:
        if self.version is not None and version_of(self.path.with_name(PLAN)) != self.version:
            raise StoreError(
                f"the capture {self.path.parent.name!r} has been replaced or deleted since it was opened",
                next_step="open it again",
            )

    def _damage(self) -> AbstractContextManager[None]:
        return said_as_damage(self.path, Remedy.DELETE_SHARD)


def open_shards(name: str | Path, *, store: str | Path | None = None) -> list[Shard]:
    r"""Open the shards of a capture, in prompt order.

    Args:
        name: A path, such as "activations/questions"; a plain name when `store` is given.
        store: The store folder.

    Raises:
        StoreError: The capture does not exist, is unfinished or is damaged.
        RequestError: The capture is saved as one file.

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
    return read_whole(paths, partial(_open, paths))


def _open(paths: CapturePaths) -> list[Shard]:
    record = show_capture(paths.name, store=paths.store)
    if not paths.in_shards:
        raise RequestError(
            f"the capture {paths.name!r} is saved as one file", next_step="read it with load_activations"
        )
    version, layers = version_of(paths.plan), record["captured_layers"]
    return [Shard(path, int(path.stem), layers, version) for path in shard_files(paths)]


def shard_at(paths: CapturePaths, start: int, layers: list[int]) -> Shard:
    """The shard that starts at a given prompt, saved or not.

    Args:
        paths: Files of the capture.
        start: Number of the shard's first prompt.
        layers: The captured layers, ascending.
    """
    return Shard(paths.shards / f"{start:012d}{SHARD}", start, layers)


def pack_shard(
    prompts: Sequence[TokenizedPrompt], states: StackedStates, factors: Sequence[Factors] = ()
) -> list[bytes | memoryview]:
    """Encode a shard as the parts of a safetensors file, without copying the states.

    Args:
        prompts: Prompts of the shard.
        states: Their states.
        factors: Persona, template and topic of each pair.
    """
    ids = [prompt.ids for prompt in prompts]
    spelt = dict(zip(chain(*ids), chain.from_iterable(prompt.tokens for prompt in prompts), strict=True))
    vocabulary = sorted(spelt)
    tensors = {f"layer.{layer}": rows for layer, rows in states.layers.items()} | {
        "input_ids": flat_ids(ids).int(),
        "lengths": torch.tensor([len(row) for row in ids]),
        "kept": torch.tensor(states.kept),
        "sums": torch.tensor([_sums(rows[states.counted]) for rows in states.layers.values()], dtype=torch.float64),
        "vocabulary": torch.tensor(vocabulary),
        "factors": _bytes(msgspec.json.encode(factors)),
        **_packed_texts("text", [prompt.text for prompt in prompts]),
        **_packed_texts("vocabulary_text", [spelt[one] for one in vocabulary]),
    }
    if responses := [prompt.response for prompt in prompts if prompt.response is not None]:
        tensors["responses"] = _bytes(msgspec.json.encode(responses))
    return encode_tensors(tensors, with_checksums(tensors))


def write_shard(shard: Shard, content: Sequence[bytes | memoryview]) -> None:
    """Write a shard atomically.

    Args:
        shard: The shard.
        content: Its parts, from `pack_shard`.

    Raises:
        StoreError: The shard cannot be written; shards saved before are kept.
    """
    try:
        write_atomically(shard.path, content)
    except StoreError as error:
        done = len(list(shard.path.parent.glob(f"[0-9]*{SHARD}")))
        raise StoreError(
            f"the shard {shard.path.name} could not be saved: {error.problem}",
            expected=f"enough disk space; the {done} shards saved before it are kept",
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


_OPEN = 4  # mapped tensors, one layer of one shard each; few suffice, because shards are read in order


class _Shards:
    """The shards of a capture, with a cache of the most recently mapped tensors."""

    def __init__(self, shards: list[Shard]) -> None:
        self.shards = shards
        self.states = lru_cache(maxsize=_OPEN)(self._states)

    def _states(self, number: int, layer: int) -> Tensor:
        return self.shards[number].states(layer)


class MappedStates(Mapping[int, "Tensor"]):
    """Layer to the states of one prompt, `(1, kept tokens, hidden)`, read on access.

    Args:
        shards: All shards of the capture.
        number: Index of the shard that holds the prompt.
        start: The prompt's first row in that shard.
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
    """Layer to the left-padded states of all prompts, read on access.

    The shape is `(prompts, kept tokens, hidden)`; shorter rows start with zeros.

    Args:
        shards: All shards of the capture, at least one.
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


def mapped_contrast(
    shards: list[Shard], num_layers: int, concept: str | None, *, responses: bool = False
) -> ContrastData:
    """The contrast in a set of shards, with states read on access.

    Factors are included if any are known.

    Args:
        shards: All shards of the capture, in order.
        num_layers: Number of decoder blocks of the model.
        concept: Name of the concept.
        responses: Whether the prompts have responses.
    """
    prompts = list(_prompts(shards, num_layers))
    if responses:
        for prompt, response in zip(prompts, _responses(shards), strict=True):
            prompt["response"] = response
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


def mapped_prompts(shards: list[Shard], num_layers: int, *, responses: bool = False) -> ActivationData:
    """The prompts in a set of shards as one left-padded batch, read on access.

    Args:
        shards: All shards of the capture, in order.
        num_layers: Number of decoder blocks of the model.
        responses: Whether the prompts have responses.
    """
    ids = [row for shard in shards for row in shard.input_ids]
    data = ActivationData(
        activations=cast("dict[int, Tensor]", MappedBatch(shards)),
        input_ids=align_rows(torch.cat(ids).long(), [len(row) for row in ids]),
        tokens=[tokens for shard in shards for tokens in shard.tokens],
        prompt=[text for shard in shards for text in shard.prompts],
        num_layers=num_layers,
        captured_layers=shards[0].layers,
        attention_mask=aligned_mask([kept for shard in shards for kept in shard.kept]).long(),
    )
    if responses:
        data["response"] = _responses(shards)
    return data


def _responses(shards: list[Shard]) -> list[ResponseText]:
    return [response for shard in shards for response in shard.responses or ()]


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
