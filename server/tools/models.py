"""Tools for models: list them, load one, unload one."""

from dataclasses import replace
from typing import Annotated, ClassVar

from mcp.types import CallToolResult
from pydantic import BaseModel, Field

from engine.records.models import ModelListing
from server.jobs import ServerJob
from server.tools.answer import Page, send
from server.tools.jobs import JobOutline, JobReply, JobResult, answer
from server.tools.spec import ModelName, Offset, ToolSpec, WaitS
from server.workbench import Ctx, workbench

_PAGE = 40


class ModelState(BaseModel):
    """A model that can be loaded."""

    name: str
    model_id: str
    layers: int = Field(description="Number of decoder blocks; 0: known once loaded")
    size: str = Field(description="Number of parameters, e.g. 135M")
    here: bool = Field(description="Whether it loads without a download")
    loaded: bool
    note: str = ""


class ModelsReply(Page):
    """A page of models."""

    paged: ClassVar[tuple[str, ...]] = ("models",)
    models: list[ModelState]
    loaded_bytes: int = Field(description="Weights in memory")
    budget_bytes: int = Field(description="Limit above which the least recently used model is unloaded")


def list_models(ctx: Ctx, offset: Offset = 0) -> Annotated[CallToolResult, ModelsReply]:
    """List the language models: layers, size, whether they load without a download, and whether they are loaded."""
    bench = workbench(ctx)
    loaded = {model.config.source.key: model for model in bench.models.loaded()}
    listings = list(bench.settings.models().values())
    after = offset + _PAGE
    return send(
        ModelsReply(
            models=[
                model_state(replace(entry, layers=loaded[entry.source.key].config.num_layers), loaded=True)
                if entry.source.key in loaded
                else model_state(entry)
                for entry in listings[offset:after]
            ],
            total=len(listings),
            next_offset=after if after < len(listings) else None,
            loaded_bytes=sum(model.bytes for model in loaded.values()),
            budget_bytes=bench.settings.memory_bytes,
            next_step="capture_contrast(concept='honesty', model=...) loads the model; prefer a local one (here)",
        )
    )


async def load_model(
    ctx: Ctx,
    model: ModelName,
    unload: Annotated[bool, Field(description="Unload it instead and free its memory; captures stay")] = False,
    wait_s: WaitS = 40,
) -> Annotated[CallToolResult, JobOutline]:
    """Load a model before the next capture needs it, or unload one. Captures load their model themselves."""
    bench = workbench(ctx)
    listing = bench.settings.require_allowed(model)[1]
    name = listing.alias
    if unload:
        bench.models.unload(name)
        return send(JobReply(status="done", model=model_state(listing), next_step="list_models"))

    def work(job: ServerJob) -> JobResult:
        job.checkpoint(f"loading {name}")
        layers = bench.models.get(name).config.num_layers
        return JobResult(
            model=model_state(replace(listing, layers=layers), loaded=True),
            next_step=f"capture_contrast(concept='honesty', model='{name}')",
        )

    return await answer(ctx, bench.jobs.start("load_model", work), wait_s)


def model_state(listing: ModelListing, *, loaded: bool = False) -> ModelState:
    """Describe a model as clients see it.

    Args:
        listing: The model.
        loaded: Whether it is loaded.
    """
    return ModelState(
        name=listing.alias,
        model_id=listing.source.model_id,
        layers=listing.layers,
        size=listing.parameters,
        here=listing.source.local,
        loaded=loaded,
        note=listing.note,
    )


TOOLS = (
    ToolSpec(list_models, "List models"),
    ToolSpec(load_model, "Load or unload a model", writes=True, reaches_out=True),
)
