"""Synthetic captures with known states, without a model."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from engine.records.captures import ActivationData, ContrastData, Provenance
from engine.records.models import Receipt

LAYERS = [3, 7]
WIDTH = 16


def random_states(length: int, seed: int, dtype: torch.dtype = torch.float32) -> dict[int, Tensor]:
    """States of one prompt, `(length, hidden)` per layer; the first token is hundreds of times larger."""
    generator = torch.Generator().manual_seed(seed)
    states = {layer: torch.randn(length, WIDTH, generator=generator) * layer + 0.5 for layer in LAYERS}
    for kept in states.values():
        kept[0] *= 300
    return {layer: kept.to(dtype) for layer, kept in states.items()}


def one_prompt(
    states: dict[int, Tensor],
    start: int = 0,
    stop: int | None = None,
    provenance: Provenance | None = None,
    prompt: str = "made up",
) -> ActivationData:
    """A single prompt with the tokens from `start` to `stop` kept."""
    length = len(next(iter(states.values())))
    data = ActivationData(
        activations={layer: state[None, start:stop] for layer, state in states.items()},
        input_ids=torch.arange(length)[None],
        tokens=[f"w{i}" for i in range(length)],
        prompt=prompt,
        num_layers=10,
        captured_layers=list(states),
    )
    if provenance is not None:
        data["provenance"] = provenance
    return data


def several_prompts(prompts: Sequence[dict[int, Tensor]], start: int = 0) -> ActivationData:
    """A right-aligned batch with the tokens from `start` on kept; padding is NaN to expose any use of it."""
    lengths = [len(next(iter(states.values()))) for states in prompts]
    kept = [len(next(iter(states.values()))[start:]) for states in prompts]
    activations = {}
    for layer, example in prompts[0].items():
        batch = torch.full((len(prompts), max(kept), WIDTH), float("nan"), dtype=example.dtype)
        for row, states in enumerate(prompts):
            batch[row, max(kept) - kept[row] :] = states[layer][start:]
        activations[layer] = batch
    mask = torch.zeros(len(prompts), max(kept), dtype=torch.long)
    for row, number in enumerate(kept):
        mask[row, max(kept) - number :] = 1
    return ActivationData(
        activations=activations,
        input_ids=torch.zeros(len(prompts), max(lengths), dtype=torch.long),
        tokens=[[f"w{i}" for i in range(length)] for length in lengths],
        prompt=["made up"] * len(prompts),
        num_layers=10,
        captured_layers=list(activations),
        attention_mask=mask,
    )


def contrast(positive: Sequence[dict[int, Tensor]], negative: Sequence[dict[int, Tensor]]) -> ContrastData:
    """Pairs of distinct prompts with all tokens kept."""
    return ContrastData(
        positive=[one_prompt(states, prompt=f"yes {number}") for number, states in enumerate(positive)],
        negative=[one_prompt(states, prompt=f"no {number}") for number, states in enumerate(negative)],
        num_pairs=len(positive),
        concept="made-up",
        layers=list(positive[0]),
    )


def provenance(**changes: Any) -> Provenance:
    """A provenance with some fields changed."""
    receipt = Receipt(
        blocks="model.layers",
        final_norm="model.norm",
        attn_out="self_attn",
        mlp_out="mlp",
        num_layers=10,
        hidden_size=WIDTH,
        batched_error=0.0,
        tolerance=1e-5,
        dtype="float32",
    )
    made = Provenance(
        model="someone/some-model",
        alias="some",
        revision="abc",
        source="hub",
        dtype="float32",
        device="cpu",
        attention="sdpa",
        chat_template=None,
        versions={"torch": "2"},
        site="resid_post",
        positions="all",
        mode="hooks",
        batch_size=16,
        seed=None,
        receipt=receipt,
    )
    return made | changes  # type: ignore[return-value]  # a TypedDict loses its type when merged with a plain one
