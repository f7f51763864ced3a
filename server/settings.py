"""What a server may do, fixed when it starts."""

from dataclasses import dataclass, field
from pathlib import Path

from engine.errors import RequestError, nearest
from engine.models.placement import LoadOptions
from engine.models.registry import find_source, list_models
from engine.records.models import ModelListing
from engine.runtime import main_memory
from engine.store.names import MOST_IN_MEMORY, PLAN

MOST_WAIT_S = 50.0
"""Longest that one call waits: clients give up at about 60 seconds."""


@dataclass(frozen=True)
class ServerSettings:
    """What a server may do.

    Attributes:
        store: The folder of captures; nothing outside it is read or written for a client.
        read_only: Whether only tools that change nothing are offered.
        tools: Names of the tools to offer; all if empty.
        allowed_models: Models that may be loaded, as aliases, hub ids or paths; every alias if empty, and no other.
        memory_bytes: Most bytes of weights that stay loaded; the model in use always does.
        most_in_memory: Bytes of states above which a capture goes into shards.
        load_options: How models are loaded.
    """

    store: Path
    read_only: bool = False
    tools: tuple[str, ...] = ()
    allowed_models: tuple[str, ...] = ()
    memory_bytes: int = 0
    most_in_memory: int = MOST_IN_MEMORY
    load_options: LoadOptions = field(default_factory=LoadOptions)

    @property
    def concepts(self) -> Path:
        """Where concepts that clients define are kept."""
        return self.store / "concepts"

    @property
    def prompts(self) -> Path:
        """Where files of prompts lie that clients may name."""
        return self.store / "prompts"

    def require_usable(self) -> None:
        """Refuse at the start what every call would stumble over.

        Raises:
            RequestError: The store is no folder or that of one capture, or a model that was allowed does not exist.
            ModelError: Nothing usable lies where an allowed model should.
        """
        if self.store.exists() and not self.store.is_dir():
            raise RequestError(f"the store {self.store} is not a folder", next_step="give another with --store")
        if (self.store / PLAN).is_file():
            raise RequestError(
                f"{self.store} is the folder of one capture in shards, not a store",
                next_step=f"give the folder that it lies in: --store {self.store.parent}",
            )
        self.models()

    def models(self) -> dict[str, ModelListing]:
        """The models that may be loaded, by what the engine calls them; an alias stays what it is.

        Raises:
            RequestError: One that was allowed does not exist.
            ModelError: Nothing usable lies where it should.
        """
        known = {listing.alias: listing for listing in list_models()}
        if not self.allowed_models:
            return known
        return {model: known.get(model) or _unlisted(model) for model in self.allowed_models}

    def require_allowed(self, model: str) -> tuple[str, ModelListing]:
        """What the engine and clients call a model that may be loaded.

        Args:
            model: Its alias, or as it was allowed.

        Raises:
            RequestError: It may not be loaded here; the message says which may.
        """
        models = self.models()
        for meaning, listing in models.items():
            if model in (meaning, listing.alias):
                return meaning, listing
        names = [listing.alias for listing in models.values()]
        raise RequestError(
            f"this server does not load the model {model!r}; {nearest(model, names)}",
            next_step="call list_models; other models are allowed by starting the server with --allow-model",
        )


def _unlisted(model: str) -> ModelListing:
    source = find_source(model)
    return ModelListing(source.alias, source, layers=0, parameters="", note="allowed when the server was started")


def default_memory() -> int:
    """Half of what this machine has, or the container that the server runs in."""
    return main_memory().total // 2
