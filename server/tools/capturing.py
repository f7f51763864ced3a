"""Make captures: of a contrast, of a prompt."""

from collections.abc import Callable
from typing import Annotated

from mcp.types import CallToolResult
from pydantic import BaseModel, ConfigDict, Field

from engine.capture.layers import LayerSpec
from engine.capture.positions import parse_positions
from engine.capture.sites import DEFAULT_SITE, parse_site
from engine.concepts import catalog
from engine.concepts.pairs import DEFAULT_SAMPLES
from engine.errors import RequestError
from engine.records.captures import CaptureData
from engine.records.concepts import Concept, Factors
from engine.store.names import default_name, locate, require_free
from server.jobs import Job
from server.replies.jobs import JobReply, JobResult
from server.shelf import LoadedModel
from server.tools.arguments import (
    LONGEST_NAME,
    LONGEST_TEXT,
    DryRun,
    Layers,
    ModelName,
    NewName,
    Positions,
    Replace,
    Site,
    WaitS,
)
from server.tools.jobs import answer
from server.tools.spec import ToolSpec
from server.workbench import Ctx, workbench

Work = Callable[[LoadedModel, Job], CaptureData | None]


class PromptPair(BaseModel):
    """A prompt of each side that differ only in what the contrast is about."""

    model_config = ConfigDict(extra="forbid")

    positive: str = Field(min_length=1, max_length=LONGEST_TEXT)
    negative: str = Field(min_length=1, max_length=LONGEST_TEXT)
    persona: str = Field(
        default="",
        description="Pairs of one persona are left out together; give all three with every pair, or none",
        max_length=LONGEST_NAME,
    )
    template: str = Field(default="", max_length=LONGEST_NAME)
    topic: str = Field(default="", max_length=LONGEST_NAME)


async def capture_contrast(
    ctx: Ctx,
    concept: Annotated[
        str | None, Field(description="Name from list_concepts; or give pairs", max_length=LONGEST_NAME)
    ] = None,
    pairs: Annotated[
        list[PromptPair] | None,
        Field(description="Pairs of your own, taken as they are; 30 or more", min_length=1, max_length=2000),
    ] = None,
    model: ModelName = "smollm2",
    max_samples: Annotated[int, Field(ge=4, le=2000, description="Pairs to draw from the concept")] = DEFAULT_SAMPLES,
    layers: Layers = "all",
    positions: Positions = "last",
    site: Site = DEFAULT_SITE,
    name: NewName = None,
    replace: Replace = False,
    dry_run: DryRun = False,
    wait_s: WaitS = 40,
) -> Annotated[CallToolResult, JobReply]:
    """Run the pairs of a concept through a model, save the hidden states, and rank the layers by how they separate.

    This is the main tool. It loads the model if need be, runs in the background if it takes long, and answers with the
    layer that leads, how sure that is, and what it is tied with.
    """
    if (concept is None) == (pairs is None):
        raise RequestError(
            "give a concept, or pairs of your own, and not both",
            next_step="list_concepts shows the concepts",
        )
    bench = workbench(ctx)
    chosen: Concept | list[PromptPair] = pairs or []
    if concept is not None:
        chosen = catalog.load_concept(concept, bench.settings.concepts, by_name_only=True)
    factors = _factors(pairs or [])
    what = chosen.name if isinstance(chosen, Concept) else "pairs"
    how = {"layers": layers, "positions": positions, "site": site}

    def capture(loaded: LoadedModel, job: Job) -> CaptureData | None:
        from server.capturing import capture_concept, capture_pairs

        if isinstance(chosen, Concept):
            return capture_concept(loaded, chosen, max_samples, how, job, dry_run=dry_run)
        return capture_pairs(loaded, [_texts(pair) for pair in chosen], factors, how, job, dry_run=dry_run)

    return await _run(ctx, "capture_contrast", model, what, name, how, capture, replace=replace, wait_s=wait_s)


async def capture_prompt(
    ctx: Ctx,
    prompt: Annotated[
        str,
        Field(min_length=1, max_length=LONGEST_TEXT, description="A text, taken as it is: no chat template is applied"),
    ],
    model: ModelName = "smollm2",
    layers: Layers = "all",
    positions: Positions = "all",
    site: Site = DEFAULT_SITE,
    name: NewName = None,
    replace: Replace = False,
    dry_run: DryRun = False,
    wait_s: WaitS = 40,
) -> Annotated[CallToolResult, JobReply]:
    """Save the hidden states of one prompt. To find the layers of a concept, use capture_contrast instead."""
    how = {"layers": layers, "positions": positions, "site": site}

    def capture(loaded: LoadedModel, job: Job) -> CaptureData | None:
        from server.capturing import capture_text

        return capture_text(loaded, prompt, how, job, dry_run=dry_run)

    return await _run(ctx, "capture_prompt", model, "prompt", name, how, capture, replace=replace, wait_s=wait_s)


async def _run(
    ctx: Ctx,
    kind: str,
    model: str,
    what: str,
    name: str | None,
    how: dict[str, str],
    capture: Work,
    *,
    replace: bool,
    wait_s: float,
) -> CallToolResult:
    """Check what can be checked at once, then capture and save in a job."""
    bench = workbench(ctx)
    model = bench.settings.require_allowed(model)[1].alias
    parse_positions(how["positions"])
    parse_site(how["site"], _layers(how["layers"]))
    target = name or default_name(model, what)
    require_free(locate(target, bench.settings.store), force=replace)

    def work(job: Job) -> JobResult | None:
        from server.capturing import capture_and_save

        return capture_and_save(bench, model, target, capture, job, replace=replace)

    return await answer(ctx, bench.jobs.start(kind, work), wait_s)


def _layers(layers: str) -> LayerSpec:
    return None if layers == "all" else layers


def _texts(pair: PromptPair) -> tuple[str, str]:
    return pair.positive, pair.negative


def _factors(pairs: list[PromptPair]) -> list[Factors] | None:
    said = [bool(pair.persona or pair.template or pair.topic) for pair in pairs]
    if not any(said):
        return None
    if not all(said):
        raise RequestError(
            f"{said.count(False)} of {len(pairs)} pairs say no persona, template or topic, the others do",
            expected="all three with every pair, or none",
        )
    return [Factors(persona=pair.persona, template=pair.template, topic=pair.topic) for pair in pairs]


TOOLS = (
    ToolSpec(capture_contrast, "Capture a contrast", writes=True, repeatable=False, reaches_out=True),
    ToolSpec(capture_prompt, "Capture a prompt", writes=True, repeatable=False, reaches_out=True),
)
