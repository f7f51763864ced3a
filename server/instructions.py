"""What a server says of itself to an agent that connects: how to use the tools that it offers."""

from collections.abc import Sequence

from server.tools import TOOLS
from server.tools.spec import ToolSpec

_WAY = ("list_concepts", "capture_contrast(concept=...)", "rank_layers(name=...)", "plot_capture(name=...)")
_TEXT = """layerscope finds where in a language model a concept lives.
The usual way: {way}.
A contrast is pairs of prompts that differ only in a concept. A capture is what one run saved: the hidden states of a
contrast or of a prompt, kept in a store under its name; names are what tools take and give.
A layer number counts decoder blocks from 0 and means the residual stream after that block.
Report intervals and ties, never the first layer alone, and pass on warnings: they name what could explain a result.
Long work answers with a job: wait_for_job(job=...). Large captures that were stopped go on with the same call."""


def instructions_for(offered: Sequence[ToolSpec]) -> str:
    """The instructions of a server that offers these tools; answers may name others, so those are named as well.

    Args:
        offered: Its tools.
    """
    names = [spec.name for spec in offered]
    way = [step for step in ("list_captures", *_WAY) if step.split("(")[0] in names]
    if len(names) == len(TOOLS):
        way = list(_WAY)
    missing = ", ".join(spec.name for spec in TOOLS if spec.name not in names)
    said = f"\nThis server does not offer {missing}: skip a next_step that names one of them." if missing else ""
    return _TEXT.format(way=" -> ".join(way) or "call the tools that there are") + said
