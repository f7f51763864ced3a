"""The state that the tools of a server share: settings, loaded models and jobs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
from mcp.server.mcpserver import Context

from engine.errors import RequestError, nearest
from engine.models.captured import find_captured_model, require_captured_model
from engine.records.captures import Provenance
from engine.records.files import CaptureRecord
from engine.remedies import Remedy
from engine.store.catalog import capture_names, show_capture
from engine.store.names import locate
from engine.store.ownership import only_directions
from server.jobs import Jobs
from server.settings import ServerSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from engine.records.models import ModelConfig, ModelListing

_NOT_CAPTURED = (
    "capture it again with a model from list_models; the person who starts the server can allow that of the capture"
    " with --allow-model"
)


@dataclass(frozen=True)
class LoadedModel:
    """A loaded model with its tokenizer.

    Attributes:
        name: The name that clients use.
        model: The model.
        tokenizer: Its tokenizer.
        config: Its layers and sizes.
        bytes: Size of its weights, without those that stay on disk.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: ModelConfig
    bytes: int


class ModelShelf:
    """The loaded models of a server, within a memory budget.

    The least recently used model is unloaded first. Only the thread that runs jobs loads models; any thread may list or
    unload them.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._loaded: OrderedDict[str, LoadedModel] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str) -> LoadedModel:
        """Return a model, after loading it if needed; others are unloaded to make room.

        Raises:
            RequestError: The server does not allow the model.
            ModelError: It cannot be loaded.
        """
        meaning, listing = self._settings.require_allowed(name)
        with self._lock:
            known = self._find(listing)
            if known is not None:
                self._loaded.move_to_end(known.name)
                return known
            self._loaded.pop(listing.alias, None)
        from engine.models.loading import load_model_and_tokenizer  # imports torch, so only when a model is needed

        options = self._settings.load_options
        model, tokenizer, config = load_model_and_tokenizer(meaning, **options.arguments())
        size = sum(weight.numel() * weight.element_size() for weight in model.parameters() if not weight.is_meta)
        loaded = LoadedModel(listing.alias, model, tokenizer, config, size)
        with self._lock:
            self._loaded[loaded.name] = loaded
            while len(self._loaded) > 1 and self._total() > self._settings.memory_bytes:
                self._loaded.popitem(last=False)
        return loaded

    def captured(self, provenance: Provenance) -> LoadedModel:
        """Return the model of a capture, after loading it if needed.

        Raises:
            RequestError: The server does not allow it, or allows another model of its name instead.
            ModelError: It cannot be loaded.
        """
        models = self._settings.models()
        with self._lock:
            loaded = {name: self._find(listing) for name, listing in models.items()}
        name = find_captured_model(
            provenance,
            {name: listing.source for name, listing in models.items()},
            {name: model.config for name, model in loaded.items() if model is not None},
            where="that this server allows",
            advice=_NOT_CAPTURED,
        )
        found = self.get(name)
        require_captured_model(found.config, provenance, advice=_NOT_CAPTURED)
        return found

    def unload(self, name: str) -> None:
        """Unload a model; a job that uses it keeps it until it ends.

        Raises:
            RequestError: It is not loaded.
        """
        with self._lock:
            if name not in self._loaded:
                loaded = f"one of {', '.join(self._loaded)}" if self._loaded else ""
                raise RequestError(f"the model {name!r} is not loaded", expected=loaded)
            del self._loaded[name]

    def loaded(self) -> list[LoadedModel]:
        """List the loaded models, least recently used first."""
        with self._lock:
            return list(self._loaded.values())

    def _find(self, listing: ModelListing) -> LoadedModel | None:
        """Return a loaded model, unless its alias or its files have changed since it was loaded."""
        known = self._loaded.get(listing.alias)
        return known if known is not None and known.config.source.key == listing.source.key else None

    def _total(self) -> int:
        return sum(model.bytes for model in self._loaded.values())


@dataclass(frozen=True)
class Workbench:
    """The state that the tools of a server share.

    Attributes:
        settings: What the tools may do.
        models: The loaded models.
        jobs: The jobs of all clients.
    """

    settings: ServerSettings
    models: ModelShelf
    jobs: Jobs


Ctx = Context[Workbench, Any]


@asynccontextmanager
async def open_workbench(settings: ServerSettings, at_work: threading.Lock) -> AsyncIterator[Workbench]:
    """Open a workbench; on exit, cancel its jobs and wait for them.

    Args:
        settings: What the server may do.
        at_work: Held while a job runs.
    """
    async with anyio.create_task_group() as tasks:
        jobs = Jobs(tasks, at_work, shared=settings.shared)
        try:
            yield Workbench(settings, ModelShelf(settings), jobs)
        finally:
            jobs.cancel_all()


def find_capture(ctx: Ctx, name: str) -> CaptureRecord:
    """Read the record of a capture.

    Raises:
        RequestError: There is no capture of that name; the message names the nearest.
        StoreError: The capture cannot be used.
    """
    store = workbench(ctx).settings.store
    paths = locate(name, store)
    if not paths.exist:
        names = capture_names(store) if store.exists() else []
        hint = only_directions(paths) or nearest(name, names)
        raise RequestError(f"there is no capture called {name!r}; {hint}", next_step=Remedy.LIST_CAPTURES)
    return show_capture(name, store=store)


def find_contrast(ctx: Ctx, name: str) -> CaptureRecord:
    """Read the record of a contrast.

    Raises:
        RequestError: There is no capture of that name, or it is not a contrast.
        StoreError: The capture cannot be used.
    """
    record = find_capture(ctx, name)
    if record["kind"] != "contrast":
        raise RequestError(
            f"the capture {record['name']!r} is not a contrast: it has no two classes",
            next_step=Remedy.CAPTURE_CONTRAST,
        )
    return record


def workbench(ctx: Ctx) -> Workbench:
    """Return the workbench of the server that handles a call."""
    found: Workbench = ctx.request_context.lifespan_context
    return found
