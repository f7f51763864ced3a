"""Background jobs that read texts along directions, steer with directions and compare them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import RequestError
from engine.jobs import Job
from engine.records.files import METHODS, CaptureRecord, not_found_warnings
from engine.records.results import Comparison
from engine.store.names import locate
from engine.store.ownership import find_own_record
from tui.models import ModelCache

if TYPE_CHECKING:
    from engine.records.captures import ContrastData, Provenance
    from engine.records.files import Direction, TokenReading
    from engine.records.steering import SteeredTexts
    from tui.models import Loaded

_NEW_TOKENS = 40


class DirectionCache:
    """Directions of a capture, each extracted from all of its pairs on first use.

    Args:
        store: The folder.
        name: A capture of pairs.
    """

    def __init__(self, store: Path, name: str) -> None:
        self.store, self.name = store, name
        self._extracted: dict[str, dict[int, Direction]] = {}

    @cached_property
    def contrast(self) -> ContrastData:
        """The captured pairs.

        Raises:
            LayerscopeError: The capture cannot be read.
        """
        from engine.store.read import load_contrast

        return load_contrast(self.name, store=self.store)

    @cached_property
    def leading(self) -> int | None:
        """The leading layer, if there is a ranking."""
        from engine.store.directions import leading_layer

        return leading_layer(self.store / self.name, self.contrast["layers"])

    @cached_property
    def warnings(self) -> list[str]:
        """Warns that the directions may be noise, if the contrast was not found."""
        record = find_own_record(locate(self.name, self.store))
        return not_found_warnings(record) if record else []

    def extract(self, method: str) -> dict[int, Direction]:
        """Return the direction of each layer; `auto` compares the methods at the leading layer.

        Raises:
            LayerscopeError: The capture cannot be read, or has no such direction.
        """
        from engine.stats.direction import extract_directions

        if method not in self._extracted:
            found = extract_directions(self.contrast, method, leading=self.leading)
            self._extracted[method] = self._extracted[next(iter(found.values()))["method"]] = found
        return self._extracted[method]


@dataclass(frozen=True)
class ReadingRequest:
    """A text to read and the direction to read it along.

    Attributes:
        directions: Directions of the capture.
        method: Extraction method.
        layer: The layer to select first; the leading one if None or without a direction.
        text: The text; empty for a prompt of the capture.
        prompt: Number of that prompt: even numbers are positive, odd ones negative, pair by pair.
    """

    directions: DirectionCache
    method: str
    layer: int | None
    text: str
    prompt: int


def read_along(request: ReadingRequest, models: ModelCache, job: Job) -> TokenReading:
    """Extract the directions, load the model and project every token, with caches.

    Raises:
        LayerscopeError: One of these steps failed.
    """
    from engine.stats.reading import read_text

    directions = request.directions
    extracted, provenance = _extract(directions, request.method, job)
    model, tokenizer, _ = _load(provenance, models, job)
    job.checkpoint("running the text")
    first = request.layer if request.layer in extracted else directions.leading
    captured = directions.contrast["negative" if request.prompt % 2 else "positive"][request.prompt // 2]
    rendered = not request.text and provenance["chat_template"] is not None
    text = request.text or str(captured["prompt"])
    reading = read_text(model, tokenizer, extracted, text, leading=first, rendered=rendered)
    reading["warnings"] = [*directions.warnings, *reading["warnings"]]
    return reading


@dataclass(frozen=True)
class SteeringRequest:
    """A prompt to answer with and without steering.

    Attributes:
        directions: Directions of the capture.
        layer: The layer to steer at.
        strength: How much of the direction to add.
        prompt: What the user says.
        earlier: An earlier result, whose baseline is used again.
    """

    directions: DirectionCache
    layer: int
    strength: float
    prompt: str
    earlier: SteeredTexts | None


def steer_along(request: SteeringRequest, models: ModelCache, job: Job) -> SteeredTexts:
    """Extract the directions, load the model and write the texts, with caches.

    Raises:
        LayerscopeError: One of these steps failed.
    """
    from engine.steering.texts import steer_text

    directions = request.directions
    extracted, provenance = _extract(directions, METHODS[0], job)
    model, tokenizer, _ = _load(provenance, models, job)
    texts = steer_text(
        model,
        tokenizer,
        extracted,
        request.prompt,
        layer=request.layer,
        strengths=[request.strength],
        data=directions.contrast,
        max_new_tokens=_NEW_TOKENS,
        earlier=request.earlier,
        steps=job.tell,
    )
    texts["warnings"] = [*directions.warnings, *texts["warnings"]]
    return texts


def _extract(directions: DirectionCache, method: str, job: Job) -> tuple[dict[int, Direction], Provenance]:
    job.checkpoint("extracting directions")
    extracted = directions.extract(method)
    provenance = next(iter(extracted.values()))["provenance"]
    if provenance is None:
        raise RequestError(f"the model of {directions.name} is unknown", next_step="capture it again with layerscope")
    return extracted, provenance


def _load(provenance: Provenance, models: ModelCache, job: Job) -> Loaded:
    job.checkpoint(f"loading {provenance['alias']}")
    return models.captured(provenance)


def compare_all(records: Sequence[CaptureRecord], store: Path, job: Job) -> dict[tuple[int, int], Comparison]:
    """Compare every two of the captures, keyed by their indices.

    Raises:
        LayerscopeError: Two captures cannot be compared.
    """
    from engine.stats.comparison import compare_captures
    from engine.store.read import load_contrast

    loaded: dict[str, ContrastData] = {}

    def load(record: CaptureRecord) -> ContrastData:
        if record["name"] not in loaded:
            loaded[record["name"]] = load_contrast(record["name"], store=store)
        return loaded[record["name"]]

    pairs = list(combinations(range(len(records)), 2))
    compared = {}
    for done, (one, other) in enumerate(pairs):
        job.tell("computing the cosines between the directions", done, len(pairs))
        compared[one, other] = compare_captures(records[one], records[other], load)
    return compared
