"""Importing the engine, and asking the program for help, is quick and brings no torch."""

import subprocess
import sys

import pytest

import engine

HEAVY = {"torch", "transformers", "matplotlib"}


@pytest.mark.parametrize(
    "code",
    [
        "import engine",
        "import engine; engine.list_models(); engine.list_concepts(); engine.LayerscopeError",
        "import engine.cli.main",
        "import engine.store.catalog, engine.store.record, engine.plots.text",
    ],
)
def test_imports_bring_nothing_heavy(code: str) -> None:
    """A fresh process, because this one has torch already."""
    program = f"{code}\nimport sys; print(sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_resolves() -> None:
    """What `from engine import *` promises is there."""
    assert all(getattr(engine, name).__name__ == name for name in engine.__all__)
    assert dir(engine) == engine.__all__


def test_an_unknown_name_is_named() -> None:
    """The error leads on."""
    with pytest.raises(AttributeError, match=r"no attribute 'capture'; public names: .*capture_activations"):
        engine.__getattr__("capture")
