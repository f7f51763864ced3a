"""`layerscope capture`: run prompts or a concept through a model and save what its layers hold."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from engine.capture.selection import DEFAULT_BATCH_SIZE, DEFAULT_POSITIONS, SINGLE_PROMPT_POSITIONS, parse_positions
from engine.capture.sites import DEFAULT_SITE, SITES, parse_site
from engine.cli.capture_work import capture_in_memory, capture_shards, load, too_large
from engine.cli.console import Command, Narrator, print_data, print_json
from engine.cli.load_options import HOW, DeviceMap, Dtype, MaxMemory, read_load_options
from engine.cli.store import print_concepts, print_models
from engine.concepts.catalog import load_concept
from engine.concepts.pair_files import PairFile, WrittenPairs, open_pairs, read_pairs
from engine.concepts.pairs import DEFAULT_SAMPLES
from engine.concepts.text_files import PromptFile, open_prompts
from engine.errors import RequestError
from engine.inputs import user_path
from engine.models.placement import AUTO
from engine.models.registry import DEFAULT_MODEL, find_source
from engine.plots.layers_chart import layers_chart
from engine.plots.layers_text import layers_as_text
from engine.records.captures import Concept
from engine.runtime import Processes, find_processes
from engine.store.catalog import show_capture
from engine.store.names import DEFAULT_STORE, default_name, locate, require_free
from engine.store.record import encode_record

Chosen = Concept | WrittenPairs | PairFile | PromptFile | list[str]

HELP = """Run prompts or a concept through a model and save the hidden states of its layers.

[bold]Examples[/bold]

  layerscope capture --concept honesty
  layerscope capture --model qwen --prompt "Tell me a story" --layers 10-20
  layerscope capture --concept mine.toml --max-samples 0 --output runs/mine
  layerscope capture --pairs my_pairs.jsonl
  layerscope capture --prompts questions.jsonl
  layerscope capture --concept honesty --max-samples 0 --shards
  layerscope capture --list-models
"""

_WHAT, _WHERE = "What to capture", "What to save and print"


def capture(
    model: Annotated[
        str, typer.Option("--model", "-m", help="An alias, a hub id, a folder or a .gguf file.", rich_help_panel=_WHAT)
    ] = DEFAULT_MODEL,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", help="A text, taken as it is. Repeat for several.", rich_help_panel=_WHAT),
    ] = None,
    concept: Annotated[
        str | None, typer.Option("--concept", "-c", help="A concept's name or .toml file.", rich_help_panel=_WHAT)
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option("--pairs", help="Pairs of your own: .jsonl, .csv, or a data set's folder.", rich_help_panel=_WHAT),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="Any number of prompts: .txt, .jsonl, .csv, or a data set's folder.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    max_samples: Annotated[
        int,
        typer.Option(
            "--max-samples", "-n", min=0, help="Most pairs, drawn evenly; 0 for every one.", rich_help_panel=_WHAT
        ),
    ] = DEFAULT_SAMPLES,
    seed: Annotated[int, typer.Option(help="Of the draw of pairs.", rich_help_panel=_WHAT)] = 0,
    layers: Annotated[
        str,
        typer.Option("--layers", "-l", help="all, recommended, or 14,15 or 10-20 or -1.", rich_help_panel=_WHAT),
    ] = "all",
    site: Annotated[str, typer.Option(help=f"{', '.join(SITES)}.", rich_help_panel=_WHAT)] = DEFAULT_SITE,
    positions: Annotated[
        str | None,
        typer.Option(
            help="last, all, mean, an index (-2), a span (2:10), mean:2:10. Default: last; all for one --prompt.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    use_hooks: Annotated[
        bool, typer.Option("--use-hooks", help="Same states; stop after the last layer.", rich_help_panel=HOW)
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.", rich_help_panel=HOW)] = "auto",
    device_map: DeviceMap = None,
    max_memory: MaxMemory = None,
    dtype: Dtype = AUTO,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Most prompts in one forward pass; as many as run well.", rich_help_panel=HOW),
    ] = DEFAULT_BATCH_SIZE,
    no_prefix_reuse: Annotated[
        bool,
        typer.Option("--no-prefix-reuse", help="Run shared beginnings for each prompt.", rich_help_panel=HOW),
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.", rich_help_panel=HOW)
    ] = False,
    shards: Annotated[
        bool,
        typer.Option("--shards", help="Into a folder, in bounded memory; can be gone on with.", rich_help_panel=_WHERE),
    ] = False,
    store_dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option("--store-dtype", help="Of shards: other than as captured.", rich_help_panel=_WHERE),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="Default: activations/{model}_{concept}.pt", rich_help_panel=_WHERE),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace a capture of that name.", rich_help_panel=_WHERE)
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the record as JSON, not the table.", rich_help_panel=_WHERE)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No narration.", rich_help_panel=_WHERE)] = False,
    list_models: Annotated[
        bool, typer.Option("--list-models", help="List the models that have a name.", rich_help_panel="Lists")
    ] = False,
    list_concepts: Annotated[
        bool, typer.Option("--list-concepts", help="List the concepts.", rich_help_panel="Lists")
    ] = False,
) -> None:
    """Run prompts or a concept through a model and save the hidden states of its layers."""
    if list_models or list_concepts:
        (print_models if list_models else print_concepts)(as_json=as_json)
        return
    # Whatever can be found wrong is found before the model is loaded.
    chosen = _choose(prompt, concept, pairs, prompts, shards)
    processes = find_processes()
    in_shards = _goes_into_shards(chosen, shards, store_dtype, processes)
    options = read_load_options(dtype, device_map, max_memory)
    if positions is None:
        one = isinstance(chosen, list) and len(chosen) == 1
        positions = SINGLE_PROMPT_POSITIONS if one else DEFAULT_POSITIONS
    parse_positions(positions)
    parse_site(site, layers)
    alias = find_source(model).alias
    file = pairs or prompts
    what = chosen.name if isinstance(chosen, Concept) else file.stem if file else "prompt"
    paths = locate(output or DEFAULT_STORE / default_name(alias, what))
    require_free(paths, force=force, resume=not isinstance(chosen, list))

    narrator = Narrator(quiet=quiet or not processes.is_main)
    loaded, tokenizer = load(narrator, model, device, options, trust_remote_code=trust_remote_code)
    draw = {"max_samples": max_samples or None, "seed": seed} if isinstance(chosen, Concept) else {}
    what_of = {"layers": layers, "site": site, "positions": positions}
    how: dict[str, Any] = what_of | draw | {"batch_size": batch_size, "prefix_reuse": not no_prefix_reuse}
    source = chosen if isinstance(chosen, Concept | PromptFile) else PairFile(user_path(pairs)) if pairs else None
    in_shards = in_shards or (paths.unfinished and not force)
    if source is not None and (in_shards or too_large(narrator, loaded, tokenizer, source, what_of | draw)):
        how |= {"model_key": alias, "store_dtype": store_dtype or "as captured", "force": force, "processes": processes}
        capture_shards(narrator, loaded, tokenizer, source, paths, how)
    elif not isinstance(chosen, PromptFile | PairFile):
        how |= {"use_hooks": use_hooks} | ({"model_key": alias} if isinstance(chosen, Concept) else {})
        capture_in_memory(narrator, loaded, tokenizer, chosen, paths, how, force=force)
    if not processes.is_main:
        return
    record = show_capture(paths.record)
    if as_json:
        print_json(encode_record(record))
    else:
        print_data(layers_as_text(layers_chart(record)))


def _choose(
    prompt: list[str] | None, concept: str | None, pairs: Path | None, prompts: Path | None, shards: bool
) -> Chosen:
    """The one thing that was asked for."""
    given = [bool(prompt), bool(concept), bool(pairs), bool(prompts)].count(True)
    if given != 1:
        raise RequestError(
            "prompts, a concept and pairs cannot be captured together" if given else "there is nothing to capture",
            expected="one of --prompt TEXT, --concept NAME, --pairs FILE and --prompts FILE",
            next_step="layerscope capture --list-concepts shows the concepts",
        )
    if prompts:
        return open_prompts(prompts)
    if pairs:
        return open_pairs(pairs) if shards else read_pairs(pairs)
    return load_concept(concept) if concept else prompt or []


def _goes_into_shards(chosen: Chosen, wanted: bool, store_dtype: str | None, processes: Processes) -> bool:
    """Whether that is settled before the model is loaded; refuses what goes with shards alone."""
    if wanted and isinstance(chosen, list):
        raise RequestError("prompts given one by one do not go into shards", expected="--prompts FILE")
    if wanted or isinstance(chosen, PromptFile):
        return True
    if processes.count > 1:
        raise RequestError(
            f"this capture goes into one file, and {processes.count} processes were started to share it",
            expected="--prompts FILE, or --shards with pairs or a concept: shards are shared",
            next_step="give the command without a launcher" if isinstance(chosen, list) else "add --shards",
        )
    if store_dtype:
        raise RequestError("--store-dtype is for shards", next_step="add --shards, or choose with --dtype")
    return False


COMMANDS = {
    "capture": Command("capture", capture, HELP, needs_arguments=True),
}
