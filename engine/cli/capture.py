"""`layerscope capture`: run prompts or a concept and save hidden states."""

import os
import re
import shlex
import sys
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

from engine.capture.request import AS_CAPTURED, DEFAULT_BATCH_SIZE, CaptureRequest, Source, require_shards
from engine.capture.sites import DEFAULT_SITE, SITES
from engine.cli.console import Command, Interrupted, Narrator, print_data, print_json
from engine.cli.load_options import HOW, DeviceMap, Dtype, MaxMemory, read_load_options
from engine.cli.store import print_concepts, print_models, specificity_command
from engine.concepts.catalog import load_concept
from engine.concepts.pair_files import open_pairs
from engine.concepts.pairs import DEFAULT_SAMPLES, QUICK_SAMPLES
from engine.concepts.text_files import open_prompts
from engine.errors import RequestError, StoreError
from engine.models.placement import AUTO, LoadOptions
from engine.models.registry import DEFAULT_MODEL, find_source
from engine.plots.findings import cost_in_words, neighbours_in_words
from engine.plots.layers_chart import layers_chart
from engine.plots.layers_text import layers_as_text
from engine.runtime import Processes, find_processes
from engine.store.catalog import show_capture
from engine.store.names import (
    DEFAULT_STORE,
    CapturePaths,
    default_name,
    locate,
    output_path,
    shard_files,
)
from engine.store.ownership import require_free
from engine.store.plan import read_plan, shard_starts
from engine.store.record import encode_record
from engine.store.replace import finish_replacement

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HELP = """Run prompts or a concept through a model and save hidden states of its layers.

[bold]Examples[/bold]

  layerscope capture --concept honesty
  layerscope capture --model qwen --prompt "Tell me a story" --layers 10-20
  layerscope capture --concept mine.toml --max-samples 0 --output runs/mine
  layerscope capture --concept honesty --quick
  layerscope capture --pairs my_pairs.jsonl
  layerscope capture --prompts questions.jsonl
  layerscope capture --concept honesty --respond 60
  layerscope capture --concept honesty --max-samples 0 --shards
  layerscope capture --concept honesty --max-samples 0 --dry-run
  layerscope capture --list-models
"""

_FORCE = re.compile("--force|-[fq]*f[fq]*")
_WHAT, _WHERE = "What to capture", "Output"


def capture(
    context: typer.Context,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Model alias, hub id, folder or .gguf file.", rich_help_panel=_WHAT)
    ] = DEFAULT_MODEL,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt", "-p", help="Prompt text, without a chat template; repeat for several.", rich_help_panel=_WHAT
        ),
    ] = None,
    concept: Annotated[
        str | None, typer.Option("--concept", "-c", help="Name or .toml file of a concept.", rich_help_panel=_WHAT)
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option("--pairs", help="File of pairs: .jsonl, .csv or a dataset folder.", rich_help_panel=_WHAT),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="File of prompts, of any size: .txt, .jsonl, .csv or a dataset folder.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    max_samples: Annotated[
        int,
        typer.Option(
            "--max-samples",
            "-n",
            min=0,
            help="Maximum number of pairs of the concept, sampled evenly (0: all).",
            rich_help_panel=_WHAT,
        ),
    ] = DEFAULT_SAMPLES,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help=f"Take {QUICK_SAMPLES} pairs, not {DEFAULT_SAMPLES}: a quarter of the time, strong concepts only.",
            rich_help_panel=_WHAT,
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed for sampling pairs and responses.", rich_help_panel=_WHAT)] = 0,
    respond: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Let the model respond to each prompt first, with at most this many tokens.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    sample: Annotated[
        bool,
        typer.Option(
            "--sample",
            help="Sample responses, with the model's own settings, instead of taking the most likely tokens.",
            rich_help_panel=_WHAT,
        ),
    ] = False,
    layers: Annotated[
        str,
        typer.Option(
            "--layers", "-l", help="Layers: all, recommended, or numbers (14,15 or 10-20 or -1).", rich_help_panel=_WHAT
        ),
    ] = "all",
    site: Annotated[str, typer.Option(help=f"Site to read: {', '.join(SITES)}.", rich_help_panel=_WHAT)] = DEFAULT_SITE,
    positions: Annotated[
        str | None,
        typer.Option(
            help="Tokens to keep: last, all, mean, an index (-2), a span (2:10) or mean:2:10; of responses: response"
            " (their mean), response:all or response:last (default: response if there are any, else last; all for a"
            " single --prompt).",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    use_hooks: Annotated[
        bool,
        typer.Option(
            "--use-hooks",
            help="Stop each forward pass after the last requested layer (identical states).",
            rich_help_panel=HOW,
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, mps, cuda or cuda:N.", rich_help_panel=HOW)] = "auto",
    device_map: DeviceMap = None,
    max_memory: MaxMemory = None,
    dtype: Dtype = AUTO,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Maximum number of prompts in a forward pass (default: as many as the token budget allows).",
            rich_help_panel=HOW,
        ),
    ] = DEFAULT_BATCH_SIZE,
    no_prefix_reuse: Annotated[
        bool,
        typer.Option("--no-prefix-reuse", help="Do not share prefixes between prompts.", rich_help_panel=HOW),
    ] = False,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Compile the decoder blocks first, up to a minute (default: in long captures on a CUDA GPU).",
            show_default=False,
            rich_help_panel=HOW,
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run code from the model repository.", rich_help_panel=HOW),
    ] = False,
    shards: Annotated[
        bool,
        typer.Option("--shards", help="Save as shards: bounded memory, resumable.", rich_help_panel=_WHERE),
    ] = False,
    store_dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option("--store-dtype", help="Dtype of shards (default: as captured).", rich_help_panel=_WHERE),
    ] = None,
    no_specificity: Annotated[
        bool,
        typer.Option(
            "--no-specificity",
            help="Do not compare a concept with its neighbours (see layerscope specificity).",
            rich_help_panel=_WHERE,
        ),
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="Path of the capture, or a folder for it. Default: activations/{model}_{concept}.pt",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace an existing capture of that name.", rich_help_panel=_WHERE)
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the record as JSON instead of a table.", rich_help_panel=_WHERE)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Hide progress messages.", rich_help_panel=_WHERE)
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Count prompts, tokens and bytes; capture nothing.", rich_help_panel=_WHERE),
    ] = False,
    timed: Annotated[
        bool,
        typer.Option(
            "--timed", help="With --dry-run: also estimate the time, from a short timed pass.", rich_help_panel=_WHERE
        ),
    ] = False,
    list_models: Annotated[
        bool, typer.Option("--list-models", help="List the model aliases.", rich_help_panel="Lists")
    ] = False,
    list_concepts: Annotated[
        bool, typer.Option("--list-concepts", help="List the concepts.", rich_help_panel="Lists")
    ] = False,
) -> None:
    """Run prompts or a concept through a model and save hidden states of its layers."""
    if list_models or list_concepts:
        (print_models if list_models else print_concepts)(as_json=as_json)
        return
    processes = find_processes()
    options = read_load_options(dtype, device_map, max_memory)
    source = _source(prompt, concept, pairs, prompts, whole=not shards)
    if not concept:
        seeded: dict[str, str] = {} if sample else {"seed": "--seed"}
        _require_not_given(context, max_samples="--max-samples", quick="--quick", **seeded)
    if quick:
        _require_one_size(context)
        max_samples = QUICK_SAMPLES
    request = CaptureRequest(
        source,
        layers=layers,
        site=site,
        positions=positions,
        max_samples=max_samples or None,
        seed=seed,
        respond=respond,
        sample=sample,
        use_hooks=use_hooks,
        batch_size=batch_size,
        prefix_reuse=not no_prefix_reuse,
        compiled=compiled,
        force=force,
        shards=shards,
        store_dtype=store_dtype or AS_CAPTURED,
        specificity=not no_specificity,
        new_neighbours=not quick,
    )
    listed = isinstance(request.source, str | tuple)
    if shards and listed:
        raise RequestError("prompts given with --prompt cannot be saved as shards", expected="--prompts FILE")
    require_shards(request, processes)
    if timed and not dry_run:
        raise RequestError("--timed needs --dry-run", next_step="add --dry-run, or omit --timed")
    alias = find_source(model).alias
    default = default_name(alias, "prompt" if prompt else request.called)
    paths = locate(output_path(output, default) if output else DEFAULT_STORE / default)
    if not dry_run:
        require_free(paths, force=force, resume=not listed)  # fail before the model is loaded
    request = replace(request, alias=alias, paths=paths)
    narrator = Narrator(quiet=quiet or not processes.is_main)
    try:
        loaded, tokenizer = _load(narrator, model, device, options, trust_remote_code=trust_remote_code)
    except KeyboardInterrupt:
        if dry_run or not processes.is_main or paths.started is None:
            raise
        with suppress(StoreError):  # a damaged plan
            raise Interrupted(f"interrupted while the model was loaded; {_saved_before(paths.started)}") from None
        raise
    if dry_run:
        _estimate(narrator, loaded, tokenizer, request, timed=timed, as_json=as_json)
        return
    _run(narrator, loaded, tokenizer, request, processes, model)
    if not processes.is_main:
        return
    record = show_capture(paths.record)
    compare = specificity_command(record, paths, model)
    if quick:
        narrator.say(
            f"quick: {QUICK_SAMPLES} pairs show strong concepts only; a layer that is not significant here may be with"
            f" the default of {DEFAULT_SAMPLES}"
        )
        if compare and "specificity" in record:
            narrator.say(f"to compare it with its neighbours: {compare}")
    if as_json:
        print_json(encode_record(record))
    else:
        print_data(layers_as_text(layers_chart(record)))


def _require_one_size(context: typer.Context) -> None:
    if _is_given(context, "max_samples"):
        raise RequestError("--quick and --max-samples both set the number of pairs", next_step="omit one of them")


def _source(
    prompt: list[str] | None, concept: str | None, pairs: Path | None, prompts: Path | None, *, whole: bool
) -> Source:
    """The source to capture.

    With `whole`, all pairs of a file are read, to find errors before the model is loaded.
    """
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
        file = open_pairs(pairs)
        if whole:
            for _pair in file.pairs():
                pass
        return file
    texts = prompt or []
    return load_concept(concept) if concept else texts[0] if len(texts) == 1 else texts


def _require_not_given(context: typer.Context, **options: str) -> None:
    """Refuse options that choose pairs of a concept, for prompts and files of pairs."""
    given = [option for name, option in options.items() if _is_given(context, name)]
    if given:
        raise RequestError(
            f"{' and '.join(given)} without --concept would change nothing: prompts and files are captured whole",
            next_step=f"omit {' and '.join(given)}",
        )


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _load(
    narrator: Narrator, model: str, device: str, options: LoadOptions, *, trust_remote_code: bool
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    with narrator.working(f"loading {model}"):
        from engine.models.forward import input_device
        from engine.models.loading import load_model_and_tokenizer

        loaded, tokenizer, config = load_model_and_tokenizer(
            model, device, trust_remote_code=trust_remote_code, **options.arguments()
        )
    narrator.say(
        f"{config.source.model_id}: {config.num_layers} layers of width {config.hidden_size},"
        f" {loaded.dtype} on {input_device(loaded)}; load check passed"
    )
    return loaded, tokenizer


def _run(
    narrator: Narrator,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    request: CaptureRequest,
    processes: Processes,
    named: str,
) -> None:
    from engine.store.save import capture_and_save

    before, started = _changed(request.paths), _saved_shards(request.paths)
    with narrator.steps() as steps:
        progress = partial(steps, "running prompts")
        try:
            paths = capture_and_save(model, tokenizer, request, progress=progress, steps=steps, processes=processes)
        except KeyboardInterrupt:
            if not processes.is_main or request.paths is None:
                raise
            untouched = request.force and _saved_shards(request.paths) == started
            raise Interrupted(_left(request, request.paths, before, named, untouched=untouched)) from None
    if paths.in_shards:
        narrator.say(f"saved {paths.shards}{os.sep} and {paths.record.name}")
    else:
        megabytes = paths.tensors.stat().st_size / 1e6
        narrator.say(f"saved {paths.tensors} ({megabytes:.1f} MB) and {paths.record.name}")


def _changed(paths: CapturePaths | None) -> int:
    """Time of the last change of the record, in nanoseconds; 0 if there is none."""
    try:
        return paths.record.stat().st_mtime_ns if paths else 0
    except OSError:
        return 0


def _saved_shards(paths: CapturePaths | None) -> list[tuple[Path, int]]:
    """The plan and the shards of an unfinished capture, each with its modification time; empty without one."""
    place = paths.started if paths else None
    files = [place.plan, *shard_files(place)] if place else []
    with suppress(OSError):  # another process deletes them
        return [(file, file.stat().st_mtime_ns) for file in files]
    return []


def _without_specificity(paths: CapturePaths, model: str) -> str:
    again = specificity_command(show_capture(paths.record), paths, model)
    return f"interrupted after the capture was saved{'; to compare it with its neighbours: ' if again else ''}{again}"


def _saved_before(place: CapturePaths) -> str:
    """What an unfinished capture that was not touched has."""
    total, saved = len(shard_starts(read_plan(place.plan))), len(shard_files(place))
    return f"{saved} of {total} shards of the unfinished capture in {place.shards}{os.sep} are unchanged"


def _left(request: CaptureRequest, paths: CapturePaths, before: int, model: str, *, untouched: bool) -> str:
    """What an interrupted capture leaves, and the command that resumes it.

    Args:
        request: What was captured.
        paths: Where it was to be saved.
        before: When the record of the capture to be replaced was last changed; 0 if there was none.
        model: The model as the user named it.
        untouched: Whether the shards were saved before, perhaps with other settings, which would not be resumed.
    """
    finish_replacement(paths)
    after = _changed(paths)
    if after not in (0, before):
        return _without_specificity(paths, model)
    previous = f"the previous capture is {'unchanged' if after else 'deleted'}" if before else ""
    place = paths.started
    if place is None:
        advice = "" if request.always_shards else "; --shards makes a capture resumable"
        return f"interrupted before anything was saved{'; ' if previous else ''}{previous}{advice}"
    if untouched:
        return f"interrupted; {_saved_before(place)}"
    total, saved = len(shard_starts(read_plan(place.plan))), len(shard_files(place))
    again = [part for part in sys.argv[1:] if not _FORCE.fullmatch(part)]  # once finished, it would be replaced
    return (
        f"interrupted: {previous}{', and ' if previous else ''}{saved} of {total} shards are saved in"
        f" {place.shards}{os.sep}; to resume: {shlex.join(['layerscope', *again])}"
    )


def _estimate(
    narrator: Narrator,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    request: CaptureRequest,
    *,
    timed: bool,
    as_json: bool,
) -> None:
    from engine.capture.prepare import prepare_capture
    from engine.store.specificity import estimate_with_neighbours

    with narrator.steps() as steps:
        estimate = estimate_with_neighbours(prepare_capture(model, tokenizer, request, steps=steps), timed=timed)
    if as_json:
        print_json(msgspec.json.format(msgspec.json.encode(estimate)))
    else:
        where = "shards" if estimate["in_shards"] else "one file"
        print_data(f"{cost_in_words(estimate)}, saved as {where}")
        if more := neighbours_in_words(estimate):
            print_data(more)


COMMANDS = {
    "capture": Command("capture", capture, HELP, needs_arguments=True),
}
