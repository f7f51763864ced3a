"""`layerscope concepts`: list the concepts, show one, and check one before a model runs."""

from typing import Annotated

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from engine.cli.console import Command, CommandGroup, Narrator, print_data, print_json, print_lines
from engine.cli.store import AsJson, print_concepts
from engine.concepts.catalog import concept_as_toml, load_concept
from engine.concepts.pairs import DEFAULT_SAMPLES
from engine.errors import visible
from engine.plots.findings import p_in_words
from engine.records.results import ConceptCheck

HELP = """List the concepts, show the texts of one, or check one before a model runs.

[bold]Examples[/bold]

  layerscope concepts
  layerscope concepts show honesty
  layerscope concepts check mine.toml
"""

SHOW_HELP = """Print a concept as TOML, the format for your own.

[bold]Examples[/bold]

  layerscope concepts show honesty
  layerscope concepts show honesty > mine.toml
"""

CHECK_HELP = """Check the texts of a concept before a model runs: confounds, balance and design.

Warnings do not change the exit code.

[bold]Examples[/bold]

  layerscope concepts check mine.toml
  layerscope concepts check honesty --max-samples 0 --json
"""

Named = Annotated[str, typer.Argument(help="Name or .toml file of a concept.")]


def concepts(context: typer.Context, as_json: AsJson = False) -> None:
    """List the concepts, unless a subcommand is called."""
    if context.invoked_subcommand is None:
        print_concepts(as_json=as_json)


def show(concept: Named, as_json: AsJson = False) -> None:
    """Print the texts of a concept."""
    found = load_concept(concept)
    if as_json:
        print_json(msgspec.json.format(msgspec.json.encode(found)))
    else:
        print_lines(concept_as_toml(found))


def check(
    concept: Named,
    max_samples: Annotated[
        int,
        typer.Option("--max-samples", "-n", min=0, help="Maximum number of pairs, sampled evenly (0: all)."),
    ] = DEFAULT_SAMPLES,
    seed: Annotated[int, typer.Option(help="Seed for sampling pairs.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Check the texts of a concept."""
    loaded = load_concept(concept)
    with Narrator(quiet=False).working("checking the texts"):
        from engine.stats.concept_check import check_concept

        found = check_concept(loaded, max_samples=max_samples or None, seed=seed)
    if as_json:
        print_json(msgspec.json.format(msgspec.json.encode(found)))
        return
    print_data(_design(found))
    if found["confounds"]["checks"]:
        print_data(_baselines(found))
        print_data("")
    for line in _notes(found):
        print_data(Text(line))
    for warning in found["warnings"]:
        print_data(Text(f"warning: {warning}", style="yellow"))


def _design(found: ConceptCheck) -> Text:
    counted = [f"{count} {factor}{'' if count == 1 else 's'}" for factor, count in found["groups"].items()]
    reached = [f"{factor} {p_in_words(value)}" for factor, value in found["smallest_p"].items()]
    return Text(
        f"{visible(found['concept'])}: {found['pairs']} pairs from {', '.join(counted[:-1])} and {counted[-1]}\n"
        f"Smallest p-value that this design can reach: {', '.join(reached)}.\n"
    )


def _baselines(found: ConceptCheck) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("baseline without the model", "pairs in order", "AUROC", "p"):
        table.add_column(column, justify="left" if column.startswith("baseline") else "right")
    for row in found["confounds"]["checks"]:
        share, p_value = f"{row['within_pairs']:.0%}", p_in_words(row["p_value"])
        table.add_row(row["what"], share, f"{row['auroc']:.2f}", p_value)
    return table


def _notes(found: ConceptCheck) -> list[str]:
    negations = found["negations"]
    words = [f"{one['text']!r} {one['positive']}/{one['negative']}" for one in found["telltale"]]
    return [
        "Negations in the text of one class only: positive in"
        f" {negations['positive']} personas, negative in {negations['negative']}.",
        *([f"Words of several personas of one class (positive/negative): {', '.join(words)}."] if words else []),
        *([f"To gain precision: {'; '.join(found['advice'])}."] if found["advice"] else []),
        *(f"Not checked: {each}." for each in found["unchecked"]),
    ]


COMMANDS = {
    "concepts": CommandGroup(
        "concepts",
        concepts,
        HELP,
        (
            Command("show", show, SHOW_HELP, needs_arguments=True),
            Command("check", check, CHECK_HELP, needs_arguments=True),
        ),
    )
}
