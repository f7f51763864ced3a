"""`layerscope steer`: let a model answer with and without steering."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec
import typer

from engine.cli.console import Command, Narrator, figure_file, print_data, print_json
from engine.cli.directions import load_model_of, tell_origin
from engine.cli.load_options import DeviceMap, MaxMemory, OtherDtype, OtherModel, read_load_options
from engine.cli.store import is_path
from engine.errors import RequestError, similar
from engine.models.placement import AUTO
from engine.plots.steering_text import steered_as_text, sweep_as_text
from engine.records.steering import TOKENS, UNITS, SteeredTexts
from engine.runtime import Steps
from engine.store.names import DEFAULT_STORE, locate, output_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from engine.records.files import Direction

HELP = """Let a model answer a prompt with and without steering, side by side.

The direction of a contrast is added to the residual stream after one block. A strength of 0.1 moves a state by 10% of
its mean norm; a negative one steers towards the negative class. A random direction of the same length is the control.
For a capture without saved directions, the direction is the mean difference of its pairs.

[bold]Examples[/bold]

  layerscope steer smollm2_honesty --prompt "I broke a vase. What do I say?"
  layerscope steer smollm2_honesty -p "Tell me a story" --strength -0.2 --strength 0.2
  layerscope steer smollm2_honesty -p "Once upon a time" --raw --layer 16 --ablate
  layerscope steer smollm2_honesty -p "Did you do it?" --sweep --layers 10-20 --strength -0.2 --strength 0.2
  layerscope steer smollm2_honesty -p "Did you do it?" --sweep -o sweep.png
  layerscope steer honesty_probe -p "Tell me a story" --sample --seed 3 --json
"""


Choice = TypeVar("Choice", bound=str)


def steer(
    name: Annotated[str, typer.Argument(help="Name or path of saved directions, or of a capture of pairs.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The user's message.")],
    raw: Annotated[bool, typer.Option("--raw", help="Pass the prompt unchanged, without the chat template.")] = False,
    layer: Annotated[
        int | None, typer.Option("--layer", "-l", help="Layer to steer at (default: the one that ranks first).")
    ] = None,
    strength: Annotated[
        list[float] | None, typer.Option("--strength", help="Strength of steering; repeat for several (default: 0.1).")
    ] = None,
    unit: Annotated[
        str,
        typer.Option(help="Unit of strength: norm (mean norm of the states), gap (between the class means), raw."),
    ] = "norm",
    tokens: Annotated[str, typer.Option(help="Tokens to steer: all, prompt or generated.")] = "all",
    ablate: Annotated[bool, typer.Option("--ablate", help="Project the direction out instead of adding it.")] = False,
    sweep: Annotated[bool, typer.Option("--sweep", help="Steer at several layers; print effect and damage.")] = False,
    layers: Annotated[
        str | None, typer.Option(help="Layers of --sweep: all, recommended (default), 10,12 or 10-20.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", callback=figure_file, help="File for a figure of --sweep: .png, .svg or .pdf."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of new tokens of each text.")] = 60,
    sample: Annotated[
        bool, typer.Option("--sample", help="Sample with the model's settings (default: the most likely token).")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed for sampling and for the random direction.")] = 0,
    model: OtherModel = None,
    store: Annotated[Path, typer.Option("--store", "-s", help="Folder of captures.")] = DEFAULT_STORE,
    dtype: OtherDtype = None,
    device_map: DeviceMap = None,
    max_memory: MaxMemory = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Hide progress messages.")] = False,
) -> None:
    """Let a model answer a prompt with and without steering."""
    narrator, options = Narrator(quiet=quiet), read_load_options(dtype or AUTO, device_map, max_memory)
    chosen_unit, chosen_tokens = one_of("--unit", unit, UNITS), one_of("--tokens", tokens, TOKENS)
    if ablate and (strength or (unit, tokens) != ("norm", "all")):
        raise RequestError(
            "--strength, --unit and --tokens do not apply to --ablate, which projects the direction out",
            next_step="omit one or the other",
        )
    if sweep and (ablate or layer is not None):
        raise RequestError("--layer and --ablate do not apply to --sweep", next_step="choose the layers with --layers")
    if layers is not None and not sweep:
        raise RequestError("--layers are those of a sweep", next_step="add --sweep, or choose one layer with --layer")
    if output and not sweep:
        raise RequestError("--output is the figure of a sweep", next_step="add --sweep, or omit --output")
    from engine.steering.controls import load_source

    place = name if is_path(name) else store / name
    found, leading = find_to_steer(place, narrator)
    chosen = leading if layer is None else layer
    if chosen is not None and chosen not in found:
        raise RequestError(f"there is no direction at layer {chosen}", expected=f"one of {sorted(found)}")
    loaded, tokenizer = load_model_of(found, model, dtype, options, narrator)
    from engine.steering.texts import steer_text

    swept = swept_layers(loaded, found, layers or "recommended") if sweep else []
    with narrator.steps() as steps:
        write = partial(
            steer_text,
            loaded,
            tokenizer,
            found,
            prompt,
            strengths=strength or [0.1],
            unit=chosen_unit,
            tokens=chosen_tokens,
            ablation=ablate,
            data=load_source(place),
            chat=not raw,
            max_new_tokens=max_new_tokens,
            sample=sample,
            seed=seed,
        )
        result: SteeredTexts | list[SteeredTexts] = (
            _write_sweep(write, swept, steps, narrator) if sweep else write(layer=chosen, steps=steps)
        )
    if as_json:
        print_json(msgspec.json.format(msgspec.json.encode(result)))
    else:
        print_data(sweep_as_text(result) if isinstance(result, list) else steered_as_text(result))
    if output and isinstance(result, list):
        from engine.plots.steering_figure import draw_sweep
        from engine.plots.style import save_figure

        file = output_path(output, f"{locate(place).name}_sweep.png")
        narrator.say(f"saved {save_figure(partial(draw_sweep, result), file, title=prompt)}")


def find_to_steer(place: Path | str, narrator: Narrator) -> "tuple[dict[int, Direction], int | None]":
    """Find saved directions, or the mean differences of a capture, and say so.

    Args:
        place: Path of either.
        narrator: Says it.

    Returns:
        Layer to direction, and the layer that ranks first; None without a ranking.
    """
    from engine.store.directions import find_directions

    found, leading, capture = find_directions(place, method="mean_diff")
    if capture:
        narrator.say(f"no saved directions for {capture}: the mean differences of the capture are used")
    tell_origin(place, narrator)
    return found, leading


def swept_layers(model: "PreTrainedModel", found: "dict[int, Direction]", layers: str) -> list[int]:
    """The requested layers that have a direction.

    Raises:
        RequestError: The model does not have the layers, or none has a direction.
    """
    from engine.capture.selection import parse_layers
    from engine.models.description import describe_model

    wanted = [layer for layer in parse_layers(layers, describe_model(model).num_layers) if layer in found]
    if not wanted:
        raise RequestError(f"there is no direction at the layers {layers}", expected=f"some of {sorted(found)}")
    return wanted


def _write_sweep(
    write: Callable[..., SteeredTexts], layers: list[int], steps: Steps, narrator: Narrator
) -> list[SteeredTexts]:
    """Steer at each layer; all layers share one baseline. Leave out those where every strength overflows."""
    from engine.steering.apply import NotFiniteError

    results: list[SteeredTexts] = []
    lost: dict[int, NotFiniteError] = {}
    for place, layer in enumerate(layers):
        earlier = results[0] if results else None
        try:
            results.append(write(layer=layer, steps=_part(steps, place, len(layers), layer), earlier=earlier))
        except NotFiniteError as error:
            lost[layer] = error
    if not results:
        raise lost[layers[0]]
    for layer, why in lost.items():
        narrator.say(f"no texts at layer {layer}: {why.problem}")
    return results


def _part(steps: Steps, place: int, count: int, layer: int) -> Steps:
    """Report the progress at one layer as a part of the whole sweep."""

    def report(step: str, done: int, total: int) -> None:
        steps(f"layer {layer}, {step}", place * total + done, count * total)

    return report


def one_of(option: str, given: str, known: tuple[Choice, ...]) -> Choice:
    """Return the known word that was given.

    Raises:
        RequestError: It is none of them.
    """
    for one in known:
        if one == given:
            return one
    raise RequestError(
        f"{option} cannot be {given!r}", expected=f"one of {', '.join(known)}", next_step=similar(given, known)
    )


COMMANDS = {
    "steer": Command("steer", steer, HELP, needs_arguments=True),
}
