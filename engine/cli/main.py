"""The program: its commands, and how it ends. Knows exit codes; the work is in the commands."""

import io
import signal
import sys
import traceback
from importlib import import_module
from typing import Annotated

import typer

from engine.cli.console import Narrator, installed_commands, installed_names, standard_output
from engine.errors import LayerscopeError, RequestError
from engine.runtime import find_processes
from engine.version import VERSION

INTERRUPTED = 130
TERMINATED = 143

_HELP = """Find where in a language model a concept lives.

[bold]Examples[/bold]

  layerscope capture --concept honesty
  layerscope rank smollm2_honesty --top 5
  layerscope read smollm2_honesty --prompt "I swear that I did not take it"
  layerscope list
  layerscope visualize activations/smollm2_honesty.pt --output honesty.png

[bold]Exit codes[/bold]: 0 done, 1 a bug, 2 a wrong argument, 3 the model, 4 a prompt or
its states, 5 the store, 6 standard output, 130 interrupted, 141 the reader has gone.
"""

# Where each command is; a module is imported when one of its commands is called, or all are to be listed.
_MODULES = {
    "capture": "engine.cli.capture",
    "visualize": "engine.cli.visualize",
    "rank": "engine.cli.rank",
    "compare": "engine.cli.compare",
    "directions": "engine.cli.directions",
    "read": "engine.cli.directions",
    "list": "engine.cli.store",
    "show": "engine.cli.store",
}


def _show_version(requested: bool) -> None:
    if requested:
        print(f"layerscope {VERSION}")
        raise typer.Exit


def build_app(called: str = "") -> typer.Typer:
    """The program, with all its commands, or with the one that is called alone.

    Args:
        called: What was typed first; anything but the name of a command stands for all.
    """
    app = typer.Typer(
        help=_HELP, no_args_is_help=True, rich_markup_mode="rich", add_completion=False, pretty_exceptions_enable=False
    )
    app.callback(help=_HELP)(_program)
    known = called in {*_MODULES, *installed_names()}
    for name, module in _MODULES.items():
        if name == called or not known:
            command = import_module(module).COMMANDS[name]
            app.command(name, help=command.help, no_args_is_help=command.needs_arguments)(command.function)
    for added in installed_commands(called if known else ""):
        app.command(added.name, help=added.help, no_args_is_help=added.needs_arguments)(added.function)
    return app


def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options of the program itself; typer needs this to keep a single command a command."""


def main() -> None:
    """Run the command line; errors for people go to stderr as one paragraph, bugs keep their traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="replace"
            )  # where there are no bars, as in some pipes, a ? is better than nothing
    narrator, processes = Narrator(quiet=False), find_processes()
    who = f"{processes.said}: " if processes.said else ""
    if processes.count > 1:  # the launcher ends all when one has ended; alone, what the system does is right
        signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(TERMINATED))
    try:
        with standard_output():
            _run(sys.argv[1:])
    except SystemExit as end:  # typer shows wrong usage itself, and ends so in any case
        if end.code == INTERRUPTED:
            narrator.say(f"{who}interrupted; what was saved before is untouched")
        elif end.code == TERMINATED:
            narrator.say(
                f"{who}ended by the launcher, as it does when another process has ended; what is saved stays, and the"
                " same command goes on from there"
            )
        raise
    except LayerscopeError as error:
        narrator.say(f"{who}error: {error.said('command_line')}")
        sys.exit(error.exit_code)
    except Exception:
        traceback.print_exc()
        narrator.say("this is a bug in layerscope: please report it with the lines above")
        sys.exit(1)


def _run(arguments: list[str]) -> None:
    _require_utf8(arguments)
    try:
        build_app(arguments[0] if arguments else "")()
    finally:
        sys.stdout.flush()  # while there is still someone to hear that it cannot be written


def _require_utf8(arguments: list[str]) -> None:
    """Refuse what is no text: Python hands over the bytes as halves of characters, which nothing can save or print."""
    for number, argument in enumerate(arguments, start=1):
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"argument {number} is not UTF-8: {argument!a}",
                expected="text, and names of files, in UTF-8",
                next_step="convert the text, or rename the file",
            ) from error
