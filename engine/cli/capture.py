"""`layerscope capture`: run prompts or a concept through a model and save what its layers hold."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from engine.capture.batches import DEFAULT_BATCH_SIZE
from engine.capture.positions import parse_positions
from engine.capture.sites import DEFAULT_SITE, SITES, parse_site
from engine.cli.command import Command
from engine.cli.console import Narrator, print_data, print_json
from engine.cli.listings import print_concepts, print_models
from engine.concepts.catalog import load_concept
from engine.concepts.pair_files import WrittenPairs, read_pairs
from engine.concepts.pairs import DEFAULT_SAMPLES
from engine.concepts.prompt_file import PromptFile, open_prompts
from engine.errors import RequestError
from engine.models.placement import STRATEGIES, read_max_memory, require_strategy
from engine.models.registry import DEFAULT_MODEL, find_source
from engine.plots.layers_chart import layers_chart
from engine.plots.layers_text import layers_as_text
from engine.processes import find_processes
from engine.records.captures import CaptureData
from engine.records.concepts import Concept
from engine.store.catalog import show_capture
from engine.store.names import DEFAULT_STORE, CapturePaths, default_name, locate, require_free
from engine.store.record import encode_record

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Chosen = Concept | WrittenPairs | PromptFile | list[str]

HELP = """Run prompts or a concept through a model and save the hidden states of its layers.

[bold]Examples[/bold]

  layerscope capture --concept honesty --positions last
  layerscope capture --model qwen --prompt "Tell me a story" --layers 10-20
  layerscope capture --concept mine.toml --max-samples 0 --output runs/mine
  layerscope capture --pairs my_pairs.jsonl --positions last
  layerscope capture --prompts questions.jsonl --positions last
  layerscope capture --list-models
"""

_WHAT, _HOW, _WHERE = "What to capture", "How to run it", "What to save and print"


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
        typer.Option("--pairs", help="Pairs of your own: .jsonl or .csv.", rich_help_panel=_WHAT),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="Any number of prompts: .txt, .jsonl or .csv.", rich_help_panel=_WHAT),
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
        str,
        typer.Option(help="all, last, mean, an index (-2), a span (2:10), mean:2:10.", rich_help_panel=_WHAT),
    ] = "all",
    use_hooks: Annotated[
        bool, typer.Option("--use-hooks", help="Same states, less memory, stops early.", rich_help_panel=_HOW)
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.", rich_help_panel=_HOW)] = "auto",
    device_map: Annotated[
        str | None,
        typer.Option(
            "--device-map",
            help=f"{', '.join(STRATEGIES)}: what does not fit into memory stays on the disk.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    max_memory: Annotated[
        list[str] | None,
        typer.Option(
            "--max-memory", help="With --device-map: 20GB of main memory, 0=20GB of GPU 0.", rich_help_panel=_HOW
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.", rich_help_panel=_HOW)] = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Most prompts in one forward pass; as many as run well.", rich_help_panel=_HOW),
    ] = DEFAULT_BATCH_SIZE,
    no_prefix_reuse: Annotated[
        bool,
        typer.Option("--no-prefix-reuse", help="Run shared beginnings for each prompt.", rich_help_panel=_HOW),
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.", rich_help_panel=_HOW)
    ] = False,
    store_dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option("--store-dtype", help="With --prompts: other than as captured.", rich_help_panel=_WHERE),
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
    chosen = _choose(prompt, concept, pairs, prompts)
    processes = find_processes()
    if processes.count > 1 and not isinstance(chosen, PromptFile):
        raise RequestError(
            f"this capture goes into one file, and {processes.count} processes were started to share it",
            expected="--prompts FILE, which is captured in shards, and shared by shards",
            next_step="give the command without a launcher",
        )
    if store_dtype and prompts is None:
        raise RequestError("--store-dtype is for --prompts", next_step="leave it out, or choose with --dtype")
    if device_map is not None:
        require_strategy(device_map)
    elif max_memory:
        raise RequestError("--max-memory is for --device-map", next_step="add --device-map auto")
    memory = read_max_memory(max_memory) if max_memory else None
    parse_positions(positions)
    parse_site(site, layers)
    alias = find_source(model).alias
    file = pairs or prompts
    what = chosen.name if isinstance(chosen, Concept) else file.stem if file else "prompt"
    paths = locate(output or DEFAULT_STORE / default_name(alias, what))
    require_free(paths, force=force, resume=isinstance(chosen, PromptFile))

    narrator = Narrator(quiet=quiet or not processes.is_main)
    loaded, tokenizer = _load(narrator, model, device, dtype, device_map, memory, trust_remote_code)
    draw = {"model_key": alias, "max_samples": max_samples or None, "seed": seed}
    how = {"layers": layers, "site": site, "use_hooks": use_hooks, "positions": positions, "batch_size": batch_size}
    how["prefix_reuse"] = not no_prefix_reuse
    with narrator.counting("prompts") as progress, narrator.engine_log():
        how["progress"] = progress
        if isinstance(chosen, PromptFile):
            more = {"model_key": alias, "store_dtype": store_dtype or "as captured", "force": force}
            _capture_file(loaded, tokenizer, chosen, paths, how | more | {"processes": processes})
        else:
            data = _capture(loaded, tokenizer, chosen, draw, how)
    if isinstance(chosen, PromptFile):
        narrator.say(f"saved {paths.shards}{os.sep} and {paths.record.name}")
    else:
        _save(data, paths, force, narrator)
    if not processes.is_main:
        return
    record = show_capture(paths.record)
    if as_json:
        print_json(encode_record(record))
    else:
        print_data(layers_as_text(layers_chart(record)))


def _choose(prompt: list[str] | None, concept: str | None, pairs: Path | None, prompts: Path | None) -> Chosen:
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
    return load_concept(concept) if concept else read_pairs(pairs) if pairs else prompt or []


def _load(
    narrator: Narrator,
    model: str,
    device: str,
    dtype: str,
    device_map: str | None,
    max_memory: dict[int | str, int] | None,
    trust_remote_code: bool,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    with narrator.working(f"loading {model}"):
        from engine.models.forward import input_device
        from engine.models.loading import load_model_and_tokenizer

        loaded, tokenizer, config = load_model_and_tokenizer(
            model,
            device,
            dtype,
            device_map=device_map,
            max_memory=max_memory,
            trust_remote_code=trust_remote_code,
        )
    narrator.say(
        f"{config.source.model_id}: {config.num_layers} layers of width {config.hidden_size},"
        f" {loaded.dtype} on {input_device(loaded)}; the check at load passed"
    )
    return loaded, tokenizer


def _capture_file(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: PromptFile,
    paths: CapturePaths,
    how: dict[str, Any],
) -> None:
    from engine.store.stream import capture_prompt_file

    how = {name: value for name, value in how.items() if name != "use_hooks"}  # always read through hooks
    capture_prompt_file(model, tokenizer, prompts.path, paths.name, store=paths.store, **how)


def _capture(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    chosen: Concept | WrittenPairs | list[str],
    draw: dict[str, Any],
    how: dict[str, Any],
) -> CaptureData:
    from engine.capture.activations import capture_activations
    from engine.capture.contrast import capture_contrastive_activations, capture_from_concept

    if isinstance(chosen, Concept):
        return capture_from_concept(model, tokenizer, chosen, **draw, **how)
    if isinstance(chosen, WrittenPairs):
        return capture_contrastive_activations(
            model, tokenizer, chosen.positive, chosen.negative, factors=chosen.factors, **how
        )
    return capture_activations(model, tokenizer, chosen[0] if len(chosen) == 1 else chosen, **how)


def _save(data: CaptureData, paths: CapturePaths, force: bool, narrator: Narrator) -> None:
    from engine.store.write import save_activations

    with narrator.working(f"saving {paths.tensors}"):
        save_activations(data, paths.name, store=paths.store, force=force)
    megabytes = paths.tensors.stat().st_size / 1e6
    narrator.say(f"saved {paths.tensors} ({megabytes:.1f} MB) and {paths.record.name}")


COMMANDS = {
    "capture": Command("capture", capture, HELP, needs_arguments=True),
}
