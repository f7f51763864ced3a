"""Entry point of the command line; turns errors into exit codes."""

import io
import signal
import sys
import traceback
from importlib import import_module
from typing import Annotated

import typer

from engine.cli.console import (
    INTERRUPTED,
    Command,
    CommandGroup,
    Interrupted,
    Narrator,
    escape_stray_logs,
    installed_commands,
    installed_names,
    standard_error,
    standard_output,
)
from engine.errors import LayerscopeError, RequestError
from engine.runtime import find_processes
from engine.version import VERSION

TERMINATED = 143

_HELP = """Find where in a language model a concept lives.

[bold]Examples[/bold]

  layerscope capture --concept honesty
  layerscope rank smollm2_honesty --top 5
  layerscope read smollm2_honesty --prompt "I swear that I did not take it"
  layerscope list
  layerscope visualize activations/smollm2_honesty.pt --output honesty.png

[bold]Exit codes[/bold]: 0 success, 1 bug, 2 invalid argument, 3 model error, 4 prompt or
state error, 5 store error, 6 output error, 130 interrupted, 141 broken pipe,
143 terminated.
"""

# Module of each command. A module is imported only to run one of its commands, or to list all of them.
_MODULES = {
    "capture": "engine.cli.capture",
    "visualize": "engine.cli.visualize",
    "rank": "engine.cli.rank",
    "compare": "engine.cli.compare",
    "specificity": "engine.cli.specificity",
    "directions": "engine.cli.directions",
    "read": "engine.cli.directions",
    "steer": "engine.cli.steer",
    "calibrate": "engine.cli.calibrate",
    "vectors": "engine.cli.vectors",
    "concepts": "engine.cli.concepts",
    "list": "engine.cli.store",
    "show": "engine.cli.store",
    "verify": "engine.cli.manage",
    "rename": "engine.cli.manage",
    "delete": "engine.cli.manage",
}


def _show_version(requested: bool) -> None:
    if requested:
        print(f"layerscope {VERSION}")
        raise typer.Exit


def build_app(called: str = "") -> typer.Typer:
    """Build the program with all commands, or with only the called one.

    Args:
        called: The first argument; anything but the name of a command builds all.
    """
    app = typer.Typer(
        help=_HELP, no_args_is_help=True, rich_markup_mode="rich", add_completion=False, pretty_exceptions_enable=False
    )
    app.callback(help=_HELP)(_program)
    known = called in {*_MODULES, *installed_names()}
    for name, module in _MODULES.items():
        if name == called or not known:
            _add(app, import_module(module).COMMANDS[name])
    for added in installed_commands(called if known else ""):
        _add(app, added)
    return app


def _add(app: typer.Typer, command: Command | CommandGroup) -> None:
    if isinstance(command, Command):
        app.command(command.name, help=command.help, no_args_is_help=command.needs_arguments)(command.function)
        return
    group = typer.Typer(help=command.help, rich_markup_mode="rich", pretty_exceptions_enable=False)
    group.callback(help=command.help, invoke_without_command=True)(command.function)
    for inner in command.commands:
        _add(group, inner)
    app.add_typer(group, name=command.name)


def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options of the program itself.

    Without this callback, typer would turn a single command into the program.
    """


def main() -> None:
    """Run the command line.

    User errors are printed as one paragraph, bugs with their traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # print ? for characters that the encoding lacks
    with standard_error():
        _main()


def _main() -> None:
    escape_stray_logs()
    narrator, processes = Narrator(quiet=False), find_processes()
    who = f"{processes.said}: " if processes.said else ""
    if processes.count > 1:  # a launcher terminates all processes when one ends
        signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(TERMINATED))
    try:
        with standard_output():
            _run(sys.argv[1:])
    except SystemExit as end:  # typer always exits this way, after printing usage errors itself
        if end.code == INTERRUPTED:
            narrator.say(f"{who}{end.said if isinstance(end, Interrupted) else 'interrupted'}")
        elif end.code == TERMINATED:
            narrator.say(
                f"{who}terminated by the launcher, probably because another process ended; saved shards are kept,"
                " run the same command again to resume"
            )
        raise
    except KeyboardInterrupt:  # while a command is imported; typer turns later ones into an exit
        narrator.say(f"{who}interrupted")
        sys.exit(INTERRUPTED)
    except LayerscopeError as error:
        narrator.say(f"{who}error: {error.said('command_line')}")
        sys.exit(error.exit_code)
    except Exception:
        narrator.say(traceback.format_exc().rstrip())
        narrator.say("this is a bug in layerscope; please report it with the traceback above")
        sys.exit(1)


def _run(arguments: list[str]) -> None:
    _require_utf8(arguments)
    try:
        build_app(arguments[0] if arguments else "")()
    finally:
        sys.stdout.flush()  # here, so that a failure is still reported


def _require_utf8(arguments: list[str]) -> None:
    """Refuse arguments that are not UTF-8.

    Python passes them as lone surrogates, which cannot be saved or printed.
    """
    for number, argument in enumerate(arguments, start=1):
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"argument {number} is not UTF-8: {argument!a}",
                expected="text and file names in UTF-8",
                next_step="convert the text, or rename the file",
            ) from error
