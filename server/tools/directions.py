"""Extract a contrast's directions, and read a text along them."""

from typing import Annotated

from anyio import to_thread
from mcp.types import CallToolResult
from pydantic import Field

from engine.errors import Remedy, RequestError
from engine.plots.words import layers_in_words
from engine.store.names import locate
from server.jobs import Job
from server.replies.directions import DirectionReply, describe_reading
from server.replies.jobs import JobReply, JobResult
from server.replies.reply import send
from server.tools.arguments import LONGEST_NAME, LONGEST_TEXT, CaptureName, WaitS
from server.tools.jobs import answer
from server.tools.spec import ToolSpec
from server.workbench import Ctx, find_capture, workbench


def extract_direction(
    ctx: Ctx,
    name: CaptureName,
    method: Annotated[str, Field(description="mean_diff, pca or logistic", max_length=LONGEST_NAME)] = "mean_diff",
    save_as: Annotated[
        str | None,
        Field(description="Name to save under; the capture's unless given", min_length=1, max_length=LONGEST_NAME),
    ] = None,
    replace: Annotated[bool, Field(description="Whether directions of that name may be replaced")] = False,
) -> Annotated[CallToolResult, DirectionReply]:
    """Extract a contrast's direction (a unit vector, positive minus negative) at every layer, and save it."""
    from engine.stats.direction import extract_directions
    from engine.store.directions import SUFFIX, leading_layer, save_directions
    from engine.store.read import load_contrast

    store = workbench(ctx).settings.store
    name = find_capture(ctx, name)["name"]
    found = extract_directions(load_contrast(name, store=store), method)
    leading = leading_layer(store / name, found)
    saved = save_directions(found, save_as or name, store=store, leading=leading, force=replace)
    saved_as = saved.name.removesuffix(SUFFIX)
    return send(
        DirectionReply(
            name=saved_as,
            layers=layers_in_words(list(found)),
            method=method,
            leading=leading,
            next_step=f"read_text(name='{saved_as}', text='...')",
        )
    )


async def read_text(
    ctx: Ctx,
    name: Annotated[
        str, Field(description="A capture of pairs, or directions saved by extract_direction", max_length=LONGEST_NAME)
    ],
    text: Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT, description="The text to read")],
    layer: Annotated[int | None, Field(ge=0, description="Layer; the one that ranks first unless given")] = None,
    chat: Annotated[bool, Field(description="Put the text through the chat template, as a user's message")] = False,
    wait_s: WaitS = 40,
) -> Annotated[CallToolResult, JobReply]:
    """Read a text token by token along a contrast's direction: 0 is the negative mean, 1 the positive mean."""
    bench = workbench(ctx)
    store = bench.settings.store
    await to_thread.run_sync(_require_directions, ctx, name)

    def work(job: Job) -> JobResult:
        from engine.stats.reading import read_text as read
        from engine.store.directions import find_directions

        found, leading, _ = find_directions(name, store=store)
        if layer is not None and layer not in found:
            raise RequestError(
                f"there is no direction at layer {layer}", expected=f"one of {layers_in_words(list(found))}"
            )
        provenance = next(iter(found.values()))["provenance"]
        if provenance is None:
            raise RequestError(f"the model that {name} comes from is unknown", next_step="capture it again")
        job.checkpoint(f"loading {provenance['alias']}")
        loaded = bench.models.get(provenance["alias"])
        job.checkpoint("reading")
        reading = read(
            loaded.model, loaded.tokenizer, found, text, leading=leading if layer is None else layer, chat=chat
        )
        return JobResult(
            reading=describe_reading(reading),
            warnings=reading["warnings"],
            next_step="read_text with a text of the other side, or another layer, and compare",
        )

    return await answer(ctx, bench.jobs.start("read_text", work), wait_s)


def _require_directions(ctx: Ctx, name: str) -> None:
    """Refuse at once a name under which there is nothing to read along.

    Raises:
        RequestError: There is no capture of that name and no directions, or the capture has no two sides.
        StoreError: The name cannot be one, or what it stands for cannot be used.
    """
    from engine.store.directions import SUFFIX, path_of

    if path_of(locate(name.removesuffix(SUFFIX), workbench(ctx).settings.store)).exists():
        return
    if find_capture(ctx, name)["kind"] != "contrast":
        raise RequestError(
            f"the capture {name!r} is one of prompts: it has no two sides", next_step=Remedy.CAPTURE_CONTRAST
        )


TOOLS = (
    ToolSpec(extract_direction, "Extract a direction", writes=True, repeatable=False),
    ToolSpec(read_text, "Read a text along a direction"),
)
