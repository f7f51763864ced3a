"""Importing the engine loads no torch, and its public names resolve."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import engine

HEAVY = {"torch", "transformers", "matplotlib"}
HOW_TO = {
    *("load_model_and_tokenizer", "capture_activations", "capture_contrastive_activations", "capture_from_concept"),
    *("compute_activation_stats", "compute_contrastive_diff", "save_activations", "load_activations"),
}


@pytest.mark.parametrize(
    "code",
    [
        "import engine",
        "import engine; engine.list_models(); engine.list_concepts(); engine.LayerscopeError",
        "import engine.cli.main",
        "import engine.store.catalog, engine.store.record, engine.stats.scores",
        "import engine.plots.words, engine.plots.layers_chart, engine.plots.layers_text, engine.plots.layers_chart",
    ],
)
def test_imports_load_nothing_heavy(code: str) -> None:
    """In a fresh process, because this one has already loaded torch."""
    program = f"{code}\nimport sys; print(sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_how_to_and_ranking_functions_are_public() -> None:
    assert HOW_TO | {"compute_separation", "rank_layers", "find_confounds"} <= set(engine.__all__)


def test_type_checkers_see_the_same_names() -> None:
    """Type checkers cannot follow lazy imports; they read the imports under `TYPE_CHECKING`."""
    tree = ast.parse(Path(engine.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {
        alias.asname: (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(str(name) for name in imported) == engine.__all__
    for name, (module, original) in imported.items():
        assert (original, getattr(engine, str(name)).__module__) == (name, module)


def test_every_public_name_resolves() -> None:
    """Every name of `from engine import *` exists."""
    assert all(getattr(engine, name).__name__ == name for name in engine.__all__)
    assert dir(engine) == engine.__all__


def test_the_error_for_an_unknown_name_lists_the_public_names() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'capture'; public names: .*capture_activations"):
        engine.__getattr__("capture")
