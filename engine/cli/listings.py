"""What there is to choose from: models and concepts, as tables or JSON."""

import msgspec
from rich.table import Table

from engine.cli.console import print_data, print_json
from engine.concepts.catalog import list_concepts, user_concepts_path
from engine.models.registry import list_models, user_registry_path


def print_models(*, as_json: bool) -> None:
    """The models that have a name: source, layers, size, and whether they load here without a download."""
    listings = list_models()
    if as_json:
        print_json(msgspec.json.format(msgspec.json.encode(listings)))
        return
    table = _table("model", "layers", "size", "here", "source")
    for listing in listings:
        source = listing.source
        place = source.revision if source.kind == "package" else source.model_id
        here = "yes" if source.local else "no"
        table.add_row(listing.alias, str(listing.layers), listing.parameters, here, place or source.location)
    print_data(table)
    print_data(f"\nhere: loads without a download. Your own: {user_registry_path()}")


def print_concepts(*, as_json: bool) -> None:
    """The concepts: what is contrasted, and how many pairs they make."""
    concepts = list_concepts()
    if as_json:
        print_json(msgspec.json.format(msgspec.json.encode(concepts)))
        return
    table = _table("concept", "contrast", "pairs", "description")
    for concept in concepts:
        pairs = len(concept.personas) * len(concept.templates) * len(concept.topics)
        table.add_row(concept.name, f"{concept.positive} / {concept.negative}", str(pairs), concept.description)
    print_data(table)
    print_data(f"\nYour own: {user_concepts_path()}/*.toml")


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in {"layers", "size", "pairs"} else "left")
    return table
