"""Tools about models: which there are, load one, let one go."""

from dataclasses import replace
from typing import Annotated

from mcp.types import CallToolResult

from server.jobs import Job
from server.replies.jobs import JobReply, JobResult
from server.replies.models import ModelsReply, model_state
from server.replies.reply import send
from server.tools.arguments import ModelName, WaitS
from server.tools.jobs import answer
from server.tools.spec import ToolSpec
from server.workbench import Ctx, workbench


def list_models(ctx: Ctx) -> Annotated[CallToolResult, ModelsReply]:
    """List the language models that can be studied: their layers, size, whether they are on this machine and loaded."""
    bench = workbench(ctx)
    loaded = [model.name for model in bench.models.loaded()]
    layers = {model.name: model.config.num_layers for model in bench.models.loaded()}
    models = [
        model_state(replace(entry, layers=layers.get(entry.alias, entry.layers)), loaded)
        for entry in bench.settings.models().values()
    ]
    return send(
        ModelsReply(
            models=models,
            loaded_bytes=sum(model.bytes for model in bench.models.loaded()),
            budget_bytes=bench.settings.memory_bytes,
            next_step="capture_contrast(concept='honesty', model=...) loads a model by itself; prefer one that is here",
        )
    )


async def load_model(ctx: Ctx, model: ModelName, wait_s: WaitS = 40) -> Annotated[CallToolResult, JobReply]:
    """Load a model now, so that the next capture does not have to wait for it. Captures load models by themselves."""
    bench = workbench(ctx)
    model = bench.settings.require_allowed(model)[1].alias

    def work(job: Job) -> JobResult:
        job.checkpoint(f"loading {model}")
        layers = bench.models.get(model).config.num_layers
        return JobResult(
            model=model_state(replace(bench.settings.require_allowed(model)[1], layers=layers), [model]),
            next_step=f"capture_contrast(concept='honesty', model='{model}')",
        )

    return await answer(ctx, bench.jobs.start("load_model", work), wait_s)


def unload_model(ctx: Ctx, model: ModelName) -> Annotated[CallToolResult, ModelsReply]:
    """Let a loaded model go and free its memory. Captures are kept."""
    workbench(ctx).models.unload(model)
    return list_models(ctx)


TOOLS = (
    ToolSpec(list_models, "List models"),
    ToolSpec(load_model, "Load a model", writes=True, reaches_out=True),
    ToolSpec(unload_model, "Unload a model", writes=True, repeatable=False),
)
