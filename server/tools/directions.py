"""Tools for directions: extract those of a contrast, and read a text along them."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

from anyio import to_thread
from mcp.types import CallToolResult
from pydantic import BaseModel, Field

from engine.errors import RequestError
from engine.plots.findings import layers_in_words
from engine.plots.tokens_text import compared_methods, shown_token, tokens_aside
from engine.records.files import AUTO_METHOD, METHODS, Direction, TokenReading, VectorFormat, not_found_warnings
from engine.store.directions_header import path_of, read_header
from engine.store.names import DIRECTIONS, CapturePaths, locate
from engine.store.ownership import direction_warnings, foreign_origin, origin_warning
from server.jobs import ServerJob
from server.tools.answer import Part, Reply, rounded, send
from server.tools.jobs import JobOutline, JobResult, answer
from server.tools.spec import LONGEST_NAME, LONGEST_TEXT, CaptureName, ToolSpec, WaitS
from server.workbench import Ctx, LoadedModel, Workbench, find_capture, find_contrast, workbench

_METHODS = (AUTO_METHOD, *METHODS)
_MOST_TOKENS = 120
_EXTREMES = 5


class DirectionReply(Reply):
    """The saved directions."""

    name: str
    layers: str
    method: str
    compared: str = ""
    leading: int | None = None
    path: str | None = Field(default=None, description="File of control vectors, with format")
    format: str | None = None
    python: str | None = Field(default=None, description="Loads the file")


class TokenValue(BaseModel):
    """A token and its place along a direction."""

    token: str
    value: float


class ReadingReply(Part):
    """A text along a direction."""

    counted: ClassVar[tuple[str, ...]] = ("tokens",)
    layer: int
    capture: str | None = None
    concept: str | None = None
    method: str = ""
    compared: str = ""
    tokens: list[TokenValue]
    left_out: int
    set_aside: list[int] = Field(default_factory=list)
    highest: list[TokenValue]
    lowest: list[TokenValue]


def extract_direction(
    ctx: Ctx,
    name: CaptureName,
    method: Annotated[
        str | None,
        Field(
            description="Default: auto, the highest held-out AUROC; with format: mean_diff",
            max_length=LONGEST_NAME,
            json_schema_extra={"enum": list(_METHODS)},
        ),
    ] = None,
    save_as: Annotated[
        str | None,
        Field(description="Name to save under; default: the capture's", min_length=1, max_length=LONGEST_NAME),
    ] = None,
    replace: Annotated[bool, Field(description="Replace directions of that name")] = False,
    format: Annotated[  # noqa: A002 - the word of the command line
        VectorFormat | None,
        Field(description="Also write control vectors, NAME.vectors.FORMAT in the store; gguf: llama.cpp, repeng"),
    ] = None,
) -> Annotated[CallToolResult, DirectionReply]:
    """Extract the direction of a contrast (a unit vector, positive minus negative) at every layer, and save it.

    With format, also as control vectors for other tools, in which strength 0.1 means the same as in steer_text.
    """
    from engine.steering.vectors import export_directions
    from engine.store.directions import extract_captured, find_directions, save_directions

    settings = workbench(ctx).settings
    record = find_capture(ctx, name)
    name = record["name"]
    paths = locate(save_as or name, settings.store)
    if format is not None and method is None and not replace and _are_saved(paths, name):  # export what is saved
        found, leading, _ = find_directions(paths.name, store=settings.store)
        saved_as = paths.name
    else:
        method = method or (AUTO_METHOD if format is None else METHODS[0])
        found, leading = extract_captured(settings.store / name, method)
        saved = save_directions(
            found, save_as or name, store=settings.store, leading=leading, capture=name, force=replace
        )
        saved_as = saved.name.removesuffix(DIRECTIONS)
    some = next(iter(found.values()))
    vectors = None if format is None else export_directions(found, paths.vectors(format), format, force=True)
    reply = DirectionReply(
        name=saved_as,
        layers=layers_in_words(list(found)),
        method=some["method"],
        compared=compared_methods(some["methods"]) if "methods" in some else "",
        leading=leading,
        warnings=not_found_warnings(record),
        next_step=f"read_text(name='{saved_as}', text='...')",
    )
    if vectors is not None and format is not None:
        _describe_file(reply, vectors.name if settings.shared else str(vectors.absolute()), format, found)
    return send(reply)


def _are_saved(paths: CapturePaths, capture: str) -> bool:
    """Whether directions of a capture are saved under a name."""
    if not path_of(paths).exists() or (paths.name == capture and foreign_origin(paths)):
        return False
    return read_header(path_of(paths))["capture"] == capture


def _describe_file(reply: DirectionReply, path: str, file_format: VectorFormat, found: Mapping[int, Direction]) -> None:
    """Add the file of control vectors to a reply."""
    layers = [layer for layer in sorted(found) if layer or file_format != "gguf"]
    layer = reply.leading if reply.leading in layers else layers[len(layers) // 2]
    provenance = found[layer]["provenance"]
    model = provenance["alias"] if provenance else "..."
    load = {
        "gguf": f"import engine; vector = engine.import_directions({path!r}, 'llama.cpp', model={model!r})[{layer}]",
        "safetensors": f"import safetensors.torch; vector = safetensors.torch.load_file({path!r})['direction.{layer}']",
        "npz": f"import numpy; vector = numpy.load({path!r})['direction.{layer}']",
    }
    reply.path, reply.format, reply.python = path, file_format, load[file_format]
    reply.next_step = f"0.1 * vector, added to the output of block {layer}, is strength 0.1"
    if file_format == "gguf":
        file = shlex.quote(f"{path}:0.1")
        reply.next_step = f"llama.cpp: --control-vector-scaled {file} --control-vector-layer-range {layer} {layer}"
        if len(layers) < len(found):
            reply.warnings.append("layer 0 is not in the file: llama.cpp cannot steer block 0")


async def read_text(
    ctx: Ctx,
    name: Annotated[
        str, Field(description="A contrast, or directions saved by extract_direction", max_length=LONGEST_NAME)
    ],
    text: Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT, description="The text to read")],
    layer: Annotated[int | None, Field(ge=0, description="Layer; default: the leading layer")] = None,
    chat: Annotated[bool, Field(description="Apply the chat template, with the text as the user's message")] = False,
    wait_s: WaitS = 40,
) -> Annotated[CallToolResult, JobOutline]:
    """Read a text along a contrast's direction: one value per token.

    0 is the mean of the negative class, 1 that of the positive class. The reading has the first tokens and those with
    the highest and lowest values, except for set_aside: the first token, special tokens and the chat template.
    """
    bench = workbench(ctx)
    store = bench.settings.store
    await to_thread.run_sync(require_directions, ctx, name)

    def work(job: ServerJob) -> JobResult:
        from engine.stats.reading import read_text as read
        from engine.store.directions import find_directions

        found, leading, _ = find_directions(name, store=store)
        require_layer(found, layer)
        loaded = load_model_of(bench, found, name, job)
        job.checkpoint("reading")
        reading = read(
            loaded.model, loaded.tokenizer, found, text, leading=leading if layer is None else layer, chat=chat
        )
        return JobResult(
            reading=describe_reading(reading).model_copy(update={"capture": source_of(name, store)}),
            warnings=[*direction_warnings(name, store=store), *reading["warnings"]],
            next_step="compare with read_text of a text of the other class, or at another layer",
        )

    return await answer(ctx, bench.jobs.start("read_text", work), wait_s)


def describe_reading(reading: TokenReading) -> ReadingReply:
    """Describe a reading by its first tokens and the most extreme of all tokens that are not set aside."""
    tokens = [
        TokenValue(token=shown_token(reading, place), value=rounded(value, 2))
        for place, value in enumerate(reading["values"][reading["leading"]])
    ]
    aside = tokens_aside(reading)
    extremes = sorted(
        (token for place, token in enumerate(tokens) if place not in aside), key=lambda token: token.value
    )
    return ReadingReply(
        layer=reading["leading"],
        concept=reading["concept"],
        method=reading["method"],
        compared=compared_methods(reading["methods"]) if "methods" in reading else "",
        tokens=tokens[:_MOST_TOKENS],
        left_out=max(len(tokens) - _MOST_TOKENS, 0),
        set_aside=[place for place in sorted(aside) if place < _MOST_TOKENS],
        highest=extremes[::-1][:_EXTREMES],
        lowest=extremes[:_EXTREMES],
    )


def origin_warnings(name: str, store: Path) -> list[str]:
    """A warning if saved directions do not come from the capture of their name."""
    return [warning] if (warning := origin_warning(name, store=store)) else []


def source_of(name: str, store: Path) -> str | None:
    """The capture that saved directions come from, if it has another name."""
    paths = locate(name, store)
    capture = read_header(path_of(paths))["capture"] if path_of(paths).exists() else paths.name
    return None if capture == paths.name else capture


def require_layer(found: Mapping[int, Direction], layer: int | None) -> None:
    """Refuse a layer without a direction.

    Raises:
        RequestError: There is none at the layer.
    """
    if layer is not None and layer not in found:
        raise RequestError(f"there is no direction at layer {layer}", expected=f"one of {layers_in_words(list(found))}")


def load_model_of(bench: Workbench, found: Mapping[int, Direction], name: str, job: ServerJob) -> LoadedModel:
    """Load the model of directions.

    Args:
        bench: Has the models.
        found: Layer to direction.
        name: Their name, for the error message.
        job: Told that the model is loaded.

    Raises:
        RequestError: It is unknown, or the server does not allow it.
        ModelError: It cannot be loaded.
    """
    some = next(iter(found.values()))
    if "imported" in some:
        job.checkpoint(f"loading {some['imported']['model']}")
        return bench.models.get(some["imported"]["model"])
    provenance = some["provenance"]
    if provenance is None:
        raise RequestError(f"the model of {name} is unknown", next_step="capture it again")
    job.checkpoint(f"loading {provenance['alias']}")
    return bench.models.captured(provenance)


def require_directions(ctx: Ctx, name: str) -> None:
    """Refuse a name that has no directions, before a job is started.

    Raises:
        RequestError: There are no directions and no capture of that name, or the capture is not a contrast.
        StoreError: The name is not valid, or the capture cannot be used.
    """
    if path_of(locate(name, workbench(ctx).settings.store)).exists():
        return
    find_contrast(ctx, name)


TOOLS = (
    ToolSpec(extract_direction, "Extract directions", writes=True, repeatable=False),
    ToolSpec(read_text, "Read a text along a direction"),
)
