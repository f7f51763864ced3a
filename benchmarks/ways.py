"""Captures with plain transformers and layerscope, and a check of their states."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

import engine
from engine.models.structure import find_blocks

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH = 16
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.01}
"""Maximum deviation from layerscope's states relative to their norm; allows for rounding only."""

States = dict[int, "Tensor"]
"""Layer to states, `(prompts, kept tokens, hidden)`."""

Read = Callable[[list[str]], States]
"""Captures the states of some texts."""


@dataclass(frozen=True)
class Work:
    """The capture that every method has to make.

    Attributes:
        model: Model as loaded by layerscope.
        tokenizer: Tokenizer of the model.
        layers: Layers to capture, ascending.
        positions: `last` for the last token of each prompt, or `all` for every token of a single prompt.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layers: list[int]
    positions: str

    def encode(self, texts: list[str]) -> dict[str, Tensor]:
        """Token ids and attention mask of one batch, padded on the right."""
        rows = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        width, device = max(map(len, rows)), self.model.device
        return {
            "input_ids": torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device),
        }

    def keep(self, states: Tensor, mask: Tensor) -> Tensor:
        """Select the requested tokens of a right-padded batch and copy them to the CPU."""
        if self.positions == "all":
            return states.cpu()
        return states[torch.arange(len(states), device=mask.device), mask.sum(dim=1) - 1][:, None].cpu()

    def in_batches(self, read: Read, size: int = BATCH) -> Read:
        """Extend a function for one batch to any number of texts, in the given order."""

        def read_all(texts: list[str]) -> States:
            parts = [read(texts[start : start + size]) for start in range(0, len(texts), size)]
            return {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}

        return read_all


@dataclass(frozen=True)
class Way:
    """A method of capturing.

    Attributes:
        says: Description for the table.
        prepare: Setup that runs once, before any number of texts.
        package: Python package that it needs, besides those of layerscope.
        distribution: Name under which the package is installed.
        last_site: Site that it reads as the state after the last block.
        positions: Positions that it supports.
    """

    says: str
    prepare: Callable[[Work], Read]
    package: str = ""
    distribution: str = ""
    last_site: str = "resid_post"
    positions: tuple[str, ...] = ("last", "all")


def by_hand(work: Work) -> Read:
    """Plain transformers with `output_hidden_states`."""

    def read(texts: list[str]) -> States:
        batch = work.encode(texts)
        states = work.model(**batch, output_hidden_states=True, use_cache=False).hidden_states
        return {layer: work.keep(states[layer + 1], batch["attention_mask"]) for layer in work.layers}

    return read


def by_an_expert(work: Work) -> Read:
    """What an experienced user writes by hand.

    All texts are tokenized in one call, sorted by length and padded on the right in batches under a token budget. Only
    the decoder runs. Hooks gather the kept tokens of each layer and copy them without waiting.
    """
    budget = 512 if work.model.device.type == "cpu" else 16_384

    def read(texts: list[str]) -> States:
        rows: list[list[int]] = work.tokenizer(texts, add_special_tokens=False)["input_ids"]
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        parts: list[list[int]] = []
        while order:
            size = max(1, budget // len(rows[order[0]]))
            parts.append(order[:size])
            order = order[size:]
        found = [run_hooked(work, [rows[index] for index in part]) for part in parts]
        if work.model.device.type == "cuda":
            torch.cuda.synchronize()
        places = torch.tensor([index for part in parts for index in part]).argsort()
        return {layer: torch.cat([states[layer] for states in found])[places] for layer in work.layers}

    return read


def run_hooked(work: Work, rows: list[list[int]]) -> States:
    """Run the decoder on one padded batch; copies from a GPU may not have finished when it returns."""
    blocks, device = find_blocks(work.model), work.model.device
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    every, last = torch.arange(len(rows), device=device), (lengths - 1).to(device)
    found: States = {}

    def gather(layer: int, _module: nn.Module, _args: object, out: Tensor) -> None:
        found[layer] = (out if work.positions == "all" else out[every, last][:, None]).to("cpu", non_blocking=True)

    hooks = [blocks.blocks[layer].register_forward_hook(partial(gather, layer)) for layer in work.layers]
    blocks.decoder(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def forward_only(work: Work) -> Read:
    """Plain forward pass without a capture."""

    def read(texts: list[str]) -> States:
        work.model(**work.encode(texts), use_cache=False)
        return {}

    return read


def with_layerscope(work: Work, *, use_hooks: bool, site: str = "resid_post", **options: Any) -> Read:  # noqa: ANN401
    """Capture with layerscope; `options` are further arguments of `capture_activations`."""

    def read(texts: list[str]) -> States:
        data = engine.capture_activations(
            work.model,
            work.tokenizer,
            texts,
            layers=work.layers if site == "resid_post" else None,
            positions=work.positions,
            rendered=True,
            use_hooks=use_hooks,
            site=site,
            **options,
        )
        return data["activations"]

    return read


WAYS = {
    "howto": Way(
        "one prompt at a time, output_hidden_states",
        lambda work: work.in_batches(by_hand(work), 1),
        last_site="final_norm",
    ),
    "plain": Way(f"plain forward, batches of {BATCH}, no capture", lambda work: work.in_batches(forward_only(work))),
    "plain_64": Way("plain forward, batches of 64, no capture", lambda work: work.in_batches(forward_only(work), 64)),
    "batched": Way(
        f"batches of {BATCH}, output_hidden_states",
        lambda work: work.in_batches(by_hand(work)),
        last_site="final_norm",
    ),
    "expert": Way("by hand: sorted, decoder only, hooks", by_an_expert),
    "hidden_states": Way("layerscope", partial(with_layerscope, use_hooks=False)),
    "hooks": Way("layerscope, --use-hooks", partial(with_layerscope, use_hooks=True)),
    "compiled": Way("layerscope, --compile", partial(with_layerscope, use_hooks=True, compiled=True)),
    "hooks_disk": Way("layerscope, --use-hooks, weights on disk", partial(with_layerscope, use_hooks=True)),
}


def expected_states(work: Work, texts: list[str], way: Way) -> States:
    """Compute the states that a method should capture, with layerscope.

    The state of the last layer is taken after the final norm if the method reads it there.
    """
    states = dict(with_layerscope(work, use_hooks=False)(texts))
    last = work.model.config.get_text_config(decoder=True).num_hidden_layers - 1
    if way.last_site == "final_norm" and last in states:
        states[last] = with_layerscope(work, use_hooks=True, site="final_norm")(texts)[last]
    return states


def furthest(found: States, expected: States) -> float:
    """Largest deviation of a state relative to its norm; infinite if a shape differs."""
    if found.keys() != expected.keys() or any(found[layer].shape != expected[layer].shape for layer in found):
        return math.inf
    return max(
        float(((found[layer].double() - state.double()).norm(dim=-1) / state.double().norm(dim=-1)).max())
        for layer, state in expected.items()
    )
