"""Fingerprints of weights: enough to see that another model is meant, or that one was changed since it was loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from engine.models.adapters import adapter_parameters, base_name
from engine.models.offload import weights_at_hand

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_MOST_SAMPLES = 2048  # of one parameter


def sample_weights(model: PreTrainedModel) -> str:
    """SHA-256 over the name, shape and dtype of every parameter of the base model, and some of its values.

    The values lie on the diagonal of a matrix, wrapped around, so that a changed row or column is seen in all but the
    largest ones; of those they are spread evenly. Adapters are left out: `list_adapters` names them.

    Args:
        model: The model, wherever its weights are.
    """
    digest, samples, adapted = hashlib.sha256(), [], adapter_parameters(model)
    for name, weight in weights_at_hand(model):
        if name not in adapted:
            digest.update(f"{base_name(name)} {tuple(weight.shape)} {weight.dtype}".encode())
            samples.append(_diagonal(weight))
    digest.update(_bytes(samples))
    return digest.hexdigest()


def hash_weights(weights: Iterable[tuple[str, Tensor]], extra: str = "") -> str:
    """SHA-256 over names, shapes, dtypes and all values: for adapters, which are small.

    Args:
        weights: Names and values.
        extra: More that counts.
    """
    digest = hashlib.sha256(extra.encode())
    for name, weight in weights:
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(_bytes([weight.detach().reshape(-1)]))
    return digest.hexdigest()


def _diagonal(weight: Tensor) -> Tensor:
    flat = weight.flatten()
    step = weight.shape[-1] + 1 if weight.dim() > 1 else 1
    step *= max(1, -(-len(flat) // (step * _MOST_SAMPLES)))
    return flat[::step]


def _bytes(values: list[Tensor]) -> bytes:
    """The values as doubles, those of one device and dtype copied at once."""
    kinds = dict.fromkeys((one.device, one.dtype) for one in values)
    moved = (torch.cat([one for one in values if (one.device, one.dtype) == kind]).cpu() for kind in kinds)
    return b"".join(one.double().numpy().tobytes() for one in moved)
