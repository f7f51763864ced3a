"""Run an agent's journey through the MCP server and print it for docs/mcp.md.

Usage: .venv/bin/python scripts/mcp_journey.py [STORE]     # default: a temporary folder
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import anyio
from mcp import Client
from mcp.types import TextContent

from server.app import build_server
from server.settings import ServerSettings, default_memory
from server.tools import offered_tools

JOURNEY: list[tuple[str, dict[str, Any]]] = [
    ("list_concepts", {}),
    ("capture_contrast", {"concept": "formality", "dry_run": True, "wait_s": 50}),
    ("capture_contrast", {"concept": "formality", "wait_s": 0}),
    ("wait_for_job", {"job": "JOB", "wait_s": 50}),
    ("rank_layers", {"name": "smollm2_formality", "top": 3}),
    ("describe_capture", {"name": "smollm2_formality"}),
    ("inspect_layer", {"name": "smollm2_formality", "layer": 21, "against": 14}),
    ("plot_capture", {"name": "smollm2_formality"}),
    ("read_text", {"name": "smollm2_formality", "text": "It would be a great honor to receive you.", "wait_s": 50}),
    ("rank_layers", {"name": "smollm2_formalty"}),
]
_SHOWN = 300


async def run(store: Path) -> None:
    """Make every call of the journey and print the answers."""
    settings = ServerSettings(store=store, memory_bytes=default_memory())
    async with Client(build_server(settings)) as client:
        job = ""
        for tool, arguments in JOURNEY:
            given = {key: job if value == "JOB" else value for key, value in arguments.items()}
            result = await client.call_tool(tool, given)
            while tool == "wait_for_job" and (result.structured_content or {}).get("status") == "running":
                result = await client.call_tool(tool, given)
            first = result.content[0]
            text = first.text if isinstance(first, TextContent) else ""
            job = (result.structured_content or {}).get("job", job)
            shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …"
            call = f"{tool}({', '.join(f'{key}={json.dumps(value)}' for key, value in given.items())})"
            pictures = sum(block.type == "image" for block in result.content)
            more = f" and {pictures} picture" if pictures else ""
            print(f"`{call}`: {len(text):,} characters{more}\n\n```\n{shown}\n```\n")


def main() -> None:
    """Print the tools and the journey."""
    settings = ServerSettings(store=Path("unused"))
    for spec in offered_tools(settings):
        print(f"| `{spec.name}` | {spec.description} |")
    print()
    with tempfile.TemporaryDirectory() as folder:
        anyio.run(run, Path(sys.argv[1]) if sys.argv[1:] else Path(folder))


if __name__ == "__main__":
    main()
