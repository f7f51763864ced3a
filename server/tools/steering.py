"""The tool that lets a model answer with and without steering."""

from typing import Annotated

from anyio import to_thread
from mcp.types import CallToolResult
from pydantic import BaseModel, Field

from engine.records.steering import SteeredText, SteeredTexts
from engine.store.ownership import direction_warnings
from server.jobs import ServerJob
from server.tools.answer import Part, rounded
from server.tools.directions import load_model_of, require_directions, require_layer, source_of
from server.tools.jobs import JobOutline, JobResult, answer
from server.tools.spec import LONGEST_NAME, LONGEST_TEXT, ToolSpec, WaitS
from server.workbench import Ctx, workbench

_MOST_STRENGTHS = 4
_MOST_NEW_TOKENS = 200


class Text(BaseModel):
    """A text with its measurements; they are null if a warning says that it overflowed."""

    kind: str
    strength: float | None = None
    text: str
    ended: bool
    perplexity: float | None = None
    shift: float | None = None


class SteeringReply(Part):
    """Texts with and without steering, the baseline first."""

    layer: int
    capture: str | None = None
    concept: str | None = None
    method: str
    texts: list[Text]


async def steer_text(
    ctx: Ctx,
    name: Annotated[str, Field(description="A contrast, or saved directions", max_length=LONGEST_NAME)],
    prompt: Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT, description="The user's message")],
    strengths: Annotated[
        list[float] | None,
        Field(
            min_length=1,
            max_length=_MOST_STRENGTHS,
            description="In units of the mean state norm; default: 0.1. Negative: towards the negative class",
        ),
    ] = None,
    layer: Annotated[int | None, Field(ge=0, description="Layer; default: the leading layer")] = None,
    ablate: Annotated[bool, Field(description="Project the direction out instead of adding it")] = False,
    max_new_tokens: Annotated[int, Field(ge=1, le=_MOST_NEW_TOKENS, description="Length of each text")] = 40,
    wait_s: WaitS = 40,
) -> Annotated[CallToolResult, JobOutline]:
    """Let the model answer a prompt with and without the direction of a contrast added to it (greedy).

    Each text has its perplexity (damage) and the shift of its projection from the baseline (effect), as the unsteered
    model reads it. What the control, a random direction of the same length, does too is not an effect of the concept.
    """
    bench = workbench(ctx)
    store = bench.settings.store
    await to_thread.run_sync(require_directions, ctx, name)

    def work(job: ServerJob) -> JobResult:
        from engine.steering.controls import load_source
        from engine.steering.texts import steer_text as steer
        from engine.store.directions import find_directions

        found, leading, _ = find_directions(name, store=store, method="mean_diff")
        require_layer(found, layer)
        loaded = load_model_of(bench, found, name, job)
        texts = steer(
            loaded.model,
            loaded.tokenizer,
            found,
            prompt,
            layer=leading if layer is None else layer,
            strengths=strengths or [0.1],
            ablation=ablate,
            data=load_source(name, store=store),
            max_new_tokens=max_new_tokens,
            steps=job.tell,
        )
        return JobResult(
            steering=_describe(texts, source_of(name, store)),
            warnings=[*direction_warnings(name, store=store), *texts["warnings"]],
            next_step="steer_text at another layer or strength, with other prompts: one prompt proves nothing",
        )

    return await answer(ctx, bench.jobs.start("steer_text", work), wait_s)


def _describe(texts: SteeredTexts, capture: str | None) -> SteeringReply:
    listed = (texts["baseline"], *texts["steered"], *texts["controls"])
    return SteeringReply(
        layer=texts["layer"],
        capture=capture,
        concept=texts["concept"],
        method=texts["method"],
        texts=[_text(one) for one in listed],
    )


def _text(text: SteeredText) -> Text:
    return Text(
        kind=text["kind"],
        strength=text["strength"],
        text=text["text"],
        ended=text["ended"],
        perplexity=None if "problem" in text else rounded(text["perplexity"], 2),
        shift=None if "problem" in text else rounded(text["shift"], 2),
    )


TOOLS = (ToolSpec(steer_text, "Steer a model's answer"),)
