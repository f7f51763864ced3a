"""The measurements of a causal ranking: texts scored with directions and controls added or projected out."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine.errors import RequestError
from engine.records.captures import ContrastData
from engine.records.models import ModelConfig
from engine.runtime import Steps
from engine.stats.causal import AblationResults, AdditionResults
from engine.stats.fitting import NoDifferenceError, fit_direction, mean_norm
from engine.stats.groups import last_states
from engine.steering.apply import not_finite
from engine.steering.causal_request import CausalRequest
from engine.steering.controls import draw_from_covariance
from engine.steering.fan_out import Conditions, FanOut, Row, Scores, Text
from engine.steering.trials import Design, Trial

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

_MOST_ABLATED = 16  # prompts: both personas' prompts are long
# Random directions. A direction and its opposite are projected out alike, so that each counts once.
_ABLATED_CONTROLS = 19


class KeptScores:
    """Scores that were measured before, found again by what they were measured on.

    Args:
        path: A file with one JSON object per line; None to keep nothing.
        model: The model now. Nothing is kept for one with added code, which may have changed unnoticed.
    """

    def __init__(self, path: Path | None, model: ModelConfig) -> None:
        self._path = None if model.added else path
        self._model = repr(
            (model.weights, model.configuration, model.receipt["dtype"], model.adapters, model.edited, model.autocast)
        )
        self._known: dict[str, Scores] = {}
        for line in self._lines():
            try:
                entry = json.loads(line)
                values = (torch.tensor(entry[name], dtype=torch.float64) for name in Scores._fields)
                self._known[entry["key"]] = Scores(*values)
            except (ValueError, KeyError, TypeError):  # an empty line, or one that a killed run did not finish
                continue

    def find(self, row: Row, conditions: Conditions, measure: Callable[[], Scores]) -> Scores:
        """Return the kept scores, or measure and keep them."""
        key = self._key(row, conditions)
        shape = (len(conditions.vectors), len(row.texts))
        if key not in self._known or any(values.shape != shape for values in self._known[key]):
            self._known[key] = measure()
            self._keep(key, self._known[key])
        return self._known[key]

    def _lines(self) -> list[str]:
        try:
            return self._path.read_text(encoding="utf-8", errors="replace").splitlines() if self._path else []
        except OSError:  # there is none yet, or none that can be read
            return []

    def _keep(self, key: str, scores: Scores) -> None:
        if self._path is None:
            return
        line = {"key": key, **{name: values.tolist() for name, values in scores._asdict().items()}}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"\n{json.dumps(line)}\n")  # after a line that a killed run did not finish
        except OSError as error:
            log.warning("finished parts cannot be kept in %s (%s): an interruption loses them", self._path, error)
            self._path = None

    def _key(self, row: Row, conditions: Conditions) -> str:
        parts = [row.batch.input_ids, row.batch.position_ids, row.places, row.targets, row.owners, conditions.vectors]
        digest = sha256(f"{self._model} {conditions.layer} {conditions.project}".encode())
        for part in parts:
            digest.update(part.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


class Experiment:
    """Adds or projects out the directions of a contrast and their controls, fold by fold.

    Args:
        runner: Scores texts with the model.
        data: The contrast.
        request: What to measure.
        design: Folds of its pairs.
        trials: What is tested.
        layers: Layers to steer at.
        kept: Scores of an earlier, interrupted run.
        steps: Called with the number of scored rows; an exception it raises stops the work.
    """

    def __init__(
        self,
        runner: FanOut,
        data: ContrastData,
        request: CausalRequest,
        design: Design,
        trials: Sequence[Trial],
        layers: Sequence[int],
        kept: KeptScores,
        steps: Steps,
    ) -> None:
        self._runner, self._request, self._design = runner, request, design
        self._kept, self._steps = kept, steps
        self._folds = [[trial for trial in trials if trial.fold == fold] for fold in range(design.folds)]
        self._fitted: dict[int, list[Tensor]] = {}  # layer to unit vectors of each fold, (1 + permutations, hidden)
        self._random: dict[int, Tensor] = {}  # layer to unit vectors, (random directions, hidden)
        self._norms: dict[int, float] = {}
        self.skipped: list[int] = []
        self.overflowed: list[int] = []
        for done, layer in enumerate(layers):
            steps("fitting directions", done, len(layers))
            try:
                self._fit(data, layer)
            except NoDifferenceError:
                self.skipped.append(layer)
        self.layers = [layer for layer in layers if layer in self._fitted]
        if not self.layers:
            raise RequestError(
                f"the classes do not differ at the layers {list(layers)}", next_step="steer at later layers"
            )
        self.margin = 0.0

    def _fit(self, data: ContrastData, layer: int) -> None:
        positive, negative = last_states(data["positive"], layer), last_states(data["negative"], layer)
        request, design = self._request, self._design
        swaps = design.swaps(request.permutations, request.seed) < 0  # (permutations, pairs)
        vectors = []
        for training in design.training:
            pairs = positive[training], negative[training]
            own = fit_direction(*pairs, request.method, layer).vector
            permuted = [
                fit_direction(*_swapped(*pairs, swap[training]), request.method, layer).vector for swap in swaps
            ]
            vectors.append(torch.stack([own, *permuted]).float())
        count = max(request.controls, _ABLATED_CONTROLS)
        self._random[layer] = draw_from_covariance(positive, negative, count, request.seed, layer).float()
        self._fitted[layer] = vectors
        self._norms[layer] = mean_norm(positive, negative)

    def additions(self) -> AdditionResults:
        """Add and subtract every direction at every layer, and score both answers after the neutral prompts."""
        groups = [[trial.neutral_texts() for trial in fold] for fold in self._folds]

        def conditions(fold: int, layer: int) -> Conditions:
            vectors = torch.cat([self._fitted[layer][fold], self._random[layer][: self._request.controls]])
            added = self._request.strength * self._norms[layer] * vectors
            return Conditions(layer, torch.cat([added, -added]))

        scores, unsteered = self._score(groups, self.layers, conditions, "steering")
        scores, self.layers = self._finite(scores, self.layers, steered=True)
        plus, minus = scores.log_probs.chunk(2, dim=1)  # (layers, directions, texts)
        margins = [side[..., 0::2] - side[..., 1::2] for side in (plus, minus)]
        self.margin = float((unsteered[0::2] - unsteered[1::2]).mean())
        lost = unsteered - (plus[:, 0] + minus[:, 0]) / 2  # (layers, texts)
        return AdditionResults(
            effects=(margins[0] - margins[1]) / 2,
            damage=torch.stack(scores.divergences.chunk(2, dim=1)).mean(dim=(0, 3)),
            perplexity=lost.mean(dim=1).exp(),
            groups=self._groups(self._folds),
            permuted=self._request.permutations,
        )

    def ablations(self, layers: Sequence[int]) -> AblationResults:
        """Project every direction out at some layers while the personas' own prompts run."""
        most = -(-_MOST_ABLATED // self._design.folds)
        folds = [fold[:most] for fold in self._folds]
        groups = [[trial.persona_texts() for trial in fold] for fold in folds]

        def conditions(fold: int, layer: int) -> Conditions:
            return Conditions(layer, torch.cat([self._fitted[layer][fold], self._random[layer]]), project=True)

        scores, unsteered = self._score(groups, layers, conditions, "ablating")
        scores, kept = self._finite(scores, layers, steered=False)
        difference = _persona_difference(unsteered)  # (prompts,)
        removed = difference - _persona_difference(scores.log_probs)
        return AblationResults(kept, removed, difference, self._groups(folds))

    def _finite(self, scores: Scores, layers: Sequence[int], *, steered: bool) -> tuple[Scores, list[int]]:
        """Leave out the layers where a state overflowed, which would spoil the tests of all others.

        Raises:
            RequestError: There is no other layer.
        """
        fine = torch.stack([values.isfinite().all(dim=2).all(dim=1) for values in scores]).all(dim=0)  # (layers,)
        self.overflowed += [layer for layer, one in zip(layers, fine.tolist(), strict=True) if not one]
        if not fine.any():
            how = f"when steered by {self._request.strength:g}" if steered else "without the direction"
            raise not_finite(how, self._runner.dtype, steered=steered)
        kept = [layer for layer, one in zip(layers, fine.tolist(), strict=True) if one]
        return Scores(*(values[fine] for values in scores)), kept

    def _score(
        self,
        groups: Sequence[Sequence[Sequence[Text]]],
        layers: Sequence[int],
        conditions: Callable[[int, int], Conditions],
        step: str,
    ) -> tuple[Scores, Tensor]:
        """Score the texts of each fold: `(layers, conditions, texts)` of all folds, and unsteered, `(texts,)`."""
        rows = [(fold, row) for fold, texts in enumerate(groups) for row in self._runner.rows(texts)]
        counts = [sum(map(len, texts)) for texts in groups]
        total, done = len(rows) * len(layers), 0
        made: list[list[Scores]] = []
        unsteered = torch.zeros(sum(counts), dtype=torch.float64)
        self._steps(step, done, total)
        for fold, row in rows:
            began = time.monotonic()
            expected = self._runner.predict(row)
            if not made:
                took = time.monotonic() - began
                self._say_how_long(took, [row for _, row in rows], layers, conditions(fold, layers[0]), step)
            place = torch.tensor(row.texts) + sum(counts[:fold])
            unsteered[place] = row.mean_of(expected.gather(1, row.targets.to(expected.device)[:, None])[:, 0])
            made.append([])
            for layer in layers:
                wanted = conditions(fold, layer)
                made[-1].append(self._kept.find(row, wanted, partial(self._runner.score, row, wanted, expected)))
                done += 1
                self._steps(step, done, total)
        order = torch.cat([torch.tensor(row.texts) + sum(counts[:fold]) for fold, row in rows]).argsort()
        values = [
            torch.stack([torch.cat([each[place][kind] for each in made], dim=1) for place in range(len(layers))])
            for kind in (0, 1)
        ]
        return Scores(*(value.index_select(2, order) for value in values)), unsteered

    def _say_how_long(
        self, seconds: float, rows: Sequence[Row], layers: Sequence[int], conditions: Conditions, step: str
    ) -> None:
        """Log an estimate from the duration of the first row's unsteered pass.

        Which layers are ablated, and how long that takes, is known only when steering is done.
        """
        tokens = sum(row.batch.input_ids.numel() for row in rows) / rows[0].batch.input_ids.numel()
        shares = sum(self._runner.share_above(rows[0], layer) for layer in layers)
        log.info(
            "%s at %d layer%s, in %d ways, %d texts: about %.0f s%s",
            step,
            len(layers),
            "" if len(layers) == 1 else "s",
            len(conditions.vectors),
            sum(len(row.texts) for row in rows),
            seconds * tokens * len(conditions.vectors) * shares,
            ", plus the time to ablate where it has an effect"
            if self._request.ablation and not conditions.project
            else "",
        )

    def _groups(self, folds: Sequence[Sequence[Trial]]) -> dict[str, Tensor]:
        return self._design.groups_of([trial for fold in folds for trial in fold])


def _swapped(positive: Tensor, negative: Tensor, swap: Tensor) -> tuple[Tensor, Tensor]:
    """The states of both classes with the labels of some pairs swapped."""
    return torch.where(swap[:, None], negative, positive), torch.where(swap[:, None], positive, negative)


def _persona_difference(log_probs: Tensor) -> Tensor:
    """Margin after the positive prompt minus that after the negative one: `(..., 4 prompts)` to `(..., prompts)`."""
    positive, negative = log_probs[..., 0::4] - log_probs[..., 1::4], log_probs[..., 2::4] - log_probs[..., 3::4]
    return positive - negative
