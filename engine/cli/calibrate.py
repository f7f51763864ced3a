"""`layerscope calibrate`: how strongly may a direction be added?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from engine.cli.console import Command, Narrator, print_data, print_json
from engine.cli.directions import load_model_of
from engine.cli.load_options import DeviceMap, MaxMemory, OtherDtype, OtherModel, read_load_options
from engine.cli.steer import find_to_steer, one_of, swept_layers
from engine.cli.store import is_path
from engine.concepts.text_files import open_prompts
from engine.errors import RequestError
from engine.models.placement import AUTO
from engine.records.causal import Calibration
from engine.records.steering import DAMAGES, STRENGTHS
from engine.store.names import DEFAULT_STORE

if TYPE_CHECKING:
    from engine.records.captures import ContrastData

HELP = """Find the largest strength of steering, at each layer, whose damage stays under a bound.

The model continues neutral prompts, by default the topics of the concept. Each continuation is read under steering by
15 strengths from 0.01 to 1.28, towards either class; the class with more damage counts.

[bold]Examples[/bold]

  layerscope calibrate smollm2_honesty
  layerscope calibrate smollm2_honesty --damage perplexity --bound 1.5
  layerscope calibrate smollm2_honesty --layers 10-20
  layerscope calibrate honesty_probe --prompts neutral.txt --json
"""

_MOST_PROMPTS = 24


def calibrate(
    name: Annotated[str, typer.Argument(help="Name or path of saved directions, or of a capture of pairs.")],
    layers: Annotated[str, typer.Option(help="Layers to calibrate: all, recommended, 10,12 or 10-20.")] = "recommended",
    damage: Annotated[
        str, typer.Option(help="Measure of damage: kl (nats per token) or perplexity (factor by which it rises).")
    ] = "kl",
    bound: Annotated[float | None, typer.Option(help="Largest damage (default: 0.1 nats, or a factor of 1.2).")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="File of neutral prompts (default: topics of the concept, at most 24).")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Pass the prompts unchanged, without the chat template.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum length of a continuation.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Seed for resampling prompts.")] = 0,
    model: OtherModel = None,
    store: Annotated[Path, typer.Option("--store", "-s", help="Folder of captures.")] = DEFAULT_STORE,
    dtype: OtherDtype = None,
    device_map: DeviceMap = None,
    max_memory: MaxMemory = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Hide progress messages.")] = False,
) -> None:
    """Find the largest strength of steering whose damage stays under a bound."""
    narrator, options = Narrator(quiet=quiet), read_load_options(dtype or AUTO, device_map, max_memory)
    measure = one_of("--damage", damage, DAMAGES)
    from engine.steering.controls import load_source

    place = name if is_path(name) else store / name
    found, _ = find_to_steer(place, narrator)
    texts = _topics(load_source(place)) if prompts is None else open_prompts(prompts)
    count = len(texts) if isinstance(texts, list) else sum(1 for _text in texts.texts())  # before the model is loaded
    loaded, tokenizer = load_model_of(found, model, dtype, options, narrator)
    from engine.steering.calibrate import calibrate_strength

    chosen = {layer: found[layer] for layer in swept_layers(loaded, found, layers)}
    with narrator.steps() as steps:
        calibrated = calibrate_strength(
            loaded,
            tokenizer,
            chosen,
            texts,
            damage=measure,
            bound=bound,
            chat=not raw,
            max_new_tokens=max_new_tokens,
            seed=seed,
            steps=steps,
        )
    if as_json:
        print_json(msgspec.json.format(msgspec.json.encode(calibrated)))
        return
    print_data(_table(calibrated))
    for warning in dict.fromkeys(text for row in calibrated for text in row.get("warnings", [])):
        print_data(Text(f"warning: {warning}", style="yellow"))
    print_data(Text(f"{count} neutral prompts; damage towards the worse class at that strength", style="dim"))


def _topics(data: "ContrastData | None") -> list[str]:
    """Distinct topics of the contrast of a concept."""
    topics = list(dict.fromkeys(pair["topic"] for pair in data.get("factors", []))) if data and data["concept"] else []
    if not topics:
        raise RequestError(
            "these directions come with no topics to use as neutral prompts",
            next_step="name a file of neutral prompts with --prompts",
        )
    return topics[:_MOST_PROMPTS]


def _table(calibrated: list[Calibration]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for name in ("layer", "strength", "95% interval", "KL", "perplexity"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in calibrated:
        table.add_row(
            str(row["layer"]),
            _limited(row["strength"]),
            f"{row['low']:.3f} to {row['high']:.3f}",
            f"{row['damage']:.3f}",
            f"x {row['perplexity']:.2f}",
        )
    return table


def _limited(strength: float) -> str:
    """A strength, marked at the ends of the range that was tried."""
    return f"{'<' if strength <= STRENGTHS[0] else '>' if strength >= STRENGTHS[-1] else ''}{strength:.3f}"


COMMANDS = {
    "calibrate": Command("calibrate", calibrate, HELP, needs_arguments=True),
}
