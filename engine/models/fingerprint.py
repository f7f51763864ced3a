"""Fingerprints of weights: enough to see that another model is meant, or that one was changed since it was loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from engine.models.adapters import adapter_tensors, base_name
from engine.models.offload import weights_at_hand

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_MOST_SAMPLES = 2048  # of one parameter


def sample_weights(model: PreTrainedModel) -> str:
    """SHA-256 over the name, shape and dtype of every weight of the base model, and some of its values.

    Weights are parameters and stored buffers. The values lie on the diagonal of a matrix, wrapped around, so that a
    changed row or column is seen in all but the largest ones; of those they are spread evenly. A change of single
    values may go unseen. Adapters are left out: `list_adapters` names them.

    Args:
        model: The model, wherever its weights are; no other thread may be running it for a capture.
    """
    digest, samples, adapted = hashlib.sha256(), [], adapter_tensors(model)
    for name, weight in weights_at_hand(model):
        if name not in adapted:
            digest.update(f"{base_name(name)} {tuple(weight.shape)} {weight.dtype}".encode())
            samples.append(sample_of(weight))
    for one in copied(samples):
        digest.update(raw_bytes(one))
    return digest.hexdigest()


def sample_of(weight: Tensor) -> Tensor:
    """Some values of a weight, `(samples,)`."""
    flat = weight.flatten()
    step = weight.shape[-1] + 1 if weight.dim() > 1 else 1
    step *= max(1, -(-len(flat) // (step * _MOST_SAMPLES)))
    return flat[::step].clone()  # a view would keep a weight that was fetched from the disk


def copied(values: Sequence[Tensor]) -> list[Tensor]:
    """One-dimensional tensors on the CPU, in their order; those of one device and dtype are copied at once."""
    together: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for one in values:
        together.setdefault((one.device, one.dtype), []).append(one)
    arrived = {
        kind: iter(torch.split(torch.cat(group).cpu(), [len(one) for one in group])) for kind, group in together.items()
    }
    return [next(arrived[one.device, one.dtype]) for one in values]


def raw_bytes(values: Tensor) -> bytes:
    """The bytes of a one-dimensional tensor on the CPU."""
    return values.contiguous().view(torch.uint8).numpy().tobytes()
