"""Make captures: of a contrast, of a prompt, of prompts."""

from dataclasses import replace as replace_in
from typing import Annotated, TypeVar

from anyio import to_thread
from mcp.types import CallToolResult
from pydantic import BaseModel, ConfigDict, Field

from engine.capture.selection import DEFAULT_POSITIONS, SINGLE_PROMPT_POSITIONS, parse_positions
from engine.capture.sites import DEFAULT_SITE, parse_site
from engine.concepts import catalog
from engine.concepts.pair_files import PairFile, WrittenPairs
from engine.concepts.pairs import DEFAULT_SAMPLES
from engine.concepts.text_files import PromptFile, find_texts
from engine.errors import RequestError
from engine.records.captures import Concept, Factors
from engine.store.names import default_name, locate, require_free
from server.jobs import Job
from server.replies.jobs import JobReply, JobResult
from server.request import CaptureRequest
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

Texts = TypeVar("Texts", PromptFile, PairFile)


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
        str | None, Field(description="Name from list_concepts; or give pairs or file", max_length=LONGEST_NAME)
    ] = None,
    pairs: Annotated[
        list[PromptPair] | None,
        Field(description="Pairs of your own, taken as they are; 30 or more", min_length=1, max_length=2000),
    ] = None,
    file: Annotated[
        str | None,
        Field(
            description="Name of a .jsonl or .csv file or a data set in the folder prompts of the store, with positive"
            " and negative, and persona, template and topic if known",
            max_length=LONGEST_NAME,
        ),
    ] = None,
    model: ModelName = "smollm2",
    max_samples: Annotated[int, Field(ge=4, le=2000, description="Pairs to draw from the concept")] = DEFAULT_SAMPLES,
    layers: Layers = "all",
    positions: Positions = DEFAULT_POSITIONS,
    site: Site = DEFAULT_SITE,
    name: NewName = None,
    replace: Replace = False,
    dry_run: DryRun = False,
    wait_s: WaitS = 40,
) -> Annotated[CallToolResult, JobReply]:
    """Run the pairs of a concept through a model, save the hidden states, and rank the layers by how they separate.

    This is the main tool. It loads the model if need be, runs in the background if it takes long, and answers with the
    layer that leads, how sure that is, and what it is tied with. More than 1 GiB of states goes into shards: what was
    cancelled or interrupted goes on with the same call.
    """
    if [concept, pairs, file].count(None) != 2:
        raise RequestError(
            "give one of these: a concept, pairs of your own, or the name of a file of pairs",
            next_step="list_concepts shows the concepts",
        )
    source: Concept | WrittenPairs | PairFile = _written(pairs or [])
    called = "pairs"
    if concept is not None:
        source = catalog.load_concept(concept, workbench(ctx).settings.concepts, by_name_only=True)
        called = source.name
    elif file is not None:
        source = await _find(ctx, file, PairFile)
        called = source.path.stem
    request = CaptureRequest(source, called, model, layers, positions, site, max_samples, name, replace, dry_run)
    return await _start(ctx, "capture_contrast", request, wait_s)


async def capture_prompt(
    ctx: Ctx,
    prompt: Annotated[
        str,
        Field(min_length=1, max_length=LONGEST_TEXT, description="A text, taken as it is: no chat template is applied"),
    ],
    model: ModelName = "smollm2",
    layers: Layers = "all",
    positions: Positions = SINGLE_PROMPT_POSITIONS,
    site: Site = DEFAULT_SITE,
    name: NewName = None,
    replace: Replace = False,
    dry_run: DryRun = False,
    wait_s: WaitS = 40,
) -> Annotated[CallToolResult, JobReply]:
    """Save the hidden states of one prompt. To find the layers of a concept, use capture_contrast instead."""
    request = CaptureRequest([prompt], "prompt", model, layers, positions, site, None, name, replace, dry_run)
    return await _start(ctx, "capture_prompt", request, wait_s)


async def capture_prompts(
    ctx: Ctx,
    prompts: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)]] | None,
        Field(description="Texts, taken as they are; or give file", min_length=1, max_length=2000),
    ] = None,
    file: Annotated[
        str | None,
        Field(
            description="Name of a file in the folder prompts of the store: .txt (a prompt a line), .jsonl or .csv"
            " (with prompt), or of a data set there",
            max_length=LONGEST_NAME,
        ),
    ] = None,
    model: ModelName = "smollm2",
    layers: Layers = "all",
    positions: Positions = DEFAULT_POSITIONS,
    site: Site = DEFAULT_SITE,
    name: NewName = None,
    replace: Replace = False,
    dry_run: DryRun = False,
    wait_s: WaitS = 40,
) -> Annotated[CallToolResult, JobReply]:
    """Save the hidden states of many prompts: a list, or a file of any number. Nothing is ranked: they have no sides.

    A file goes into shards: what was cancelled or interrupted goes on with the same call.
    """
    if (prompts is None) == (file is None):
        raise RequestError("give prompts, or the name of a file of prompts, and not both")
    source: PromptFile | list[str] = prompts or []
    called = "prompts"
    if file is not None:
        source = await _find(ctx, file, PromptFile)
        called = source.path.stem
    request = CaptureRequest(source, called, model, layers, positions, site, None, name, replace, dry_run)
    return await _start(ctx, "capture_prompts", request, wait_s)


async def _find(ctx: Ctx, file: str, kind: type[Texts]) -> Texts:
    """A file of the store, in a thread: the library that reads data sets takes a while to be imported."""
    found = await to_thread.run_sync(find_texts, file, workbench(ctx).settings.prompts)
    if isinstance(found, kind):
        return found
    holds, tool = ("pairs", "capture_contrast") if isinstance(found, PairFile) else ("prompts", "capture_prompts")
    raise RequestError(f"{file} holds {holds}", next_step=f"{tool} takes it")


async def _start(ctx: Ctx, kind: str, request: CaptureRequest, wait_s: float) -> CallToolResult:
    """Check what can be checked at once, then capture and save in a job."""
    bench = workbench(ctx)
    request = replace_in(request, model=bench.settings.require_allowed(request.model)[1].alias)
    parse_positions(request.positions)
    parse_site(request.site, None if request.layers == "all" else request.layers)
    name = request.name or default_name(request.model, request.called)
    require_free(locate(name, bench.settings.store), force=request.replace, resume=True)

    def work(job: Job) -> JobResult | None:
        from server.capturing import capture_and_save

        return capture_and_save(bench, request, name, job)

    return await answer(ctx, bench.jobs.start(kind, work), wait_s)


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
            f"{said.count(False)} of {len(pairs)} pairs say no persona, template or topic, the others do",
            expected="all three with every pair, or none",
        )
    return [Factors(persona=pair.persona, template=pair.template, topic=pair.topic) for pair in pairs]


TOOLS = (
    ToolSpec(capture_contrast, "Capture a contrast", writes=True, repeatable=False, reaches_out=True),
    ToolSpec(capture_prompt, "Capture a prompt", writes=True, repeatable=False, reaches_out=True),
    ToolSpec(capture_prompts, "Capture prompts", writes=True, repeatable=False, reaches_out=True),
)
