"""Resources (captures, concepts and models by URI) and prompts that start a study."""

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Annotated, Any

import msgspec
from anyio import to_thread
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ResourceNotFoundError
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_PARAMS,
    Completion,
    ListResourcesResult,
    PromptArgument,
    PromptReference,
    Resource,
    ResourceTemplateReference,
)
from pydantic import Field

from engine.concepts import catalog
from engine.errors import LayerscopeError, nearest
from engine.store.catalog import list_captures, show_capture
from server.errors import cut
from server.settings import ServerSettings
from server.tools.answer import MOST_BYTES

_MOST_ENTRIES = 50
_AROUND = 512  # bytes of an answer around its entries


def add_resources(app: MCPServer[Any], settings: ServerSettings) -> None:
    """Add the resources `capture://{name}`, `concept://{name}` and `model://{alias}`.

    Args:
        app: The server.
        settings: Its settings, which name the store and the models.
    """

    @app.resource("capture://{name}", mime_type="application/json", title="A capture")
    def capture(name: str) -> str:
        """The whole record of a capture, from provenance to ranking."""
        try:
            return msgspec.json.encode(show_capture(name, store=settings.store)).decode()
        except LayerscopeError as error:
            raise ResourceNotFoundError(cut(error.said("server"))) from error

    @app.resource("concept://{name}", mime_type="application/json", title="A concept")
    def concept(name: str) -> str:
        """The personas, templates and topics of a concept."""
        try:
            found = catalog.load_concept(name, settings.concepts, by_name_only=True)
        except LayerscopeError as error:
            raise ResourceNotFoundError(cut(error.said("server"))) from error
        return msgspec.json.encode(found).decode()

    @app.resource("model://{alias}", mime_type="application/json", title="A model")
    def model(alias: str) -> str:
        """The id and number of layers of a model."""
        listings = {listing.alias: listing for listing in settings.models().values()}
        if alias not in listings:
            raise ResourceNotFoundError(cut(f"there is no model {alias!r}; {nearest(alias, listings)}"))
        entry = listings[alias]
        return json.dumps({"alias": alias, "model_id": entry.source.model_id, "layers": entry.layers})

    @app.completion()  # type: ignore[no-untyped-call, untyped-decorator]  # the SDK leaves it untyped
    async def complete(ref: Any, argument: Any, _context: Any) -> Completion | None:  # noqa: ANN401 - the SDK's types
        """Complete the names of captures, concepts and models."""
        names = await to_thread.run_sync(_names_for, settings, ref, argument.name)
        found = [name for name in names if name.lower().startswith(argument.value.lower())]
        shown = first_within_limit(found)
        return Completion(values=shown, total=len(found), has_more=len(found) > len(shown))


def add_prompts(app: MCPServer[Any]) -> None:
    """Add three prompts that start a study.

    Args:
        app: The server.
    """

    @app.prompt(title="Find a concept's layers")
    def find_layers(
        concept: Annotated[str, Field(description="A concept, e.g. honesty")],
        model: Annotated[str, Field(description="A model, e.g. smollm2")] = "smollm2",
    ) -> str:
        """Find the layers of a model that carry a concept, with their uncertainty."""
        return (
            f"Find the layers of the model {model!r} that carry the concept {concept!r}.\n"
            "1. list_concepts: is it there? If not, define_concept, with 24 personas whose roles differ only in it.\n"
            f"2. capture_contrast(concept={concept!r}, model={model!r}); if it returns a job handle, wait_for_job.\n"
            "3. rank_layers: report the leading layer with its interval, every tied layer, and the p-value.\n"
            "4. describe_capture: report each confound, and whether it could explain the result.\n"
            "5. plot_capture, and inspect_layer at the leading layer: which pairs are misordered, and why?\n"
            "   inspect_layer with against=LAYER explains why one layer ranks above another.\n"
            "Do not call a tied layer the best; say plainly if nothing was found."
        )

    @app.prompt(title="Compare two concepts")
    def compare_concepts(
        one: Annotated[str, Field(description="A concept, e.g. honesty")],
        other: Annotated[str, Field(description="Another, e.g. empathy")],
        model: Annotated[str, Field(description="A model, e.g. smollm2")] = "smollm2",
    ) -> str:
        """Find out whether two concepts share a direction in a model."""
        return (
            f"Compare the concepts {one!r} and {other!r} in the model {model!r}.\n"
            f"1. capture_contrast for each, with the same model, positions and site.\n"
            "2. rank_layers for each: at which layers do both separate reliably?\n"
            "3. compare_captures: at those layers, is the cosine beyond random_within, and how close to halves_reach?\n"
            "4. plot_capture with compare_with, and describe the picture.\n"
            "Interpret the cosine only where both concepts separate better than the permutation null."
        )

    @app.prompt(title="Audit a contrast for confounds")
    def audit_contrast(capture: Annotated[str, Field(description="Name of a capture")]) -> str:
        """Check whether something other than the concept explains a contrast."""
        return (
            f"Audit the capture {capture!r} for confounds.\n"
            f"1. describe_capture(name={capture!r}, detail='full'): length, capitals, signs, words and their order.\n"
            "2. Read the example prompts of both classes: what else differs? Valence, politeness?\n"
            f"3. rank_layers(name={capture!r}, detail='full'): which held-out factor is worst, and by how much?\n"
            "4. inspect_layer at the leading layer: do the misordered pairs share a persona, template or topic?\n"
            "5. Propose better pairs, check them with define_concept(dry_run=true), define and capture them, and"
            " compare_captures with the first."
        )


def wrong_prompt_arguments(prompt: str, given: Mapping[str, str], known: Sequence[PromptArgument]) -> str:
    """Say which arguments of a prompt are missing or unknown; empty if none is.

    Args:
        prompt: The prompt's name.
        given: The arguments that a client sends.
        known: The arguments that the prompt has.
    """
    missing = [argument.name for argument in known if argument.required and argument.name not in given]
    if missing:
        needed = "; ".join(f"{argument.name}: {argument.description}" for argument in known if argument.required)
        return f"the prompt {prompt} needs {', '.join(missing)}. Expected: {needed}."
    names = [argument.name for argument in known]
    unknown = sorted(set(given) - set(names))
    return f"the prompt {prompt} has no argument {unknown[0]!r}; {nearest(unknown[0], names)}" if unknown else ""


def list_page(settings: ServerSettings, cursor: str | None) -> ListResourcesResult:
    """List usable captures as resources, newest first: one page, and the cursor of the next.

    Args:
        settings: The server's settings.
        cursor: The last capture of the previous page; None for the first page.

    Raises:
        MCPError: The cursor names no capture.
    """
    names = capture_names(settings)
    if cursor is not None and cursor not in names:
        raise MCPError(INVALID_PARAMS, cut(f"there is no page after {cursor!r}. Next: list from the start."))
    rest = names if cursor is None else names[names.index(cursor) + 1 :]
    resources = [Resource(uri=f"capture://{name}", name=name, mime_type="application/json") for name in rest]
    sizes = [len(resource.model_dump_json(by_alias=True, exclude_none=True)) for resource in resources]
    shown = resources[: _count_within_limit(sizes)]
    return ListResourcesResult(resources=shown, next_cursor=shown[-1].name if len(shown) < len(resources) else None)


def first_within_limit(names: list[str]) -> list[str]:
    """The first names that an answer has room for."""
    return names[: _count_within_limit([len(json.dumps(name)) for name in names])]


def _count_within_limit(sizes: list[int]) -> int:
    """How many entries of these sizes, in bytes with commas between, an answer has room for."""
    totals = accumulate(size + 1 for size in sizes[:_MOST_ENTRIES])
    return sum(total <= MOST_BYTES - _AROUND for total in totals)


def capture_names(settings: ServerSettings) -> list[str]:
    """List the names of the usable captures, newest first."""
    if not settings.store.exists():
        return []
    return [entry.name for entry in list_captures(settings.store) if entry.record]


def _names_for(settings: ServerSettings, ref: Any, argument: str) -> list[str]:  # noqa: ANN401 - the SDK's types
    scheme = ref.uri.split("://")[0] if isinstance(ref, ResourceTemplateReference) else ""
    of_prompt = argument if isinstance(ref, PromptReference) else ""
    if scheme == "capture" or of_prompt == "capture":
        return capture_names(settings)
    if scheme == "concept" or of_prompt in {"concept", "one", "other"}:
        return [concept.name for concept in catalog.list_concepts(settings.concepts, problems=[])]
    if scheme == "model" or of_prompt == "model":
        return [listing.alias for listing in settings.models().values()]
    return []
