"""Settings of a server, fixed when it starts: its store, tools, models and memory."""

from dataclasses import dataclass, field
from pathlib import Path

from engine.capture.request import MOST_IN_MEMORY
from engine.errors import RequestError, nearest
from engine.models.placement import LoadOptions
from engine.models.registry import find_source, list_models, user_registry_path
from engine.records.models import ModelListing
from engine.runtime import main_memory
from engine.store.names import PLAN, require_open

MOST_WAIT_S = 50.0
"""Maximum time that a call waits; clients give up after about 60 seconds."""


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server.

    Attributes:
        store: The folder of captures; nothing outside it is read or written for a client.
        read_only: Whether to offer only tools that change nothing.
        tools: Names of the tools to offer; all if empty.
        allowed_models: Models that may be loaded, as aliases, hub ids or paths; if empty, only the aliases.
        memory_bytes: Maximum bytes of weights that stay loaded, beyond the model in use.
        most_in_memory: Bytes of states above which a capture is saved as shards.
        load_options: Dtype and placement of models.
        shared: Whether several clients share the server, as over HTTP; none learns of the jobs of another.
    """

    store: Path
    read_only: bool = False
    tools: tuple[str, ...] = ()
    allowed_models: tuple[str, ...] = ()
    memory_bytes: int = 0
    most_in_memory: int = MOST_IN_MEMORY
    load_options: LoadOptions = field(default_factory=LoadOptions)
    shared: bool = False

    @property
    def concepts(self) -> Path:
        """The folder of concepts that clients define."""
        return self.store / "concepts"

    @property
    def prompts(self) -> Path:
        """The folder of prompt files that clients may name."""
        return self.store / "prompts"

    def require_usable(self) -> None:
        """Refuse settings with which every call would fail.

        Raises:
            RequestError: The store is not a folder, or the folder of one capture; or an allowed model does not exist,
                or goes by the same name as another.
            ModelError: The path of an allowed model holds no usable model.
            StoreError: The store is in a folder that the user may not open.
        """
        require_open(self.store)
        if self.store.exists() and not self.store.is_dir():
            raise RequestError(f"the store {self.store} is not a folder", next_step="give another with --store")
        if (self.store / PLAN).is_file():
            raise RequestError(
                f"{self.store} is the folder of one capture in shards, not a store",
                next_step=f"give its parent folder: --store {self.store.parent}",
            )
        self.models()

    def models(self) -> dict[str, ModelListing]:
        """Return the models that may be loaded, by the name that the engine uses.

        Raises:
            RequestError: An allowed model does not exist, or goes by the same name as another.
            ModelError: The path of an allowed model holds no usable model.
        """
        known = {listing.alias: listing for listing in list_models()}
        if not self.allowed_models:
            return known
        allowed = {model: known.get(model) or _unlisted(model) for model in self.allowed_models}
        _require_distinct(allowed)
        return allowed

    def require_allowed(self, model: str) -> tuple[str, ModelListing]:
        """Find a model that may be loaded.

        Args:
            model: Its alias, or the name it was allowed by.

        Returns:
            The name that the engine uses, and its listing, whose alias is the name that clients use.

        Raises:
            RequestError: The server does not allow the model; the message names the nearest. Or see `models`.
        """
        models = self.models()
        for meaning, listing in models.items():
            if model in (meaning, listing.alias):
                return meaning, listing
        names = [listing.alias for listing in models.values()]
        raise RequestError(
            f"this server does not load the model {model!r}; {nearest(model, names)}",
            next_step="call list_models; whoever starts the server can allow other models with --allow-model",
        )


def _unlisted(model: str) -> ModelListing:
    source = find_source(model)
    return ModelListing(source.alias, source, layers=0, parameters="", note="allowed when the server was started")


def _require_distinct(models: dict[str, ModelListing]) -> None:
    """Refuse different models of one name: clients and captures would mean either."""
    owners: dict[str, str] = {}
    for model, listing in models.items():
        for name in (model, listing.alias):
            other = owners.setdefault(name, model)
            if models[other].source != listing.source:
                raise RequestError(
                    f"two allowed models go by the name {name!r}: {other} and {model}",
                    expected="a different name for each",
                    next_step=f"give one an alias in {user_registry_path()}, as in [{listing.alias}-2], and allow that",
                )


def default_memory() -> int:
    """Return half of the memory of this machine or container."""
    return main_memory().total // 2
