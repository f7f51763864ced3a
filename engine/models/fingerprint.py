"""A fingerprint of a model's weights that is cheap to take: enough to see that another model is meant."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

from engine.models.offload import weights_at_hand

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SAMPLES = 64


def sample_weights(model: PreTrainedModel) -> str:
    """SHA-256 over the name, shape and dtype of every parameter and 64 of its values, evenly spaced.

    Args:
        model: The model, wherever its weights lie. A change to a few single weights may go unseen; training changes
            nearly all.
    """
    digest = hashlib.sha256()
    for name, weight in weights_at_hand(model):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        flat = weight.reshape(-1)
        places = torch.linspace(0, flat.numel() - 1, _SAMPLES, dtype=torch.float64).long().to(flat.device)
        digest.update(flat[places].cpu().double().numpy().tobytes())
    return digest.hexdigest()
