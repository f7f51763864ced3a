"""The work of comparing captures by two and two. Imports torch in the job's thread, not before."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from engine.records.files import CaptureRecord
from engine.records.results import Comparison
from tui.jobs import Job


def compare_all(records: Sequence[CaptureRecord], store: Path, job: Job) -> dict[tuple[int, int], Comparison]:
    """Every two of the captures, by their places.

    Raises:
        LayerscopeError: Two of them cannot be compared.
    """
    from engine.records.captures import ContrastData
    from engine.stats.comparison import compare_captures
    from engine.store.read import load_contrast

    loaded: dict[str, ContrastData] = {}

    def load(record: CaptureRecord) -> ContrastData:
        if record["name"] not in loaded:
            loaded[record["name"]] = load_contrast(record["name"], store=store)
        return loaded[record["name"]]

    places = list(combinations(range(len(records)), 2))
    compared = {}
    for done, (one, other) in enumerate(places):
        job.progress(done, len(places))
        compared[one, other] = compare_captures(records[one], records[other], load)
    return compared
