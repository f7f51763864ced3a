"""Captures in shards as the dictionaries of the capture functions: a layer is read when it is looked at.

What is read is mapped: nothing is copied, and the system takes back what is not in use. Knows shards; does not know
records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, cast

import torch

from engine.capture.aligned import align_rows, aligned_mask
from engine.records.captures import ActivationData, ContrastData
from engine.records.concepts import Factors
from engine.store.shards import Shard

if TYPE_CHECKING:
    from torch import Tensor

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
