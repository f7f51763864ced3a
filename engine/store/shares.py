"""Divide one shard between processes: each saves the states of its batches, and one of them joins the shares."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save

from engine.capture.passes import PassStates
from engine.errors import StoreError
from engine.remedies import Remedy
from engine.store.names import UNFINISHED
from engine.store.tensor_files import read_tensors, with_checksums
from engine.store.write import held_file

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.runtime import Processes
    from engine.store.shards import Shard


def hold_share(shard: Shard, batches: Iterable[PassStates], processes: Processes) -> AbstractContextManager[Path]:
    """Save the share of this process in a hidden file, which exists until the context is left.

    Args:
        shard: The shard that is shared.
        batches: The batches of this process, possibly none.
        processes: The processes, seen from this one.

    Raises:
        StoreError: The file cannot be written.
    """
    found = [*batches]
    layers = found[0].layers if found else {}
    tensors = {f"layer.{layer}": torch.cat([batch.layers[layer] for batch in found]) for layer in layers} | {
        "prompts": torch.tensor([index for batch in found for index in batch.prompts], dtype=torch.int64),
        "kept": torch.tensor([number for batch in found for number in batch.kept], dtype=torch.int64),
    }
    return held_file(_path(shard, processes.rank), save(tensors, metadata=with_checksums(tensors)))


def read_shares(shard: Shard, processes: Processes) -> Iterator[PassStates]:
    """Read the shares of all processes, one at a time; those without a batch are left out.

    Args:
        shard: The shard that is shared.
        processes: The processes that hold a share.

    Raises:
        StoreError: A share is missing or damaged.
    """
    for rank in range(processes.count):
        path = _path(shard, rank)
        files = [*path.parent.glob(f".{path.name}.????????{UNFINISHED}")]
        if len(files) != 1:
            raise StoreError(
                f"{len(files)} files hold the share of process {rank} of the shard {shard.path.name}",
                expected="one, in a folder shared by all processes on all machines",
                next_step=Remedy.RESUME,
            )
        names = ["prompts", "kept", *(f"layer.{layer}" for layer in shard.layers)]
        prompts, kept = read_tensors(files[0], names[:2], store=shard.path.parent.parent, remedy=Remedy.RESUME)
        if len(prompts):
            states = read_tensors(files[0], names[2:], store=shard.path.parent.parent, remedy=Remedy.RESUME)
            yield PassStates(prompts.tolist(), kept.tolist(), dict(zip(shard.layers, states, strict=True)))


def _path(shard: Shard, rank: int) -> Path:
    return shard.path.with_name(f"{shard.path.stem}.share-{rank}")
