"""Render chat templates within limits of time and memory.

A template is a program from whoever made the model. Jinja's sandbox keeps it from files, but not from endless loops
or huge texts, which nothing in the same process can stop. It runs in a process of its own, started once.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from engine.errors import CaptureError
from engine.remedies import Remedy

_WORKER = Path(__file__).with_name("template_worker.py")
_SECONDS = 10.0  # for a question, and the start of the process if need be
_SECONDS_EACH = 0.05  # more for each conversation
_LOOK_S = 0.05  # between looks at the memory
_MOST_BYTES = 2**29  # where the system does not enforce the worker's own limit


class TemplateError(Exception):
    """A template raised an error of its own, such as one about the order of roles."""


def fill_template(
    template: str,
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    tokens: Mapping[str, object],
    moment: str | None = None,
) -> list[str]:
    """Render conversations with a chat template, up to where the answer starts.

    Args:
        template: The Jinja source.
        conversations: The messages of each conversation, as the template gets them.
        tokens: The special tokens by name, which templates may write.
        moment: What a template that reads the clock is told, in ISO 8601. Defaults to the current time.

    Returns:
        One text per conversation.

    Raises:
        TemplateError: The template cannot be compiled, or fails.
        CaptureError: It takes too long, or too much memory.

    Example:
        >>> fill_template("{{ messages[0]['content'] }}{{ eos }}", [[{"role": "user", "content": "Hi"}]], {"eos": "."})
        ['Hi.']
    """
    seconds = _SECONDS + _SECONDS_EACH * len(conversations)
    question: dict[str, object] = {
        "template": template,
        "conversations": conversations,
        "tokens": tokens,
        "moment": moment,
        "seconds": 2 * seconds,  # by then the worker ends itself, should nobody be left to stop it
    }
    answer = json.loads(_desk.ask(json.dumps(question, default=str).encode() + b"\n", seconds))
    if "limit" in answer:
        raise _stopped(answer["limit"])
    if "error" in answer:
        raise TemplateError(answer["error"])
    return [str(text) for text in answer["texts"]]


@dataclass(frozen=True)
class _Worker:
    """The process, and what it wrote: a line per answer, then nothing once it has ended."""

    process: subprocess.Popen[bytes]
    answers: queue.SimpleQueue[bytes]

    @property
    def questions(self) -> IO[bytes]:
        assert self.process.stdin is not None  # noqa: S101 - it is a pipe
        return self.process.stdin

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):  # what was not sent yet
            self.questions.close()

    def wait(self, seconds: float) -> bytes:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                return self.answers.get(timeout=_LOOK_S)
            except queue.Empty:
                if self._memory() > _MOST_BYTES:
                    raise _stopped("needs more than 512 MB of memory") from None
        raise _stopped(f"takes more than {seconds:.0f} seconds")

    def _memory(self) -> int:
        import psutil

        try:
            return int(psutil.Process(self.process.pid).memory_info().rss)
        except psutil.Error:
            return 0  # it has just ended


class _Desk:
    """The one worker of this process, asked by one thread at a time."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.worker: _Worker | None = None

    def ask(self, question: bytes, seconds: float) -> bytes:
        with self.turn:
            worker = self.worker if self.worker and self.worker.process.poll() is None else _start()
            self.worker = None
            try:
                try:
                    worker.questions.write(question)
                    worker.questions.flush()
                except OSError:
                    answer = b""  # it has ended
                else:
                    answer = worker.wait(seconds)
                if not answer:
                    raise _stopped(f"ended the process that renders it (exit code {worker.process.wait()})")
            except BaseException:  # an interrupt as well: a late answer must not reach the next question
                worker.stop()
                raise
            self.worker = worker
        return answer

    def close(self) -> None:
        if self.worker:
            self.worker.stop()

    def forget(self) -> None:
        """Leave the worker to the process that this one was forked from."""
        self.__init__()  # type: ignore[misc]  # a fork may have copied a lock that nobody will release


def _start() -> _Worker:
    # The same packages as here, without the hooks of the environment: they would take longer than the rendering.
    known = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        process = subprocess.Popen(
            [sys.executable, "-S", "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=known,
        )
    except OSError as error:
        raise CaptureError(
            f"the process that renders chat templates cannot be started: {error}",
            next_step=Remedy.GIVE_RENDERED_PAIRS,
        ) from error
    worker = _Worker(process, queue.SimpleQueue())
    threading.Thread(target=_read, args=(worker,), name="chat template", daemon=True).start()
    return worker


def _read(worker: _Worker) -> None:
    with worker.process.stdout or sys.stdin.buffer as lines:
        for line in lines:
            worker.answers.put(line)
    worker.answers.put(b"")


def _stopped(reason: str) -> CaptureError:
    return CaptureError(
        f"the tokenizer's chat template was stopped: it {reason}",
        expected="a template that renders a conversation within milliseconds",
        next_step=Remedy.GIVE_RENDERED_PAIRS,
    )


_desk = _Desk()
atexit.register(_desk.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_desk.forget)
