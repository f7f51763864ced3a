"""The tools, one file for each kind of thing they are about, in the order that clients see them."""

from server.tools import (
    captures,
    capturing,
    comparison,
    concepts,
    directions,
    jobs,
    layers,
    models,
    pictures,
    ranking,
)
from server.tools.spec import ToolSpec

TOOLS: tuple[ToolSpec, ...] = (
    *models.TOOLS,
    *concepts.TOOLS,
    *capturing.TOOLS,
    *captures.TOOLS,
    *ranking.TOOLS,
    *layers.TOOLS,
    *comparison.TOOLS,
    *directions.TOOLS,
    *pictures.TOOLS,
    *jobs.TOOLS,
)
