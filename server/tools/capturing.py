"""Tools that capture: a contrast, or prompts."""

from dataclasses import dataclass
from dataclasses import replace as replace_in
from functools import partial
from typing import Annotated, TypeVar

from anyio import to_thread
from mcp.types import CallToolResult
from pydantic import BaseModel, ConfigDict, Field

from engine.capture.request import CaptureRequest, Source
from engine.capture.selection import DEFAULT_POSITIONS, SINGLE_PROMPT_POSITIONS
from engine.capture.sites import DEFAULT_SITE, SITES
from engine.concepts import catalog
from engine.concepts.pair_files import PairFile, WrittenPairs
from engine.concepts.pairs import DEFAULT_SAMPLES
from engine.concepts.text_files import PromptFile, find_texts
from engine.errors import RequestError
from engine.jobs import JobCancelled
from engine.plots.findings import describe_findings
from engine.records.captures import CaptureEstimate, Factors
from engine.records.files import CaptureRecord, record_warnings
from engine.store.catalog import show_capture
from engine.store.names import CapturePaths, default_name, locate
from engine.store.ownership import require_free
from server.jobs import ServerJob
from server.tools.captures import outline_capture
from server.tools.jobs import JobOutline, JobResult, answer
from server.tools.spec import (
    LONGEST_NAME,
    LONGEST_TEXT,
    TOKENS_KEPT,
    DryRun,
    Layers,
    ModelName,
    NewName,
    Positions,
    Replace,
    Site,
    Timed,
    ToolSpec,
    WaitS,
)
from server.workbench import Ctx, Workbench, workbench

Texts = TypeVar("Texts", PromptFile, PairFile)


class PromptPair(BaseModel):
    """A positive and a negative prompt that differ only in the contrast."""

    model_config = ConfigDict(extra="forbid")

    positive: str = Field(min_length=1, max_length=LONGEST_TEXT)
    negative: str = Field(min_length=1, max_length=LONGEST_TEXT)
    persona: str = Field(
        default="",
        description="Group that is held out together; give persona, template and topic with every pair, or with none",
        max_length=LONGEST_NAME,
    )
    template: str = Field(default="", max_length=LONGEST_NAME)
    topic: str = Field(default="", max_length=LONGEST_NAME)


@dataclass(frozen=True)
class CaptureJob:
    """The arguments of a call that are not in the request.

    Attributes:
        tool: Name of the tool.
        model: The model as the client names it.
        name: Name of the capture; None for the default.
        dry_run: Only estimate.
        timed: Also estimate the seconds.
    """

    tool: str
    model: str
    name: str | None
    dry_run: bool
    timed: bool


async def capture_contrast(
    ctx: Ctx,
    concept: Annotated[
        str | None, Field(description="Name from list_concepts; or give pairs or file", max_length=LONGEST_NAME)
    ] = None,
    pairs: Annotated[
        list[PromptPair] | None,
        Field(description="Pairs, used without chat template; 30 or more", min_length=1, max_length=2000),
    ] = None,
    file: Annotated[
        str | None,
        Field(
            description="Name of a .jsonl or .csv file or a dataset in the folder prompts of the store, with positive"
            " and negative, and persona, template and topic, each for all pairs or for none",
            max_length=LONGEST_NAME,
        ),
    ] = None,
    model: ModelName = "smollm2",
    max_samples: Annotated[
        int, Field(ge=4, le=2000, description="Maximum number of pairs of the concept, sampled evenly")
    ] = DEFAULT_SAMPLES,
    layers: Layers = "all",
    positions: Positions = DEFAULT_POSITIONS,
    site: Site = DEFAULT_SITE,
    name: NewName = None,
    replace: Replace = False,
    dry_run: DryRun = False,
    timed: Timed = False,
    wait_s: WaitS = 40,
) -> Annotated[CallToolResult, JobOutline]:
    """Capture a contrast: run pairs of prompts through a model, save the hidden states, and rank the layers.

    This is the main tool. It loads the model, runs in the background if it takes long, and returns the leading layer
    with its confidence interval and the layers tied with it. Large captures are saved as shards: if one was cancelled
    or interrupted, repeat the call to resume.
    """
    if [concept, pairs, file].count(None) != 2:
        raise RequestError(
            "give exactly one of concept, pairs and file",
            next_step="list_concepts shows the concepts",
        )
    source: Source = _written(pairs or [])
    if concept is not None:
        source = catalog.load_concept(concept, workbench(ctx).settings.concepts, by_name_only=True)
    elif file is not None:
        source = await _find(ctx, file, PairFile)
    request = CaptureRequest(
        source, layers=layers, positions=positions, site=site, max_samples=max_samples, force=replace
    )
    run = CaptureJob("capture_contrast", model, name, dry_run, timed)
    return await _start(ctx, run, request, wait_s)


async def capture_prompts(
    ctx: Ctx,
    prompts: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)]] | None,
        Field(
            description="One or more prompts, used without chat template; or give file", min_length=1, max_length=2000
        ),
    ] = None,
    file: Annotated[
        str | None,
        Field(
            description="Name of a file in the folder prompts of the store: .txt (one prompt per line), .jsonl or .csv"
            " (with prompt), or a dataset",
            max_length=LONGEST_NAME,
        ),
    ] = None,
    model: ModelName = "smollm2",
    layers: Layers = "all",
    positions: Annotated[
        str | None,
        Field(
            description=f"{TOKENS_KEPT}; default: {SINGLE_PROMPT_POSITIONS} for one prompt, else {DEFAULT_POSITIONS}",
            max_length=LONGEST_NAME,
        ),
    ] = None,
    site: Annotated[str, Field(description=f"One of {', '.join(SITES)}", max_length=LONGEST_NAME)] = DEFAULT_SITE,
    name: NewName = None,
    replace: Replace = False,
    dry_run: DryRun = False,
    timed: Timed = False,
    wait_s: WaitS = 40,
) -> Annotated[CallToolResult, JobOutline]:
    """Capture one or more prompts, or a file of any length: save their hidden states, without a ranking.

    A file is saved as shards: if the capture was cancelled or interrupted, repeat the call to resume.
    """
    if (prompts is None) == (file is None):
        raise RequestError("give exactly one of prompts and file")
    texts = prompts or []
    source: Source = texts[0] if len(texts) == 1 else texts
    if file is not None:
        source = await _find(ctx, file, PromptFile)
    request = CaptureRequest(source, layers=layers, positions=positions, site=site, force=replace)
    run = CaptureJob("capture_prompts", model, name, dry_run, timed)
    return await _start(ctx, run, request, wait_s)


async def _find(ctx: Ctx, file: str, kind: type[Texts]) -> Texts:
    """Find a file of the store, in a thread: `datasets` is slow to import."""
    found = await to_thread.run_sync(find_texts, file, workbench(ctx).settings.prompts)
    if isinstance(found, kind):
        return found
    holds, tool = ("pairs", "capture_contrast") if isinstance(found, PairFile) else ("prompts", "capture_prompts")
    raise RequestError(f"{file} holds {holds}", next_step=f"{tool} takes it")


async def _start(ctx: Ctx, run: CaptureJob, request: CaptureRequest, wait_s: float) -> CallToolResult:
    """Complete the request from the settings, then capture and save in a job."""
    if run.timed and not run.dry_run:
        raise RequestError("timed needs dry_run", next_step="pass dry_run=true too, or omit timed")
    bench = workbench(ctx)
    alias = bench.settings.require_allowed(run.model)[1].alias
    paths = locate(run.name or default_name(alias, request.called), bench.settings.store)
    if not run.dry_run:
        require_free(paths, force=request.force, resume=True)
        if not request.force:
            bench.jobs.require_sole(paths.name)
    request = replace_in(request, alias=alias, paths=paths, most_in_memory=bench.settings.most_in_memory)

    def work(job: ServerJob) -> JobResult | None:
        if not run.dry_run:
            return _capture(bench, run, request, paths, job)
        job.estimate = _estimate(bench, run, request, job)
        return None

    job = bench.jobs.start(run.tool, work, capture="" if run.dry_run else paths.name)
    return await answer(ctx, job, wait_s)


def _estimate(bench: Workbench, run: CaptureJob, request: CaptureRequest, job: ServerJob) -> CaptureEstimate:
    job.checkpoint(f"loading {request.alias}")
    loaded = bench.models.get(run.model)
    from engine.capture.prepare import prepare_capture  # imports torch
    from engine.store.specificity import estimate_with_neighbours

    prepared = prepare_capture(loaded.model, loaded.tokenizer, request, steps=job.tell)
    return estimate_with_neighbours(prepared, timed=run.timed)


def _capture(
    bench: Workbench, run: CaptureJob, request: CaptureRequest, paths: CapturePaths, job: ServerJob
) -> JobResult:
    job.checkpoint(f"loading {request.alias}")
    loaded = bench.models.get(run.model)
    from engine.store.save import capture_and_save  # imports torch

    try:
        capture_and_save(
            loaded.model, loaded.tokenizer, request, progress=partial(job.count, "running prompts"), steps=job.tell
        )
    except JobCancelled:
        job.kept = paths.name if paths.started else ""
        raise
    return captured(show_capture(paths.name, store=paths.store))


def captured(record: CaptureRecord) -> JobResult:
    """Make the result of a capture job."""
    name = record["name"]
    return JobResult(
        capture=outline_capture(record),
        findings=describe_findings(record),
        warnings=record_warnings(record),
        next_step=f"rank_layers(name='{name}') for the layers, plot_capture(name='{name}') for the chart"
        if record["ranking"]
        else f"describe_capture(name='{name}')",
    )


def _written(pairs: list[PromptPair]) -> WrittenPairs:
    factors = _factors(pairs)
    return WrittenPairs(
        positive=tuple(pair.positive for pair in pairs),
        negative=tuple(pair.negative for pair in pairs),
        factors=tuple(factors) if factors else None,
    )


def _factors(pairs: list[PromptPair]) -> list[Factors] | None:
    said = [bool(pair.persona or pair.template or pair.topic) for pair in pairs]
    if not any(said):
        return None
    if not all(said):
        raise RequestError(
            f"{said.count(False)} of {len(pairs)} pairs have no persona, template or topic, the others do",
            expected="all three with every pair, or with none",
        )
    return [Factors(persona=pair.persona, template=pair.template, topic=pair.topic) for pair in pairs]


TOOLS = (
    ToolSpec(capture_contrast, "Capture a contrast", writes=True, repeatable=False, reaches_out=True),
    ToolSpec(capture_prompts, "Capture prompts", writes=True, repeatable=False, reaches_out=True),
)
