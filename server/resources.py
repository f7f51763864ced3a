"""Resources: captures, concepts and models under addresses, with completion of their names."""

import json
from typing import Any

import msgspec
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ResourceNotFoundError
from mcp.types import Completion, PromptReference, ResourceTemplateReference

from engine.concepts import catalog
from engine.errors import LayerscopeError, nearest
from engine.store.catalog import list_captures, show_capture
from server.errors import cut
from server.remedies import REMEDIES
from server.settings import ServerSettings

_MOST_COMPLETIONS = 100


def add_resources(app: MCPServer[Any], settings: ServerSettings) -> None:
    """Offer `capture://{name}`, `concept://{name}` and `model://{alias}`.

    Args:
        app: The server.
        settings: Where its captures and concepts lie.
    """

    @app.resource("capture://{name}", mime_type="application/json", title="A capture")
    def capture(name: str) -> str:
        """A capture's whole record: provenance, prompts, factors, statistics, ranking, confounds."""
        try:
            return msgspec.json.encode(show_capture(name, store=settings.store)).decode()
        except LayerscopeError as error:
            raise ResourceNotFoundError(cut(error.said(REMEDIES))) from error

    @app.resource("concept://{name}", mime_type="application/json", title="A concept")
    def concept(name: str) -> str:
        """A concept's personas, templates and topics."""
        try:
            found = catalog.load_concept(name, settings.concepts, by_name_only=True)
        except LayerscopeError as error:
            raise ResourceNotFoundError(cut(error.said(REMEDIES))) from error
        return msgspec.json.encode(found).decode()

    @app.resource("model://{alias}", mime_type="application/json", title="A model")
    def model(alias: str) -> str:
        """A model's source, layers and size."""
        listings = {listing.alias: listing for listing in settings.models().values()}
        if alias not in listings:
            raise ResourceNotFoundError(cut(f"there is no model {alias!r}; {nearest(alias, listings)}"))
        entry = listings[alias]
        return json.dumps({"alias": alias, "model_id": entry.source.model_id, "layers": entry.layers})

    @app.completion()  # type: ignore[no-untyped-call, untyped-decorator]  # the SDK leaves it untyped
    async def complete(ref: Any, argument: Any, _context: Any) -> Completion | None:  # noqa: ANN401 - the SDK's types
        """Complete names of captures, concepts and models."""
        names = _names_for(settings, ref, argument.name)
        found = [name for name in names if name.lower().startswith(argument.value.lower())]
        return Completion(values=found[:_MOST_COMPLETIONS], total=len(found), has_more=len(found) > _MOST_COMPLETIONS)


def capture_names(settings: ServerSettings) -> list[str]:
    """Names of the captures that can be used, newest first."""
    if not settings.store.exists():
        return []
    return [entry.name for entry in list_captures(settings.store) if entry.record]


def _names_for(settings: ServerSettings, ref: Any, argument: str) -> list[str]:  # noqa: ANN401 - the SDK's types
    scheme = ref.uri.split("://")[0] if isinstance(ref, ResourceTemplateReference) else ""
    of_prompt = argument if isinstance(ref, PromptReference) else ""
    if scheme == "capture" or of_prompt == "capture":
        return capture_names(settings)
    if scheme == "concept" or of_prompt in {"concept", "one", "other"}:
        return [concept.name for concept in catalog.list_concepts(settings.concepts)]
    if scheme == "model" or of_prompt == "model":
        return [listing.alias for listing in settings.models().values()]
    return []
