"""Summary statistics of each layer: mean, standard deviation and norm.

Sums are in float64, because a sum of a million values in bfloat16 loses most of its digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from engine.capture.selection import Positions, parse_positions
from engine.records.captures import ActivationData, CaptureData
from engine.records.checks import require_capture
from engine.records.results import LayerRow, LayerStats
from engine.stats.contrast import compute_contrastive_diff

if TYPE_CHECKING:
    from torch import Tensor


def compute_activation_stats(data: CaptureData, *, include_first: bool = False) -> dict[int, LayerStats]:
    """Compute mean, standard deviation and mean token norm of each layer.

    Args:
        data: A capture of prompts, or a contrast, summarized over the prompts of both classes.
        include_first: Whether to include the first token of each prompt. In many models its norm is hundreds of times
            that of other tokens and would dominate the summary (Sun et al. 2024, "Massive Activations in Large
            Language Models"). It is always included if it is the only token kept.

    Returns:
        Layer to mean and population standard deviation of all values and mean L2 norm of the tokens' states.

    Example:
        >>> stats = compute_activation_stats(capture_activations(model, tokenizer, "Tell me a story"))
        >>> sorted(stats[16])
        ['mean', 'norm', 'std']
    """
    prompts = prompts_of(data)
    layers = prompts[0]["captured_layers"]
    positions = parse_positions(data["provenance"]["positions"]) if "provenance" in data else None
    skip = None if include_first else partial(_begins_with_first_token, positions=positions)
    return {layer: _summarise(_token_states(prompts, layer, skip)) for layer in layers}


def prompts_of(data: CaptureData) -> list[ActivationData]:
    """List the prompt or batch captures that a capture consists of.

    Raises:
        RequestError: The argument is not a capture.
    """
    require_capture(data)
    return [*data["positive"], *data["negative"]] if "positive" in data else [data]


def _begins_with_first_token(kept: int, length: int, positions: Positions | None) -> bool:
    """Whether the kept states of a prompt of `length` tokens include the first one."""
    if positions is None:
        return kept == length
    return not positions.response and positions.span(length)[0] == 0


def _token_states(
    prompts: list[ActivationData], layer: int, skip_first: Callable[[int, int], bool] | None
) -> Iterator[Tensor]:
    """Yield the included states of each prompt, `(tokens, hidden)`, float64."""
    for data in prompts:
        states = data["activations"][layer]  # (batch, kept tokens, hidden)
        mask = data.get("attention_mask", torch.ones(states.shape[:2], dtype=torch.long))
        tokens = [data["tokens"]] if isinstance(data["prompt"], str) else data["tokens"]
        for row, real, its_tokens in zip(states, mask, tokens, strict=True):
            kept = row[real.bool()].double()
            skipped = len(kept) > 1 and skip_first is not None and skip_first(len(kept), len(its_tokens))
            yield kept[1:] if skipped else kept


def _summarise(token_states: Iterator[Tensor]) -> LayerStats:
    sums = StateSums()
    for states in token_states:
        sums.add(states)
    return sums.summary()


@dataclass
class StateSums:
    """Running sums over the states of a layer; the sums of parts of a capture add up.

    Attributes:
        count: Number of values.
        tokens: Number of tokens.
        total: Sum of the values.
        squares: Sum of their squares.
        norms: Sum of the L2 norms of the tokens' states.
    """

    count: float = 0
    tokens: float = 0
    total: float = 0.0
    squares: float = 0.0
    norms: float = 0.0

    def add(self, states: Tensor) -> None:
        """Add states to the sums.

        Args:
            states: `(tokens, hidden)`, float64.
        """
        self.merge(
            states.numel(),
            len(states),
            float(states.sum()),
            float(states.square().sum()),
            float(states.norm(dim=-1).sum()),
        )

    def merge(self, count: float, tokens: float, total: float, squares: float, norms: float) -> None:
        """Add the sums of another part."""
        self.count += count
        self.tokens += tokens
        self.total += total
        self.squares += squares
        self.norms += norms

    def summary(self) -> LayerStats:
        """Mean, population standard deviation and mean norm of all states added so far."""
        mean = self.total / self.count
        return LayerStats(
            mean=mean,
            std=max(self.squares / self.count - mean**2, 0.0) ** 0.5,
            norm=self.norms / self.tokens,
        )


def layer_table(data: CaptureData) -> list[LayerRow]:
    """Compute one row of statistics per captured layer, ascending.

    Args:
        data: A capture. For prompts, the columns of a contrast are None.
    """
    return add_differences(compute_activation_stats(data), data)


def add_differences(summaries: Mapping[int, LayerStats], data: CaptureData | None) -> list[LayerRow]:
    """Build the rows of `layer_table` from summaries that were computed before.

    Args:
        summaries: Layer to the summary of its states.
        data: The contrast; None or a capture of prompts leaves the columns of a contrast None.
    """
    diffs = compute_contrastive_diff(data) if data is not None and "positive" in data else {}
    return [
        LayerRow(
            layer=layer,
            **summary,
            diff_norm=diffs[layer]["diff_norm"] if diffs else None,
            relative_norm=diffs[layer]["relative_norm"] if diffs else None,
            cosine_sim=diffs[layer]["cosine_sim"] if diffs else None,
            pair_cosine=diffs[layer]["pair_cosine"] if diffs else None,
        )
        for layer, summary in summaries.items()
    ]
