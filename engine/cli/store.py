"""`layerscope list` and `layerscope show`, and the lists of models and concepts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from engine.capture.prompts import excerpt
from engine.cli.console import Command, Narrator, print_data, print_json
from engine.cli.load_options import model_option
from engine.concepts.catalog import list_concepts, user_concepts_path
from engine.errors import StoreError, visible
from engine.models.registry import list_models, user_registry_path
from engine.plots.causal_text import causal_findings
from engine.plots.findings import layers_in_words
from engine.plots.layers_chart import layers_chart
from engine.plots.layers_text import layers_as_text
from engine.records.captures import Provenance, describe_adapter
from engine.records.files import CaptureRecord, count_prompts
from engine.remedies import save_option
from engine.stats.comparison_rules import require_contrasts
from engine.store.catalog import UNDER_THIS_NAME, is_damage, list_captures, show_capture, unfinished_saves
from engine.store.names import (
    DEFAULT_STORE,
    DIRECTIONS,
    PLAN,
    CapturePaths,
    capture_command,
    locate,
    store_option,
    store_words,
)
from engine.store.ownership import origin_warning, require_amendable
from engine.store.record import encode_record
from engine.store.verify import has_checksums

if TYPE_CHECKING:
    from engine.store.directions_catalog import SavedDirections

_RESPONSES_SHOWN, _EXCERPT = 3, 200


def print_models(*, as_json: bool) -> None:
    """Print the model aliases: layers, size, source, and whether they are local."""
    listings = list_models()
    if as_json:
        print_json(msgspec.json.format(msgspec.json.encode(listings)))
        return
    table = _table("model", "layers", "size", "local", "source")
    for listing in listings:
        source = listing.source
        place = source.revision if source.kind == "package" else source.model_id
        local = "yes" if source.local else "no"
        table.add_row(listing.alias, str(listing.layers), listing.parameters, local, place or source.location)
    print_data(table)
    print_data(f"\nlocal: loads without a download. Add your own models in {user_registry_path()}")


def print_concepts(*, as_json: bool) -> None:
    """Print the concepts with their contrast and number of pairs."""
    problems: list[str] = []
    concepts = list_concepts(problems=problems)
    for problem in problems:
        Narrator(quiet=False).say(problem)
    if as_json:
        print_json(msgspec.json.format(msgspec.json.encode(concepts)))
        return
    table = _table("concept", "contrast", "pairs", "description")
    for concept in concepts:
        pairs = len(concept.personas) * len(concept.templates) * len(concept.topics)
        table.add_row(concept.name, f"{concept.positive} / {concept.negative}", str(pairs), concept.description)
    print_data(table)
    print_data(f"\nAdd your own concepts as {user_concepts_path()}/*.toml")


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in {"layers", "size", "pairs"} else "left")
    return table


def find_record(name: str, store: Path) -> CaptureRecord:
    """Read the record of a capture, or make one for a `.pt` without a record.

    Args:
        name: A name in the store, or a path.
        store: The store folder for plain names.

    Raises:
        StoreError: The capture does not exist or is unusable.
    """
    path = capture_path(name, store)
    paths = locate(path)
    if not paths.exist and not is_path(name) and (Path(name) / PLAN).is_file():
        raise StoreError(
            f"there is no capture called {name!r} in the folder {str(store)!r}",
            next_step=f"to use the shards in the folder {name!r} here, write ./{name}",
        )
    if not paths.exist:
        _explain_suffix(name, store)
    if paths.record.exists() or not paths.tensors.exists():
        return show_capture(path)
    from engine.store.read import describe_tensors

    return describe_tensors(path)


def find_amendable(name: str, store: Path) -> CaptureRecord:
    """Read the record of a contrast to which a measurement will be added, before the model is loaded.

    Args:
        name: A name in the store, or a path.
        store: The store folder for plain names.

    Raises:
        RequestError: The capture is not a contrast.
        StoreError: The capture does not exist, is unusable or has no record, or the store cannot be written.
    """
    record, paths = find_record(name, store), locate(capture_path(name, store))
    if not paths.record.exists():
        return show_capture(paths.tensors)  # refuses it
    require_contrasts(record)
    require_amendable(paths)
    return record


def _explain_suffix(name: str, store: Path) -> None:
    """Refuse a file name without a folder, which does not name a capture in the store.

    Raises:
        StoreError: It is one.
    """
    if name == Path(name).name and name.endswith((".pt", ".json", DIRECTIONS)):
        raise StoreError(
            f"there is no file called {name!r} in this folder",
            next_step=f"for a capture in the folder {str(store)!r}, omit the suffix: {locate(name).name}",
        )


def capture_path(name: str, store: Path) -> Path:
    """Path of a capture without suffix.

    Args:
        name: A name in the store, or a path.
        store: The store folder for plain names.

    Raises:
        StoreError: The name is invalid.
    """
    paths = locate(name) if is_path(name) else locate(name, store)
    return paths.store / paths.name


def specificity_command(record: CaptureRecord, paths: CapturePaths, model: str = "") -> str:
    """The command that compares a capture with its neighbours; empty if it was compared or cannot be.

    Args:
        record: Record of the capture.
        paths: Its files.
        model: The model as the user named it for the capture, if known.
    """
    report = record.get("specificity")
    if not (record["concept"] and record["ranking"]) or (report and not report.get("postponed")):
        return ""
    return f"layerscope specificity {paths.arguments}{model_option(record['provenance'], model)}"


def with_output(problem: str, name: str, store: Path) -> str:
    """What is wrong with a capture, with the option that resumes an unfinished one, whatever the command calls it."""
    return problem.replace(UNDER_THIS_NAME, f"with{save_option(store_words(store), name)}")


def is_path(name: str) -> bool:
    """Whether an argument is a path rather than a name in the store."""
    return "/" in name or "\\" in name or name.endswith((".pt", ".json", ".safetensors"))


LIST_HELP = """List the captures and saved directions of a store.

Captures are listed newest first, then the directions that have no capture of their name.

[bold]Examples[/bold]

  layerscope list
  layerscope list --store runs --concept honesty --json
"""

SHOW_HELP = """Show how a capture or saved directions were made.

[bold]Examples[/bold]

  layerscope show smollm2_honesty
  layerscope show runs/mine.pt --json
"""

Store = Annotated[Path, typer.Option("--store", "-s", help="Folder of captures.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def list_store(
    store: Store = DEFAULT_STORE,
    concept: Annotated[str | None, typer.Option(help="Only captures of this concept.")] = None,
    model: Annotated[str | None, typer.Option(help="Only captures of this model, by alias or id.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the captures of a store, newest first."""
    from engine.store.directions_catalog import directions_alone

    entries = list_captures(store, concept=concept, model=model)
    alone = directions_alone(store, concept=concept, model=model)
    if as_json:
        listed = [{"name": one.name, "record": None, "problem": one.problem, "directions": one} for one in alone]
        print_json(msgspec.json.format(msgspec.json.encode([*entries, *listed])))
    else:
        print_data(_captures_table([entry.record for entry in entries if entry.record]))
        for entry in entries:
            if entry.problem:
                damaged = "damaged: " if is_damage(entry.problem) else ""
                print_data(Text(f"{entry.name} {damaged}{with_output(entry.problem, entry.name, store)}", style="red"))
        if alone:
            print_data("")
            print_data(_directions_table(alone))
    narrator = Narrator(quiet=False)
    empty = not entries and not alone
    if empty and (concept or model):
        wanted = " and ".join(f"{key} {value!r}" for key, value in (("concept", concept), ("model", model)) if value)
        narrator.say(
            visible(f"no capture matches {wanted}; `layerscope list{store_option(store)}` without filters shows all")
        )
    elif empty:
        narrator.say(f"no captures yet; create one with `{capture_command(store)}`")
    clean = f"layerscope verify{store_option(store)} --clean"
    for path in unfinished_saves(store):
        left = "unfinished replacement" if path.is_dir() else "temporary file of a save"
        narrator.say(f"{left}: {path}; `{clean}` deletes it unless a process is writing it")


def show(
    name: Annotated[str, typer.Argument(help="Name of a capture, or path of one of its files.")],
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Show how a capture was made, and its layer table."""
    from engine.store.directions_catalog import describe_directions
    from engine.store.directions_header import path_of

    paths = locate(capture_path(name, store))
    if name.endswith(DIRECTIONS) or (not paths.exist and path_of(paths).exists()):
        if not path_of(paths).exists():
            _explain_suffix(name, store)
        found = describe_directions(paths.store / paths.name)
        if as_json:
            print_json(msgspec.json.format(msgspec.json.encode(found)))
        else:
            print_data(_directions_lines(found))
        return
    record = find_record(name, store)
    if as_json:
        print_json(encode_record(record))
        return
    print_data(_provenance_table(record, capture_path(name, store)))
    print_data("")
    if "responses" in record:
        print_data(_responses_table(record))
        print_data("")
    print_data(layers_as_text(layers_chart(record)))
    for sentence in causal_findings(record):
        print_data(Text(sentence))


def _responses_table(record: CaptureRecord) -> Table:
    """The first few responses; of a contrast, to both prompts of a pair."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    positive, negative = record.get("responses", []), record.get("negative_responses", [])
    for number, response in enumerate(positive[:_RESPONSES_SHOWN]):
        label = f"positive response {number}" if negative else f"response {number}"
        table.add_row(Text(label, style="bold"), Text(excerpt(response["text"], _EXCERPT)))
        if negative:
            text = excerpt(negative[number]["text"], _EXCERPT)
            table.add_row(Text(f"negative response {number}", style="bold"), Text(text))
    return table


def _captures_table(records: list[CaptureRecord]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for column in ("name", "model", "concept", "pairs", "layers", "positions", "saved (UTC)"):
        numbers = column in {"pairs", "layers"}
        folds = column in {"name", "model", "concept"}  # never truncated, so that names can be copied
        table.add_column(column, justify="right" if numbers else "left", overflow="fold", no_wrap=not folds)
    for record in records:
        provenance = record["provenance"]
        table.add_row(
            record["name"],
            provenance["alias"] if provenance else "unknown",
            record["concept"] or "",
            str(record["num_pairs"] or ""),
            f"{len(record['captured_layers'])}/{record['num_layers']}",
            provenance["positions"] if provenance else "",
            record["created"][:16].replace("T", " "),
        )
    return table


def _origin(one: "SavedDirections") -> str:
    return f"imported from {one.file or 'vectors'}" if not one.capture else one.capture


def _directions_table(found: "list[SavedDirections]") -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for column in ("directions", "model", "concept", "from", "layers", "method"):
        short = column in {"layers", "method"}
        table.add_column(column, justify="right" if column == "layers" else "left", overflow="fold", no_wrap=short)
    for one in found:
        if one.problem:
            table.add_row(Text(one.name, style="red"), "", "", Text(one.problem, style="red"), "", "")
        else:
            table.add_row(
                *map(Text, (one.name, one.model, one.concept or "", _origin(one), str(len(one.layers)), one.method))
            )
    return table


def _directions_lines(found: "SavedDirections") -> Table:
    """What saved directions are."""
    leading = "" if found.leading is None else f", {found.leading} ranks first"
    lines = {
        "directions": found.name,
        "from": _origin(found) if not found.capture else f"the capture {found.capture}, {found.num_pairs} pairs",
        "concept": found.concept or "none",
        "model": found.model,
        "layers": f"{layers_in_words(found.layers)}{leading}",
        "width": str(found.width),
        "method": found.method,
    }
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for label, value in lines.items():
        table.add_row(Text(label, style="bold"), Text(visible(value)))
    return table


def _provenance_table(record: CaptureRecord, path: Path) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    lines = {"capture": record["name"], "saved": record["created"], "tensors": _tensors(record)}
    try:
        if not has_checksums(locate(path)):
            lines["checksums"] = "unverified: saved before shards had checksums"
    except StoreError as error:
        lines["checksums"] = visible(error.problem)
    if warning := origin_warning(path):
        lines["directions"] = visible(warning)
    for label, value in (lines | _provenance_lines(record["provenance"])).items():
        table.add_row(Text(label, style="bold"), value)
    return table


def _tensors(record: CaptureRecord) -> str:
    prompts = count_prompts(record)
    shape = f"{len(record['captured_layers'])} of {record['num_layers']} layers, width {record['hidden_size']}"
    counted = f"{prompts:,} prompt{'' if prompts == 1 else 's'}"
    return f"{record['data']['name']}, {record['data']['bytes'] / 1e6:.1f} MB: {counted}, {shape}"


def _batches(provenance: Provenance) -> str:
    size, budget = provenance["batch_size"], provenance.get("token_budget")
    batches = f"batches of {size}" if size else f"batches of {budget:,} tokens"
    reuse = provenance.get("prefix_reuse", "off")
    shared = ", prefix sharing" if reuse.startswith("on") else ""
    asked = provenance.get("compiled", "off")
    compiled = {"on": ", compiled blocks", "off": ""}.get(asked, f", not compiled ({asked.removeprefix('no: ')})")
    return batches + shared + compiled + (", oneDNN products" if provenance.get("products") == "oneDNN" else "")


def _response_line(provenance: Provenance) -> dict[str, str]:
    if "responses" not in provenance:
        return {}
    responses = provenance["responses"]
    if responses["origin"] == "given":
        return {"responses": "given with the prompts"}
    how = f"sampled with seed {responses['seed']}" if responses["sampled"] else "most likely tokens"
    settings = f", {responses['settings']}" if responses["settings"] else ""
    return {"responses": f"at most {responses['max_new_tokens']} tokens, {how}{settings}"}


def _provenance_lines(provenance: Provenance | None) -> dict[str, str]:
    if provenance is None:
        return {"provenance": "unknown: the tensors were not made by a capture function"}
    receipt = provenance["receipt"]
    changes = [*map(describe_adapter, provenance.get("adapters", [])), *provenance.get("altered", [])]
    changes += [f"autocast to {provenance['autocast']}"] if "autocast" in provenance else []
    return {
        "model": f"{provenance['model']} ({provenance['alias']}), {provenance['revision'] or 'revision unknown'}",
        "run": f"{provenance['dtype']} on {provenance['device']}, attention {provenance['attention']},"
        f" {provenance['mode']}, {_batches(provenance)}",
        "read": f"{provenance['site']}, positions {provenance['positions']}, blocks at {receipt['blocks']}",
        "prompts": f"chat template {provenance['chat_template'][:12]}" if provenance["chat_template"] else "plain text",
        **_response_line(provenance),
        "check": f"batching error {receipt['batched_error']:.1e} of the state norm"
        f" (tolerance {receipt['tolerance']:g})",
        "versions": ", ".join(f"{name} {version}" for name, version in provenance["versions"].items()),
    } | ({"changed": "; ".join(changes)} if changes else {})


COMMANDS = {
    "list": Command("list", list_store, LIST_HELP),
    "show": Command("show", show, SHOW_HELP, needs_arguments=True),
}
