"""`layerscope directions` and `layerscope read`: extract and apply directions."""

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from engine.cli.console import Command, Narrator, figure_file, print_data, print_json, print_lines
from engine.cli.load_options import (
    DeviceMap,
    MaxMemory,
    OtherDtype,
    OtherModel,
    load_captured_model,
    read_load_options,
)
from engine.cli.store import capture_path, is_path
from engine.errors import RequestError
from engine.models.placement import AUTO, LoadOptions
from engine.plots.tokens_text import compared_methods, tokens_as_text
from engine.records.files import AUTO_METHOD, METHODS, VECTOR_FORMATS, not_found_warnings
from engine.store.names import DEFAULT_STORE, DIRECTIONS, locate, output_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from engine.records.files import Direction

DIRECTIONS_HELP = """Extract the direction of a contrast at every layer and save it next to the capture.

With --format, write control vectors for other tools instead; a gguf is for llama.cpp and repeng. Layer N is the output
of block N, counted from 0.

[bold]Examples[/bold]

  layerscope directions smollm2_honesty
  layerscope directions smollm2_honesty --method lda --output honesty_lda
  layerscope directions smollm2_honesty --format gguf --output honesty.gguf
"""

READ_HELP = """Project a text onto the direction of a contrast, token by token.

0 is the mean of the negative class, 1 the mean of the positive class.

[bold]Examples[/bold]

  layerscope read smollm2_honesty --prompt "I swear that I did not take it"
  layerscope read smollm2_honesty -p "Did you do it?" --chat -o tokens.png
  layerscope read honesty_lda --prompt "I swear" --layer 17 --json
"""

Name = Annotated[str, typer.Argument(help="Name of a capture, or path of one of its files.")]
Store = Annotated[Path, typer.Option("--store", "-s", help="Folder of captures.")]


def directions(
    name: Name,
    method: Annotated[
        str | None,
        typer.Option(
            help="Method: mean_diff, pca, logistic, lda, or auto for the highest held-out AUROC (default: auto;"
            " mean_diff with --format)."
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="Name to save under (default: that of the capture); file with --format."),
    ] = None,
    file_format: Annotated[
        str | None, typer.Option("--format", help="Export control vectors instead: gguf, safetensors or npz.")
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(
            help="What strength 1 adds in the other tool: norm (of the states; default), gap (of the classes), raw."
        ),
    ] = None,
    store: Store = DEFAULT_STORE,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace existing directions of that name.")] = False,
) -> None:
    """Extract and save the direction of a contrast at every layer."""
    from engine.store.directions import extract_captured, save_directions

    narrator = Narrator(quiet=False)
    if file_format is not None:
        if output is None:
            raise RequestError(
                "--format needs a file", next_step=f"add --output {shlex.quote(f'{name}.{file_format}')}"
            )
        target = output_path(output, f"{capture_path(name, store).name}.{file_format}")
        _export(narrator, name, store, method, file_format, unit or "norm", target, force=force)
        return
    if unit is not None:
        raise RequestError("--unit is the unit of exported vectors", next_step="add --format, or omit --unit")
    kind = Path(output or "").suffix.lower().removeprefix(".")
    if output and kind in VECTOR_FORMATS and not output.endswith(DIRECTIONS):
        raise RequestError(f"{output} is the name of a file of control vectors", next_step=f"add --format {kind}")
    path = capture_path(name, store)
    found, leading = extract_captured(path, method or AUTO_METHOD)
    target = saved_path(output, path.name, store) if output else path
    saved = save_directions(found, target, leading=leading, capture=path, force=force)
    some = next(iter(found.values()))
    if "methods" in some:
        narrator.say(compared_methods(some["methods"]))
    narrator.say(f"saved {len(found)} directions ({some['method']}), layers {min(found)} to {max(found)}")
    _warn_of_capture(path)
    print_lines(f"{saved}\n")


def saved_path(given: str, default: str, store: Path) -> Path:
    """Path without suffix to save directions at: a plain name is one in the store, a folder gets the default name."""
    return capture_path(str(output_path(given, default)), store) if is_path(given) else capture_path(given, store)


def vectors_of(name: str, store: Path, method: str | None = None) -> "tuple[dict[int, Direction], int | None]":
    """Directions to steer with: those of a capture by one method, or saved ones that have no capture of their name.

    Args:
        name: A name in the store, or a path.
        store: The store folder for plain names.
        method: See `extract_directions`; None for saved directions, and for the mean difference of a capture.

    Returns:
        Layer to direction, and the top-ranked layer; None without a ranking.
    """
    from engine.store.directions import extract_captured, load_directions

    path = capture_path(name, store)
    if _are_saved(name, path, method):
        return load_directions(path)
    return extract_captured(path, method or METHODS[0])


def _are_saved(name: str, path: Path, method: str | None) -> bool:
    """Whether a name is that of saved directions, and not of a capture to extract them from."""
    return method is None and (name.endswith(DIRECTIONS) or not locate(path).exist)


def _export(
    narrator: Narrator,
    name: str,
    store: Path,
    method: str | None,
    file_format: str,
    unit: str,
    target: Path,
    *,
    force: bool,
) -> None:
    """Write the directions of a capture, or saved ones that have none, as control vectors."""
    from engine.steering.vectors import export_directions

    found, leading = vectors_of(name, store, method)
    path = capture_path(name, store)
    if _are_saved(name, path, method):
        tell_origin(path, narrator)
    else:
        _warn_of_capture(path)
    with narrator.engine_log():
        saved = export_directions(found, target, file_format, unit=unit, force=force)
    some = next(iter(found.values()))
    layers = [layer for layer in sorted(found) if layer or file_format != "gguf"]
    narrator.say(f"exported {len(layers)} directions ({some['method']}), layers {layers[0]} to {layers[-1]}")
    if file_format == "gguf":
        at = leading if leading in layers else layers[len(layers) // 2]
        narrator.say(
            f"llama.cpp: --control-vector-scaled {shlex.quote(f'{saved}:0.1')} --control-vector-layer-range {at} {at}"
        )
    print_lines(f"{saved}\n")


def read(
    name: Annotated[str, typer.Argument(help="Name or path of saved directions, or of a capture of pairs.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Text to read.")],
    layer: Annotated[
        int | None, typer.Option("--layer", "-l", help="Layer to read (default: the one that ranks first).")
    ] = None,
    model: OtherModel = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Render the text as a user message with the chat template.")
    ] = False,
    store: Store = DEFAULT_STORE,
    dtype: OtherDtype = None,
    device_map: DeviceMap = None,
    max_memory: MaxMemory = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", callback=figure_file, help="File for a figure of layers by tokens: .png, .svg or .pdf."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Hide progress messages.")] = False,
) -> None:
    """Project a text onto the direction of a contrast, token by token."""
    narrator, options = Narrator(quiet=quiet), read_load_options(dtype or AUTO, device_map, max_memory)
    from engine.store.directions import find_directions

    found, leading, capture = find_directions(name if is_path(name) else store / name)
    if capture:
        narrator.say(f"no saved directions for {capture}: extracted from the capture")
    if layer is not None and layer not in found:
        raise RequestError(f"there is no direction at layer {layer}", expected=f"one of {sorted(found)}")
    tell_origin(name if is_path(name) else store / name, narrator)
    loaded, tokenizer = load_model_of(found, model, dtype, options, narrator)
    from engine.stats.reading import read_text

    with narrator.engine_log():
        reading = read_text(loaded, tokenizer, found, prompt, leading=leading if layer is None else layer, chat=chat)
    if as_json:
        print_json(msgspec.json.format(msgspec.json.encode(reading)))
    else:
        print_data(tokens_as_text(reading))
    if output:
        from engine.plots.style import save_figure
        from engine.plots.tokens_figure import draw_tokens

        file = output_path(output, f"{capture_path(name, store).name}_tokens.png")
        narrator.say(f"saved {save_figure(partial(draw_tokens, reading), file, title=prompt)}")


def tell_origin(place: Path | str, narrator: Narrator) -> None:
    """Say where saved directions come from, if not from the capture of their name, and warn if they may be noise."""
    from engine.store.ownership import direction_warnings, origin_note, origin_warning

    _warn(direction_warnings(place))
    if (note := origin_note(place)) and not origin_warning(place):
        narrator.say(note)


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        Narrator(quiet=False).say(f"warning: {warning}")


def _warn_of_capture(path: Path) -> None:
    """Warn if the directions extracted from a capture may be noise."""
    from engine.store.ownership import find_own_record

    record = find_own_record(locate(path))
    _warn(not_found_warnings(record) if record else [])


def load_model_of(
    found: "dict[int, Direction]", model: str | None, dtype: str | None, options: LoadOptions, narrator: Narrator
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load the model of directions, in the dtype of their capture, unless the user named another.

    Args:
        found: Layer to direction.
        model: The model that the user named, if any.
        dtype: The dtype that the user named, if any.
        options: The other load options.
        narrator: Shows the progress.

    Raises:
        RequestError: The model is unknown.
        ModelError: The model cannot be loaded.
    """
    some = next(iter(found.values()))
    named = model or (some["imported"]["model"] if "imported" in some else None)
    return load_captured_model(some["provenance"], named, dtype, options, narrator)


COMMANDS = {
    "directions": Command("directions", directions, DIRECTIONS_HELP, needs_arguments=True),
    "read": Command("read", read, READ_HELP, needs_arguments=True),
}
