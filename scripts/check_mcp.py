"""Check the MCP server with the protocol's own tools from the npm registry.

The tools are the conformance suite, the inspector and the bundle checker.

Usage: .venv/bin/python scripts/check_mcp.py     # or: make check-mcp

Needs npm. If the packages cannot be fetched, it says so and checks nothing.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path("build/mcp-checkers")
MANIFEST = Path("packaging/manifest.json")
# The conformance suite needs a newer Node than many machines have, so one is installed with it.
PACKAGES = (
    "node@22",
    "@modelcontextprotocol/conformance@0.2.0-alpha.12",
    "@modelcontextprotocol/inspector@2.12.0",
    "@anthropic-ai/mcpb@2.1.2",
)
# Scenarios that apply to any server. The others need tools named test_*.
SCENARIOS = {
    "2025-11-25": (
        *("server-initialize", "server-session-lifecycle", "ping", "completion-complete", "tools-list"),
        *("resources-list", "prompts-list", "dns-rebinding-protection", "server-sse-multiple-streams"),
    ),
    "2026-07-28": (
        *("completion-complete", "tools-list", "resources-list", "prompts-list", "sep-2164-resource-not-found"),
        *("dns-rebinding-protection", "caching", "http-header-validation", "server-sse-multiple-streams"),
        "input-required-result-unsupported-methods",
    ),
}


def main() -> int:
    """Run every check and return the number of failures."""
    if not fetched():
        print("the checkers could not be fetched: nothing was checked")
        return 0
    failed = int(not passes("MCPB manifest", ["mcpb", "validate", str(MANIFEST)]))
    with served() as url:
        for version, scenarios in SCENARIOS.items():
            for scenario in scenarios:
                command = ["conformance", "server", "--url", url, "--scenario", scenario, "--spec-version", version]
                failed += not passes(f"{version} {scenario}", command)
        for era in ("legacy", "modern"):
            command = ["mcp-inspector", "--cli", url, "--transport", "http", "--protocol-era", era]
            failed += not passes(f"inspector, {era}", [*command, "--method", "tools/list", "--strict"])
    print(f"{failed} failed")
    return failed


def fetched() -> bool:
    """Install the checkers, if npm and its registry are available."""
    npm = shutil.which("npm")
    if npm is None:
        return False
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "package.json").write_text("{}")
    try:
        installed = subprocess.run([npm, "install", "--silent", *PACKAGES], cwd=FOLDER, check=False, timeout=300)
    except subprocess.TimeoutExpired:
        return False
    return installed.returncode == 0


@contextmanager
def served() -> Iterator[str]:
    """Serve an empty store and yield the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as store:
        command = [sys.executable, "-m", "engine", "serve", "--store", store, "--http", f"127.0.0.1:{port}"]
        process = subprocess.Popen([*command, "--log-level", "WARNING"])
        try:
            wait_for(port)
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            process.terminate()
            process.wait(timeout=20)


def wait_for(port: int) -> None:
    """Wait until a server listens on the port."""
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError("the server did not listen within 30 seconds")


def passes(name: str, command: list[str]) -> bool:
    """Run one check, and retry once: its time limits are tight on a busy machine."""
    return _passes(name, command) or _passes(f"{name}, once more", command)


def _passes(name: str, command: list[str]) -> bool:
    """Run one check and print the outcome, with its output if it failed."""
    programs = (FOLDER / "node_modules" / ".bin").resolve()
    program = (programs / command[0]).resolve()
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    try:
        result = subprocess.run(
            [str(programs / "node"), str(program), *command[1:]],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except subprocess.TimeoutExpired:
        print(f"FAILED {name}: did not end within 120 s", flush=True)
        return False
    print(f"{'ok' if result.returncode == 0 else 'FAILED':6} {name}", flush=True)
    if result.returncode != 0:
        print(result.stdout[-3000:], result.stderr[-3000:], sep="\n")
    return result.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
