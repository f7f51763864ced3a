"""Tools about captures: make one, list, describe, delete."""

from collections.abc import Callable
from typing import Annotated, Literal

from mcp.types import CallToolResult
from pydantic import BaseModel, Field

from engine.capture.layers import LayerSpec
from engine.capture.positions import parse_positions
from engine.capture.sites import DEFAULT_SITE, parse_site
from engine.concepts import catalog
from engine.concepts.pairs import DEFAULT_SAMPLES
from engine.errors import RequestError
from engine.records.captures import CaptureData
from engine.records.concepts import Concept, Factors
from engine.records.files import CaptureRecord
from engine.store.catalog import list_captures as list_store
from engine.store.catalog import show_capture
from engine.store.names import default_name, locate, require_free
from server.errors import taken_names
from server.jobs import Job
from server.replies import (
    CaptureReply,
    CapturesReply,
    DeletedReply,
    JobReply,
    findings_of,
    send,
    shorten,
    summarise,
    warnings_of,
)
from server.shelf import LoadedModel
from server.tools.jobs import answer
from server.tools.spec import CaptureName, ToolSpec, WaitS
from server.workbench import Ctx, Workbench, find_capture, workbench

_SHOWN_PROMPTS = 4

Work = Callable[[LoadedModel, Job], CaptureData | None]

ModelArgument = Annotated[str, Field(description="Name of a model from list_models")]
Layers = Annotated[str, Field(description="all, recommended, or numbers and ranges such as 14,15 or 10-20 or -1")]
Site = Annotated[str, Field(description="resid_post (after a block), resid_pre, attn_out, mlp_out, embed, final_norm")]
Positions = Annotated[str, Field(description="last, all, mean, an index (-2) or a span (2:10) of the prompt's tokens")]
NewName = Annotated[
    str | None, Field(description="Name to save under; left out: the model's and the concept's", max_length=128)
]
DryRun = Annotated[bool, Field(description="Only estimate prompts, tokens, seconds and bytes; capture nothing")]
Replace = Annotated[bool, Field(description="Whether a capture of that name may be replaced")]


class PromptPair(BaseModel):
    """A prompt of each side that differ only in what the contrast is about."""

    positive: str = Field(min_length=1)
    negative: str = Field(min_length=1)
    persona: str = Field(default="", description="Pairs of one persona are left out together; give all three or none")
    template: str = ""
    topic: str = ""


async def capture_contrast(
    ctx: Ctx,
    concept: Annotated[str | None, Field(description="Name from list_concepts; or give pairs")] = None,
    pairs: Annotated[
        list[PromptPair] | None, Field(description="Pairs of your own, taken as they are; 30 or more", max_length=2000)
    ] = None,
    model: ModelArgument = "smollm2",
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
    chosen = catalog.load_concept(concept, bench.settings.concepts, by_name_only=True) if concept else list(pairs or [])
    what = chosen.name if isinstance(chosen, Concept) else "pairs"
    how = {"layers": layers, "positions": positions, "site": site}

    def capture(loaded: LoadedModel, job: Job) -> CaptureData | None:
        from server.capturing import capture_concept, capture_pairs

        if isinstance(chosen, Concept):
            return capture_concept(loaded, chosen, max_samples, how, job, dry_run=dry_run)
        return capture_pairs(loaded, [_texts(pair) for pair in chosen], _factors(chosen), how, job, dry_run=dry_run)

    return await _run(ctx, "capture_contrast", model, what, name, how, capture, replace=replace, wait_s=wait_s)


async def capture_prompt(
    ctx: Ctx,
    prompt: Annotated[str, Field(min_length=1, description="A text, taken as it is: no chat template is applied")],
    model: ModelArgument = "smollm2",
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


def list_captures(
    ctx: Ctx,
    concept: Annotated[str | None, Field(description="Only captures of this concept")] = None,
    model: Annotated[str | None, Field(description="Only captures of this model")] = None,
    name_contains: Annotated[str, Field(description="Only captures with this in their name")] = "",
    offset: Annotated[int, Field(ge=0, description="How many to pass over")] = 0,
    limit: Annotated[int, Field(ge=1, le=20, description="Most captures in one answer")] = 10,
) -> Annotated[CallToolResult, CapturesReply]:
    """List the captures in the store, newest first, whoever made them, with the layer that leads in each."""
    store = workbench(ctx).settings.store
    entries = list_store(store, concept=concept, model=model) if store.exists() else []
    entries = [entry for entry in entries if name_contains in entry.name]
    records = [entry.record for entry in entries if entry.record]
    page = records[offset : offset + limit]
    after = offset + len(page)
    return send(
        CapturesReply(
            captures=[summarise(record) for record in page],
            total=len(records),
            next_offset=after if after < len(records) else None,
            damaged={entry.name: shorten(entry.problem) for entry in entries if entry.problem and offset == 0},
            next_step="rank_layers(name=...), compare_captures(one=..., other=...)" if records else "capture_contrast",
        )
    )


def describe_capture(
    ctx: Ctx,
    name: CaptureName,
    detail: Annotated[Literal["concise", "full"], Field(description="full: more and longer prompts")] = "concise",
) -> Annotated[CallToolResult, CaptureReply]:
    """Describe a capture: how it was made, what its ranking comes to, and what else could explain it (confounds)."""
    record = find_capture(ctx, name)
    shown = _SHOWN_PROMPTS if detail == "concise" else 2 * _SHOWN_PROMPTS
    prompts = [text for pair in zip(record["prompts"], record["negative_prompts"], strict=False) for text in pair]
    prompts = prompts or record["prompts"]
    checks = record["confounds"]["checks"] if record["confounds"] else []
    provenance = record["provenance"]
    origin = {key: str(value) for key, value in provenance.items() if key != "receipt"} if provenance else {}
    return send(
        CaptureReply(
            capture=summarise(record),
            findings=findings_of(record),
            confounds={check["what"]: round(check["auroc"], 3) for check in checks},
            provenance=origin,
            example_prompts=[shorten(text, 160 if detail == "concise" else 600) for text in prompts[:shown]],
            left_out=max(len(prompts) - shown, 0),
            warnings=warnings_of(record),
            next_step=f"rank_layers(name='{name}')"
            if record["ranking"]
            else "capture_contrast(concept=...) can be ranked",
        )
    )


def delete_capture(
    ctx: Ctx,
    name: CaptureName,
    confirm: Annotated[bool, Field(description="Must be true: what is deleted cannot be brought back")] = False,
) -> Annotated[CallToolResult, DeletedReply]:
    """Delete a capture and the directions saved with it, for good. Needs confirm=true."""
    from engine.store.delete import delete_capture as delete

    store = workbench(ctx).settings.store
    if not confirm:
        raise RequestError(
            f"{name!r} was not deleted",
            expected="confirm=true",
            next_step=f"delete_capture(name='{name}', confirm=true) if it shall be gone for good",
        )
    if not any(entry.name == name for entry in (list_store(store) if store.exists() else [])):
        find_capture(ctx, name)  # names the nearest; damaged captures can be deleted
    return send(DeletedReply(deleted=delete(name, store=store), next_step="list_captures"))


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
    if not replace:
        with taken_names("name"):
            require_free(locate(target, bench.settings.store), force=False)

    def work(job: Job) -> CaptureRecord | None:
        return _capture_and_save(bench, model, target, capture, job, replace=replace)

    return await answer(ctx, bench.jobs.start(kind, work), wait_s)


def _capture_and_save(
    bench: Workbench,
    model: str,
    name: str,
    capture: Work,
    job: Job,
    *,
    replace: bool,
) -> CaptureRecord | None:
    job.checkpoint(f"loading {model}")
    loaded = bench.models.get(model)
    job.checkpoint("running prompts")
    data = capture(loaded, job)
    if data is None:
        return None
    job.checkpoint("ranking layers and saving")
    from engine.store.write import save_activations

    store = bench.settings.store
    with taken_names("name"):  # perhaps by another client, while this one was running
        save_activations(data, name, store=store, force=replace)
    return show_capture(name, store=store)


def _layers(layers: str) -> LayerSpec:
    return None if layers == "all" else layers


def _texts(pair: PromptPair) -> tuple[str, str]:
    return pair.positive, pair.negative


def _factors(pairs: list[PromptPair]) -> list[Factors] | None:
    if not all(pair.persona or pair.template or pair.topic for pair in pairs):
        return None
    return [Factors(persona=pair.persona, template=pair.template, topic=pair.topic) for pair in pairs]


TOOLS = (
    ToolSpec(capture_contrast, "Capture a contrast", writes=True, repeatable=False, reaches_out=True),
    ToolSpec(capture_prompt, "Capture a prompt", writes=True, repeatable=False, reaches_out=True),
    ToolSpec(list_captures, "List captures"),
    ToolSpec(describe_capture, "Describe a capture"),
    ToolSpec(delete_capture, "Delete a capture", writes=True, destroys=True, repeatable=False),
)
