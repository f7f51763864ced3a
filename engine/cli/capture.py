"""`layerscope capture`: run prompts or a concept through a model and save what its layers hold."""

from typing import Annotated, Any

import typer

from engine.capture.batches import DEFAULT_BATCH_SIZE
from engine.capture.positions import parse_positions
from engine.cli.console import Narrator, print_data, print_json
from engine.cli.listings import print_concepts, print_models
from engine.concepts.catalog import load_concept
from engine.concepts.pairs import DEFAULT_SAMPLES
from engine.errors import RequestError
from engine.models.registry import DEFAULT_MODEL, find_source
from engine.plots.chart import layer_chart
from engine.plots.text import layers_as_text
from engine.records.captures import CaptureData
from engine.store.catalog import show_capture
from engine.store.names import DEFAULT_STORE, CapturePaths, default_name, locate, require_free
from engine.store.record import encode_record

HELP = """Run prompts or a concept through a model and save the hidden states of its layers.

[bold]Examples[/bold]

  layerscope capture --concept honesty --positions last
  layerscope capture --model qwen --prompt "Tell me a story" --layers 10-20
  layerscope capture --concept mine.toml --max-samples 0 --output runs/mine
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
    positions: Annotated[
        str,
        typer.Option(help="all, last, mean, an index (-2), a span (2:10), mean:2:10.", rich_help_panel=_WHAT),
    ] = "all",
    use_hooks: Annotated[
        bool, typer.Option("--use-hooks", help="Same states, less memory, stops early.", rich_help_panel=_HOW)
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.", rich_help_panel=_HOW)] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.", rich_help_panel=_HOW)] = "auto",
    batch_size: Annotated[
        int, typer.Option(min=1, help="Most prompts in one forward pass.", rich_help_panel=_HOW)
    ] = DEFAULT_BATCH_SIZE,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.", rich_help_panel=_HOW)
    ] = False,
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
    if bool(prompt) == bool(concept):
        raise RequestError(
            "a prompt and a concept cannot be captured together" if prompt else "there is nothing to capture",
            expected="either --prompt TEXT or --concept NAME",
            next_step="layerscope capture --list-concepts shows the concepts",
        )
    parse_positions(positions)
    contrast = load_concept(concept) if concept else None
    alias = find_source(model).alias
    paths = locate(output or DEFAULT_STORE / default_name(alias, contrast.name if contrast else "prompt"))
    require_free(paths, force=force)

    narrator = Narrator(quiet=quiet)
    how: dict[str, Any] = {
        "layers": layers,
        "use_hooks": use_hooks,
        "positions": positions,
        "batch_size": batch_size,
    }
    with narrator.working(f"loading {model}"):
        from engine.capture.activations import capture_activations
        from engine.capture.contrast import capture_from_concept
        from engine.models.loading import load_model_and_tokenizer

        loaded, tokenizer, config = load_model_and_tokenizer(model, device, dtype, trust_remote_code=trust_remote_code)
    narrator.say(
        f"{config.source.model_id}: {config.num_layers} layers of width {config.hidden_size},"
        f" {loaded.dtype} on {loaded.device}; the check at load passed"
    )
    with narrator.counting("prompts") as progress, narrator.engine_log():
        data: CaptureData
        if contrast:
            data = capture_from_concept(
                loaded, tokenizer, contrast, alias, max_samples=max_samples or None, seed=seed, progress=progress, **how
            )
        else:
            data = capture_activations(loaded, tokenizer, _one_or_many(prompt or []), progress=progress, **how)
    _save(data, paths, force, narrator)
    record = show_capture(paths.tensors)
    if as_json:
        print_json(encode_record(record))
    else:
        print_data(layers_as_text(layer_chart(record)))


def _one_or_many(prompts: list[str]) -> str | list[str]:
    return prompts[0] if len(prompts) == 1 else prompts


def _save(data: CaptureData, paths: CapturePaths, force: bool, narrator: Narrator) -> None:
    from engine.store.write import save_activations

    with narrator.working(f"saving {paths.tensors}"):
        save_activations(data, paths.name, store=paths.store, force=force)
    megabytes = paths.tensors.stat().st_size / 1e6
    narrator.say(f"saved {paths.tensors} ({megabytes:.1f} MB) and {paths.record.name}")
