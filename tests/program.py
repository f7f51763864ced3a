"""Run `layerscope` in tests: in this process through its entry point, or as a child process."""

import gc
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO, TypeGuard

import pytest

Result = subprocess.CompletedProcess[str]

# Loaded as sitecustomize at interpreter start: records and refuses every network request.
_NO_NETWORK = """
import pathlib, socket

def _refuse(*arguments, **options):
    pathlib.Path(__file__).with_name("asked").write_text(repr(arguments))
    raise OSError("there is no network")

socket.getaddrinfo = socket.create_connection = socket.socket.connect = socket.socket.connect_ex = _refuse
"""

# Runs several commands in one interpreter, one after another; stops at the first failure.
_ONE_AFTER_ANOTHER = """
import json, sys
from engine.cli.main import main

for arguments in json.loads(sys.argv[1]):
    sys.argv = ["layerscope", *arguments]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""

# Variables that suggest a terminal or display, which the program does not have here.
_NOBODY = 65534  # the id of the user without privileges
_OF_THE_TERMINAL = {"DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND", "COLUMNS", "LINES", "FORCE_COLOR", "PYTHONIOENCODING"}


@dataclass(frozen=True)
class Program:
    """Runs `layerscope` in a folder that also holds its configuration.

    Calling the object runs the entry point in this process, which saves the three seconds that a new interpreter
    needs to import torch. Methods start a real process to test signals, pipes, imports, limits and the network.
    """

    folder: Path

    def __call__(self, *arguments: str, **environment: str) -> Result:
        """Run in this process and restore its state."""
        encoding = environment.get("PYTHONIOENCODING", "utf-8")
        out, err = io.BytesIO(), io.BytesIO()
        with _restored(), pytest.MonkeyPatch.context() as patch:
            os.environ.clear()
            os.environ.update(self.environment(**environment))
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", ["layerscope", *arguments])
            patch.setattr(sys.modules["__main__"], "__package__", None, raising=False)  # else usage shows "python -m"
            patch.setattr(sys, "stdin", io.StringIO())
            patch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding, write_through=True))
            patch.setattr(sys, "stderr", io.TextIOWrapper(err, encoding, "backslashreplace", write_through=True))
            with _warnings_on_stderr(), _log_on_stderr():
                code = _exit_code()
            return Result(self.command(*arguments), code, out.getvalue().decode(), err.getvalue().decode())

    def child(self, *arguments: str, **environment: str) -> Result:
        """Run in a child process."""
        return self.python("-m", "engine", *arguments, **environment)

    def script(self, *arguments: str, **environment: str) -> Result:
        """Run the installed script."""
        return self._ended([str(Path(sys.executable).with_name("layerscope")), *arguments], environment)

    def python(self, *arguments: str, **environment: str) -> Result:
        """Run a fresh interpreter with arguments other than `-m engine`."""
        return self._ended([sys.executable, *arguments], environment)

    def _ended(self, command: list[str], environment: dict[str, str]) -> Result:
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment(**environment),
            capture_output=True,
            encoding="utf-8",
            check=False,
            timeout=600,
        )

    def without_network(self, *commands: tuple[str, ...]) -> tuple[Result, bool]:
        """Run commands in a child without offline mode; return whether one tried to use the network."""
        guard = self.folder / "guard"
        guard.mkdir(exist_ok=True)
        (guard / "sitecustomize.py").write_text(_NO_NETWORK)
        code = ("-c", _ONE_AFTER_ANOTHER, json.dumps(commands))
        result = self.python(*code, PYTHONPATH=str(guard), HF_HUB_OFFLINE="0")
        return result, (guard / "asked").exists()

    @contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Start a child process, for reading its stderr while it runs; kill it at the end."""
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
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name not in _OF_THE_TERMINAL and not name.startswith("LAYERSCOPE")
        }
        own = {
            "HF_HUB_OFFLINE": "1",
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "OMP_NUM_THREADS": "1",  # torch's threads spin while waiting: one is faster on shared cores
        }
        return inherited | own | more

    def saved(self) -> list[str]:
        """All capture files below the folder, complete or unfinished."""
        return sorted(
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*")
            if path.suffix in {".pt", ".unfinished"} or (path.suffix == ".json" and path.with_suffix(".pt").exists())
        )


class Run(NamedTuple):
    """A finished capture: the program's output, and the path without suffix."""

    result: Result
    path: Path

    @property
    def tensors(self) -> Path:
        return self.path.with_suffix(".pt")

    @property
    def record(self) -> Path:
        return self.path.with_suffix(".json")

    def copy_to(self, store: Path) -> None:
        """Copy the capture into another store."""
        store.mkdir(parents=True, exist_ok=True)
        for path in (self.tensors, self.record):
            shutil.copyfile(path, store / path.name)


def _exit_code() -> int:
    """Run the entry point; return the exit code and print errors as the interpreter would."""
    from engine.cli.main import main

    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


@contextmanager
def _restored() -> Iterator[None]:
    """Restore the process state that the program may change."""
    variables, hook, collecting = dict(os.environ), sys.excepthook, gc.isenabled()
    handlers = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(variables)
        sys.excepthook = hook
        for which, handler in handlers.items():
            signal.signal(which, handler)
        if collecting:
            gc.enable()


@contextmanager
def _warnings_on_stderr() -> Iterator[None]:
    """Show warnings as a fresh interpreter does; pytest would capture them."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        (file or sys.stderr).write(warnings.formatwarning(message, category, filename, lineno, line))

    with warnings.catch_warnings():
        warnings.resetwarnings()
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        warnings.showwarning = show
        yield


@contextmanager
def _log_on_stderr() -> Iterator[None]:
    """Log as a fresh interpreter does: without pytest's handlers, and to the current stderr."""
    root = logging.getLogger()
    handlers = root.handlers[:]
    root.handlers.clear()
    loggers = [logger for logger in root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    levels = [(logger, logger.level) for logger in (root, *map(logging.getLogger, ("engine", "server")))]
    root.setLevel(logging.WARNING)
    streams = {handler: handler.stream for logger in loggers for handler in logger.handlers if _is_plain(handler)}
    for handler in streams:
        handler.setStream(sys.stderr)
    try:
        yield
    finally:
        for handler, stream in streams.items():
            handler.setStream(stream)
        root.handlers[:] = handlers
        for logger, level in levels:
            logger.setLevel(level)


def _is_plain(handler: logging.Handler) -> "TypeGuard[logging.StreamHandler[TextIO]]":
    """Whether the handler writes to a fixed stream: the stderr of the time it was created."""
    return type(handler) is logging.StreamHandler


@contextmanager
def unprivileged(folder: Path) -> Iterator[None]:
    """Be a user to whom permissions apply, as they do not to root, who may enter the folder of a test."""
    user, folders = os.geteuid(), [folder, *(parent for parent in folder.parents if parent.stat().st_mode & 0o77 == 0)]
    modes = [one.stat().st_mode for one in folders]
    for one in folders:
        one.chmod(0o755)
    if user == 0:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)
        for one, mode in zip(folders, modes, strict=True):
            one.chmod(mode)
