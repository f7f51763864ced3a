"""The program as a real child process, and the captures it makes, made once."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
from transformers import PreTrainedTokenizerFast

from tests.conftest import family_called
from tests.families import build

Result = subprocess.CompletedProcess[str]

# What would tell the program of a terminal or a display that the child process does not have.
_OF_THE_TERMINAL = {"DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND", "COLUMNS", "LINES", "FORCE_COLOR", "PYTHONIOENCODING"}


@dataclass(frozen=True)
class Program:
    """Runs `layerscope` in a folder, with a configuration of its own beside what it makes."""

    folder: Path

    def __call__(self, *arguments: str, **environment: str) -> Result:
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(**environment),
            capture_output=True,
            encoding="utf-8",
            check=False,
        )

    @contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Running, its stderr to be read while it works; killed at the end if it is still there."""
        with subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "engine", *arguments]

    def environment(self, **more: str) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if name not in _OF_THE_TERMINAL}
        own = {
            "HF_HUB_OFFLINE": "1",
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "OMP_NUM_THREADS": "1",  # torch's threads wait by spinning: on cores that are shared, one is quicker
        }
        return inherited | own | more

    def saved(self) -> list[str]:
        """All captures and what is left of them, wherever they lie below the folder."""
        return sorted(
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*")
            if path.suffix in {".pt", ".unfinished"} or (path.suffix == ".json" and path.with_suffix(".pt").exists())
        )


class Run(NamedTuple):
    """A capture that was made: what the program said, and the file without its suffix."""

    result: Result
    path: Path

    @property
    def tensors(self) -> Path:
        return self.path.with_suffix(".pt")

    @property
    def record(self) -> Path:
        return self.path.with_suffix(".json")


@pytest.fixture
def layerscope(tmp_path: Path) -> Program:
    """The program, run in an empty folder."""
    return Program(tmp_path)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A tiny llama as `save_pretrained` writes it; its name is "tiny"."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build(family_called("llama")).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def prompt_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The how-to's first command."""
    folder = tmp_path_factory.mktemp("prompt")
    result = Program(folder)("capture", "--model", "smollm2", "--prompt", "Tell me a story")
    return Run(result, folder / "activations" / "smollm2_prompt")


@pytest.fixture(scope="session")
def concept_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The how-to's second command, with fewer pairs."""
    folder = tmp_path_factory.mktemp("concept")
    result = Program(folder)("capture", "--model", "smollm2", "--concept", "honesty", "--max-samples", "2")
    return Run(result, folder / "activations" / "smollm2_honesty")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Run:
    """A capture of several prompts with another model, from a folder."""
    folder = tmp_path_factory.mktemp("tiny")
    result = Program(folder)("capture", "--model", str(tiny_folder), "--prompt", "w5 w6 w7", "--prompt", "w8")
    return Run(result, folder / "activations" / "tiny_prompt")


@pytest.fixture
def store(layerscope: Program, prompt_run: Run, concept_run: Run, tiny_run: Run) -> Path:
    """The default store in the folder that `layerscope` runs in, with three captures."""
    folder = layerscope.folder / "activations"
    for run in (prompt_run, concept_run, tiny_run):
        shutil.copytree(run.path.parent, folder, dirs_exist_ok=True)
    return folder


def assert_failed(result: Result, exit_code: int) -> None:
    """It ended with an error for people: nothing on stdout, no traceback, and this exit code."""
    assert (result.returncode, result.stdout) == (exit_code, "")
    assert "Traceback" not in result.stderr
    assert result.stderr.strip()


def widest(text: str) -> int:
    return max(len(line) for line in text.splitlines())
