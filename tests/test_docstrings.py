"""The examples in the docstrings of the engine run and print the shown output."""

import doctest
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import engine
from tests.conftest import Loaded

CONVERT = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


# Their examples capture whole concepts with the default model.
SLOW = {f"engine.stats.{name}" for name in ("comparison", "direction", "classes", "confounds", "methods", "ranking")}


def modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(engine.__path__, "engine."):
        if found.name != "engine.__main__":
            yield importlib.import_module(found.name)


@pytest.fixture(scope="module")
def names(smollm2: Loaded, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Names that the examples use: public ones, the default model and a capture."""
    data = engine.capture_from_concept(*smollm2, "honesty", max_samples=2, positions="last")
    store = tmp_path_factory.mktemp("examples")
    engine.save_activations(data, "smollm2_honesty", store=store / "activations")
    public = {name: getattr(engine, name) for name in engine.__all__}
    return public | {"model": smollm2.model, "tokenizer": smollm2.tokenizer, "data": data, "_folder": store}


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(module, id=module.__name__, marks=pytest.mark.slow if module.__name__ in SLOW else ())
        for module in modules()
    ],
)
def test_examples(module: ModuleType, names: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(str(names["_folder"])))
    report: list[str] = []
    for example in doctest.DocTestFinder(exclude_empty=True).find(module, extraglobs=names):
        runner = doctest.DocTestRunner(optionflags=CONVERT)
        failed = runner.run(example, out=report.append).failed
        assert not failed, "".join(report)


def test_every_public_function_has_an_example() -> None:
    functions = [getattr(engine, name) for name in engine.__all__]
    assert [f.__name__ for f in functions if ">>>" not in (f.__doc__ or "")] == []
