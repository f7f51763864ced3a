"""`layerscope tui`: open the app, serve it to a browser, or print to a pipe."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from engine.cli.console import Command, Narrator, print_data
from engine.cli.load_options import DeviceMap, Dtype, MaxMemory, read_load_options
from engine.cli.store import Store, capture_path, find_record, is_path
from engine.errors import RequestError, StoreError
from engine.inputs import user_path
from engine.models.placement import AUTO
from engine.store.names import DEFAULT_STORE, PLAN, capture_command, is_present, locate

_GRACE_S = 2.0  # for a cancelled job to reach its next report

HELP = """Browse captures in the terminal: rankings of layers, with uncertainty and reasons. Press ? for the keys.

[bold]Examples[/bold]

  layerscope tui
  layerscope tui runs --filter "concept:honesty pairs:>=30"
  layerscope tui activations/smollm2_honesty.pt --layer 17
  layerscope tui mine --store runs
  layerscope tui --serve
  layerscope tui | head
"""


def tui(
    what: Annotated[
        str | None, typer.Argument(metavar="[STORE|CAPTURE]", help="Folder of captures, or one capture.")
    ] = None,
    store: Store = DEFAULT_STORE,
    layer: Annotated[int | None, typer.Option("--layer", "-l", help="Layer to select first.")] = None,
    filter_text: Annotated[
        str, typer.Option("--filter", help="Initial filter: words, or column:value such as pairs:>=30.")
    ] = "",
    dtype: Dtype = AUTO,
    device_map: DeviceMap = None,
    max_memory: MaxMemory = None,
    theme: Annotated[
        str | None, typer.Option(help="Theme: layerscope-dark, layerscope-light or any Textual theme.")
    ] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Serve the app to a browser on this machine.")] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port for --serve.")] = 8000,
) -> None:
    """Browse captures in the terminal."""
    from engine.store.summaries import parse_filter

    parse_filter(filter_text)
    options = read_load_options(dtype, device_map, max_memory)
    store, capture = _store_and_capture(what, user_path(store))
    if serve:
        from tui.browser import serve_in_browser

        serve_in_browser([argument for argument in sys.argv[1:] if argument != "--serve"], port)
        return
    if not sys.stdout.isatty() and not _is_served():
        _print(store, capture, filter_text)
        return
    gc.disable()  # imports leave nothing to collect; `LayerscopeApp` enables it once the first screen is shown
    from tui.app import LayerscopeApp, describe_left

    app = LayerscopeApp(store, capture=capture, layer=layer, filter_text=filter_text, load_options=options)
    if theme is not None:
        if theme not in app.available_themes:
            raise RequestError(f"there is no theme {theme!r}", expected=", ".join(sorted(app.available_themes)))
        app.theme = theme
    app.run()
    ended = app.jobs.join(_GRACE_S)
    for job in app.left:
        Narrator(quiet=False).say(describe_left(job))
    if not ended:  # loading a large model, say; no job reports for minutes
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # a killed save leaves nothing half-written


def _is_served() -> bool:
    """Whether a browser shows this process: textual-serve sets the driver that Textual loads."""
    return "TEXTUAL_DRIVER" in os.environ


def _store_and_capture(what: str | None, store: Path) -> tuple[Path, str | None]:
    """Return the store and the capture to open.

    Args:
        what: The argument. A folder is a store unless it holds shards; anything else names a capture. A plain name is
            first looked up in the store, if the user gave one.
        store: The store folder for plain names.
    """
    if what is None:
        return store, None
    path = user_path(what)
    is_folder = os.path.isdir(path)  # noqa: PTH112 - `Path.is_dir` raises an error if its parent may not be opened
    if not is_present(path / PLAN) and (is_folder or what.endswith("/")):
        if store == DEFAULT_STORE:
            return path, None
        if is_path(what) or not locate(what, store).exist:
            raise RequestError(f"{what!r} and --store both name a folder of captures", next_step="omit one of them")
    paths = locate(capture_path(what, store))
    if not paths.exist:
        raise StoreError(
            f"there is no folder {what!r}, and no capture of that name in {str(paths.store)!r}",
            expected=f"a folder of captures, the name of a capture in {str(store)!r}, or the path of one",
            next_step="layerscope tui FOLDER opens another store",
        )
    find_record(what, store)
    return paths.store, paths.name


def _print(store: Path, capture: str | None, filter_text: str) -> None:
    """Print the list or the ranking as plain text, for a pipe."""
    if capture is not None:
        from engine.plots.layers_chart import layers_chart
        from engine.plots.layers_text import layers_as_text

        print_data(layers_as_text(layers_chart(find_record(capture, store))))
        return
    from engine.plots.captures_text import captures_as_text
    from engine.store.summaries import parse_filter, sort_summaries, stamp_store, summarise_capture

    matching = parse_filter(filter_text)
    summaries = [summarise_capture(stamp.name, store) for stamp in stamp_store(store)]
    shown = sort_summaries([summary for summary in summaries if matching.accepts(summary)], "saved", descending=True)
    print_data(captures_as_text(shown))
    if not summaries:
        Narrator(quiet=False).say(f"no captures yet; create one: {capture_command(store)}")


COMMAND = Command("tui", tui, HELP)
