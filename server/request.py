"""What a client asks to be captured, once it has been found sensible. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.store.sources import Source


@dataclass(frozen=True)
class CaptureRequest:
    """What a client asks to be captured.

    Attributes:
        source: The prompts.
        called: What they are called, in the name of a capture that was given none.
        model: What to run them through.
        layers: As the tool takes them.
        positions: As the tool takes them.
        site: As the tool takes it.
        max_samples: Most pairs of a concept.
        name: What to save under; None for the usual name.
        replace: Whether a capture of that name may be replaced.
        dry_run: Whether only the estimate is wanted.
    """

    source: Source
    called: str
    model: str
    layers: str
    positions: str
    site: str
    max_samples: int | None
    name: str | None
    replace: bool
    dry_run: bool
