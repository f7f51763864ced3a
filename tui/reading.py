"""The work of reading a text along a direction. Imports torch in the job's thread, not before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import RequestError
from tui.jobs import Job
from tui.models import ModelKeeper

if TYPE_CHECKING:
    from engine.records.directions import TokenReading

METHODS = ("mean_diff", "pca", "logistic")


@dataclass(frozen=True)
class ReadingRequest:
    """What to read along what.

    Attributes:
        store: The folder.
        name: A capture of pairs.
        method: How its direction is found.
        layer: The layer to look at first; the leading one if None, or if it has no direction.
        text: What to read; empty for a prompt of the capture.
        prompt: Number of that, the positive and the negative one of each pair in turn.
    """

    store: Path
    name: str
    method: str
    layer: int | None
    text: str
    prompt: int


def read_along(request: ReadingRequest, models: ModelKeeper, job: Job) -> TokenReading:
    """Find the directions, load the model unless it is loaded, read the text.

    Raises:
        LayerscopeError: One of these cannot be done.
    """
    from engine.stats.direction import extract_directions
    from engine.stats.reading import read_text
    from engine.store.directions import leading_layer
    from engine.store.read import load_contrast

    job.checkpoint("finding the direction at each layer")
    contrast = load_contrast(request.name, store=request.store)
    found = extract_directions(contrast, request.method)
    provenance = next(iter(found.values()))["provenance"]
    if provenance is None:
        raise RequestError(
            f"the model that {request.name} comes from is unknown", next_step="capture it again with layerscope"
        )
    job.checkpoint(f"loading {provenance['alias']}")
    model, tokenizer, _ = models.get(models.name_of(provenance))
    job.checkpoint("running the text through the model")
    leading = leading_layer(request.store / request.name, found)
    first = request.layer if request.layer in found else leading
    captured = contrast["negative" if request.prompt % 2 else "positive"][request.prompt // 2]
    rendered = not request.text and provenance["chat_template"] is not None
    text = request.text or str(captured["prompt"])
    return read_text(model, tokenizer, found, text, leading=first, rendered=rendered)
