"""The program: its commands, and how it ends. Knows exit codes; the work is in the commands."""

import io
import sys
import traceback

import typer

from engine.cli import capture, compare, directions, rank, store, visualize
from engine.cli.command import installed_commands
from engine.cli.console import Narrator
from engine.cli.remedies import REMEDIES
from engine.errors import LayerscopeError

INTERRUPTED = 130

_HELP = """Find where in a language model a concept lives.

[bold]Examples[/bold]

  layerscope capture --concept honesty --positions last
  layerscope rank smollm2_honesty --top 5
  layerscope read smollm2_honesty --prompt "I swear that I did not take it"
  layerscope list
  layerscope visualize activations/smollm2_honesty.pt --output honesty.png

[bold]Exit codes[/bold]: 0 done, 1 a bug, 2 a wrong argument, 3 the model, 4 a prompt or
its states, 5 the store, 130 interrupted.
"""

app = typer.Typer(
    help=_HELP, no_args_is_help=True, rich_markup_mode="rich", add_completion=False, pretty_exceptions_enable=False
)
app.command("capture", help=capture.HELP, no_args_is_help=True)(capture.capture)
app.command("visualize", help=visualize.HELP, no_args_is_help=True)(visualize.visualize)
app.command("rank", help=rank.HELP, no_args_is_help=True)(rank.rank)
app.command("compare", help=compare.HELP, no_args_is_help=True)(compare.compare)
app.command("directions", help=directions.DIRECTIONS_HELP, no_args_is_help=True)(directions.directions)
app.command("read", help=directions.READ_HELP, no_args_is_help=True)(directions.read)
app.command("list", help=store.LIST_HELP)(store.list_store)
app.command("show", help=store.SHOW_HELP, no_args_is_help=True)(store.show)
for added in installed_commands():
    app.command(added.name, help=added.help)(added.function)


def main() -> None:
    """Run the command line; errors for people go to stderr as one paragraph, bugs keep their traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="replace"
            )  # where there are no bars, as in some pipes, a ? is better than nothing
    narrator = Narrator(quiet=False)
    try:
        app()
    except SystemExit as end:  # typer shows wrong usage itself, and ends so in any case
        if end.code == INTERRUPTED:
            narrator.say("interrupted; what was saved before is untouched")
        raise
    except LayerscopeError as error:
        narrator.say(f"error: {error.said(REMEDIES)}")
        sys.exit(error.exit_code)
    except Exception:
        traceback.print_exc()
        narrator.say("this is a bug in layerscope: please report it with the lines above")
        sys.exit(1)
