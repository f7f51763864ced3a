"""The work of reading a text along a direction. Imports torch in the job's thread, not before."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import RequestError
from tui.jobs import Job
from tui.models import ModelKeeper

if TYPE_CHECKING:
    from engine.records.captures import ContrastData
    from engine.records.files import Direction, TokenReading

METHODS = ("mean_diff", "pca", "logistic")


class DirectionKeeper:
    """The directions of a capture, each found when it is first asked for: that goes through all of its pairs.

    Args:
        store: The folder.
        name: A capture of pairs.
    """

    def __init__(self, store: Path, name: str) -> None:
        self.store, self.name = store, name
        self._found: dict[str, dict[int, Direction]] = {}

    @cached_property
    def contrast(self) -> ContrastData:
        """The pairs.

        Raises:
            LayerscopeError: They cannot be read.
        """
        from engine.store.read import load_contrast

        return load_contrast(self.name, store=self.store)

    @cached_property
    def leading(self) -> int | None:
        """The layer that ranks first, if there is a ranking."""
        from engine.store.directions import leading_layer

        return leading_layer(self.store / self.name, self.contrast["layers"])

    def find(self, method: str) -> dict[int, Direction]:
        """Layer to direction.

        Raises:
            LayerscopeError: The capture cannot be read, or has no such direction.
        """
        from engine.stats.direction import extract_directions

        if method not in self._found:
            self._found[method] = extract_directions(self.contrast, method)
        return self._found[method]


@dataclass(frozen=True)
class ReadingRequest:
    """What to read along what.

    Attributes:
        directions: Of the capture.
        method: How its direction is found.
        layer: The layer to look at first; the leading one if None, or if it has no direction.
        text: What to read; empty for a prompt of the capture.
        prompt: Number of that, the positive and the negative one of each pair in turn.
    """

    directions: DirectionKeeper
    method: str
    layer: int | None
    text: str
    prompt: int


def read_along(request: ReadingRequest, models: ModelKeeper, job: Job) -> TokenReading:
    """Find the directions unless they are known, load the model unless it is loaded, read the text.

    Raises:
        LayerscopeError: One of these cannot be done.
    """
    from engine.stats.reading import read_text

    job.checkpoint("finding the direction at each layer")
    directions = request.directions
    found = directions.find(request.method)
    provenance = next(iter(found.values()))["provenance"]
    if provenance is None:
        raise RequestError(
            f"the model that {directions.name} comes from is unknown", next_step="capture it again with layerscope"
        )
    job.checkpoint(f"loading {provenance['alias']}")
    model, tokenizer, _ = models.get(models.name_of(provenance))
    job.checkpoint("running the text through the model")
    first = request.layer if request.layer in found else directions.leading
    captured = directions.contrast["negative" if request.prompt % 2 else "positive"][request.prompt // 2]
    rendered = not request.text and provenance["chat_template"] is not None
    text = request.text or str(captured["prompt"])
    return read_text(model, tokenizer, found, text, leading=first, rendered=rendered)
