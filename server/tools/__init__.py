"""The tools, one file for each kind of thing they are about, in the order that clients see them."""

from server.tools import analysis, captures, concepts, jobs, models, pictures
from server.tools.spec import ToolSpec

TOOLS: tuple[ToolSpec, ...] = (
    *models.TOOLS,
    *concepts.TOOLS,
    *captures.TOOLS,
    *analysis.TOOLS,
    *pictures.TOOLS,
    *jobs.TOOLS,
)
