"""Score texts under many steerings at once: one row of tokens fans out into a batch at the steered layer.

The blocks below the steered layer see a batch of one. Its output is repeated, changed once per condition, and run on by
the blocks above. Texts that share a prefix are packed into one row where the model allows it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from engine.capture.budget import token_budget
from engine.capture.passes import free_failed_pass
from engine.capture.run_settings import sharing_allowed, uses_onednn
from engine.errors import first_line, out_of_memory
from engine.models.adapters import inner_model
from engine.models.description import describe_model
from engine.models.devices import free_bytes
from engine.models.forward import TokenBatch, evaluating, input_device, run_decoder
from engine.models.products import onednn_products
from engine.models.shortcuts import packer
from engine.models.structure import find_blocks
from engine.steering.hooks import hooked

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

_ROW_TOKENS = 400  # scored tokens of a row: a longer row gains little and needs more memory for its predictions
_ROW_BUDGETS = 4  # tokens of its texts, in token budgets: the mask grows with the square of the row
_LARGEST_BUDGET = 4096  # tokens; more, as for a small model on a GPU, would be repeated for each condition
_SHARE = 8  # a forward pass may use 1/8 of the free memory
_COPIES = 3  # of the predictions of one condition, in float32, while they are compared
_STATES = 24  # of one token, alive in a block


class Text(NamedTuple):
    """Token ids, of which those from `start` on are scored; `start` is at least 1."""

    ids: list[int]
    start: int


@dataclass(frozen=True)
class Row:
    """Texts in one row of tokens.

    Attributes:
        texts: Indices of the texts in the list of all texts.
        batch: The row.
        places: Index in the row of the token that predicts each scored token, `(scored,)`.
        targets: Ids of the scored tokens.
        owners: Text of each scored token, counted within the row.
    """

    texts: list[int]
    batch: TokenBatch
    places: Tensor
    targets: Tensor
    owners: Tensor

    def mean_of(self, values: Tensor) -> Tensor:
        """Average one value per scored token over the tokens of each text, `(texts,)` in float64."""
        counts = torch.bincount(self.owners, minlength=len(self.texts))
        sums = torch.zeros(len(self.texts), dtype=torch.float64).index_add_(0, self.owners, values.cpu().double())
        return sums / counts


class Conditions(NamedTuple):
    """What happens at a layer, in several ways.

    Attributes:
        layer: The layer.
        vectors: One vector per condition, `(conditions, hidden)`, float32.
        project: Project each unit vector out of the states instead of adding it.
    """

    layer: int
    vectors: Tensor
    project: bool = False

    def part(self, start: int, stop: int) -> Conditions:
        """A slice of the conditions."""
        return self._replace(vectors=self.vectors[start:stop])

    def change(self, states: Tensor) -> Tensor:
        """Apply every condition: `(1 or conditions, sequence, hidden)` to `(conditions, sequence, hidden)`."""
        vectors = self.vectors.to(states.device, states.dtype)[:, None]  # (conditions, 1, hidden)
        if self.project:
            return states - (states * vectors).sum(dim=-1, keepdim=True) * vectors
        return states + vectors


class Scores(NamedTuple):
    """How the texts of a row fare under each condition.

    Attributes:
        log_probs: Mean log-probability of the scored tokens, `(conditions, texts)`, in nats.
        divergences: Mean KL divergence from the unsteered prediction of these tokens, `(conditions, texts)`, in nats.
    """

    log_probs: Tensor
    divergences: Tensor


class FanOut:
    """Scores rows of texts under conditions, in batches that fit into memory.

    Args:
        model: A checked model.

    Example:
        >>> runner = FanOut(model)
        >>> ids = tokenizer("The sea is blue").input_ids
        >>> [row] = runner.rows([[Text(ids, 2)]])
        >>> scores = runner.score(row, Conditions(16, torch.zeros(3, 576)), runner.predict(row))
        >>> scores.log_probs.shape, bool(scores.divergences.abs().max() < 1e-5)
        (torch.Size([3, 1]), True)
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, self._blocks = inner_model(model), find_blocks(model)
        known = describe_model(model)
        self._onednn = uses_onednn(known.receipt)
        self._shared = sharing_allowed(known)
        self._window = known.receipt.get("window")
        # With several devices, the indices would not be where the last states are.
        one_device = len(self._devices()) == 1
        self._chooses = one_device and "logits_to_keep" in inspect.signature(self._model.forward).parameters
        self._fans_out: bool | None = None  # measured at the first row

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the model."""
        return self._model.dtype

    def rows(self, groups: Sequence[Sequence[Text]]) -> list[Row]:
        """Lay texts out in rows; the texts of a group stay together if they can be packed.

        Args:
            groups: Texts by group, such as those with the same prompt.
        """
        longest = max((len(text.ids) for group in groups for text in group), default=0)
        if not self._shared or (self._window is not None and longest > self._window):
            texts = [text for group in groups for text in group]
            return [self._lay_out([number], [text]) for number, text in enumerate(texts)]
        longest_row = _ROW_BUDGETS * min(token_budget(self._model), _LARGEST_BUDGET)
        rows: list[Row] = []
        numbers: list[int] = []
        waiting: list[Text] = []
        count = 0
        for group in groups:
            together = [*waiting, *group]
            scored, tokens = sum(len(text.ids) - text.start for text in together), sum(len(t.ids) for t in together)
            if waiting and (scored > _ROW_TOKENS or tokens > longest_row):
                rows.append(self._lay_out(numbers, waiting))
                numbers, waiting = [], []
            numbers += range(count, count + len(group))
            waiting += group
            count += len(group)
        return [*rows, self._lay_out(numbers, waiting)] if waiting else rows

    def share_above(self, row: Row, layer: int) -> float:
        """Share of the arithmetic of a whole forward pass that remains above a layer."""
        blocks = sum(weight.numel() for weight in self._blocks.blocks.parameters())
        head = self._model.get_output_embeddings().weight.numel() * len(row.places) / row.batch.input_ids.numel()
        return float(1 - (layer + 1) / len(self._blocks.blocks) * blocks / (blocks + head))

    def predict(self, row: Row) -> Tensor:
        """Unsteered log-probabilities at the places that predict scored tokens, `(scored, vocabulary)`, float32."""
        return self._logits(row.batch, row.places)[0].float().log_softmax(dim=-1)

    def score(self, row: Row, conditions: Conditions, unsteered: Tensor) -> Scores:
        """Score the texts of a row under every condition.

        Args:
            row: The row.
            conditions: What to do at which layer.
            unsteered: From `predict`.
        """
        if self._fans_out is None:
            self._fans_out = self._may_fan_out(row, conditions)
        parts: list[Scores] = []
        done, total, at_once = 0, len(conditions.vectors), self._conditions_at_once(row, unsteered)
        while done < total:
            part = None
            try:
                part = self._score(row, conditions.part(done, done + at_once), unsteered)
            except RuntimeError as error:
                if not out_of_memory(error) or at_once == 1:
                    raise
            if part is None:  # outside of `except`, where the traceback would keep tensors alive
                at_once = max(1, at_once // 2)
                free_failed_pass(input_device(self._model))
                continue
            parts.append(part)
            done += at_once
        return Scores(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def _score(self, row: Row, conditions: Conditions, unsteered: Tensor) -> Scores:
        logits = self._steered(row, conditions, fan_out=bool(self._fans_out))
        targets, likely = row.targets.to(unsteered.device)[:, None], unsteered.exp()
        log_probs, divergences = [], []
        for each in logits:  # (scored, vocabulary), one condition at a time to bound memory
            predicted = each.float().log_softmax(dim=-1).to(unsteered.device)
            log_probs.append(row.mean_of(predicted.gather(1, targets)[:, 0]))
            divergences.append(row.mean_of((likely * (unsteered - predicted)).sum(dim=-1)))
        return Scores(torch.stack(log_probs), torch.stack(divergences))

    def _steered(self, row: Row, conditions: Conditions, *, fan_out: bool) -> Tensor:
        batch = row.batch if fan_out else _repeated(row.batch, len(conditions.vectors))
        with hooked(self._model, {conditions.layer: conditions.change}, {conditions.layer: "is steered"}):
            return self._logits(batch, row.places)

    def _logits(self, batch: TokenBatch, places: Tensor) -> Tensor:
        """Logits at some places of every row of a batch, `(rows, places, vocabulary)`."""
        where = places.to(batch.input_ids.device) if self._chooses else None
        with evaluating(self._model, self._blocks.decoder), onednn_products(wanted=self._onednn):
            logits: Tensor = run_decoder(self._model, batch, logits_at=where).logits
        return logits if self._chooses else logits[:, places.to(logits.device)]

    def _may_fan_out(self, row: Row, conditions: Conditions) -> bool:
        """Whether the blocks above the layer accept a larger batch than those below, with the same predictions."""
        two = conditions.part(0, 2)
        expected = self._steered(row, two, fan_out=False)
        try:
            found = self._steered(row, two, fan_out=True)
        except Exception as error:  # a family may reject the larger batch with any exception
            log.info("blocks below the steered layer run once per condition: %s", first_line(error))
            return False
        tolerance = describe_model(self._model).receipt["tolerance"]
        return found.shape == expected.shape and bool((found - expected).norm() <= tolerance * expected.norm())

    def _conditions_at_once(self, row: Row, unsteered: Tensor) -> int:
        tokens = row.batch.input_ids.numel() * describe_model(self._model).hidden_size * _STATES
        places = len(row.places) if self._chooses else row.batch.input_ids.numel()
        one = self._model.dtype.itemsize * (tokens + places * unsteered.shape[1])
        free = min(free_bytes(device) for device in self._devices())
        return max(1, (free // _SHARE - _COPIES * 4 * unsteered.numel()) // one)

    def _devices(self) -> set[torch.device]:
        """Devices that the model's weights are on."""
        return {weight.device for weight in self._model.parameters() if weight.device.type != "meta"} or {
            input_device(self._model)
        }

    def _lay_out(self, numbers: list[int], texts: Sequence[Text]) -> Row:
        device = input_device(self._model)
        if self._shared and len(texts) > 1:
            packed = packer(self._model, self._blocks)([text.ids for text in texts])
            batch, places = packed.batch, packed.places
        else:
            batch, places = TokenBatch.of([texts[0].ids], device), [np.arange(len(texts[0].ids))]
        scored = [(owner, place) for owner, text in enumerate(texts) for place in range(text.start, len(text.ids))]
        return Row(
            texts=numbers,
            batch=batch,
            places=torch.tensor([int(places[owner][place - 1]) for owner, place in scored]),
            targets=torch.tensor([texts[owner].ids[place] for owner, place in scored]),
            owners=torch.tensor([owner for owner, _ in scored]),
        )


def _repeated(batch: TokenBatch, count: int) -> TokenBatch:
    """The same row several times, without copying it."""
    mask = batch.attention_mask
    return replace(
        batch, input_ids=batch.input_ids.expand(count, -1), attention_mask=mask.expand(count, *mask.shape[1:])
    )
