"""The tool that ranks layers by what steering there does."""

from typing import Annotated

from anyio import to_thread
from mcp.types import CallToolResult
from pydantic import BaseModel, Field

from engine.errors import RequestError
from engine.records.causal import CausalLayer, CausalRanking, ablation_works, works
from engine.store.catalog import show_capture
from engine.store.names import locate
from engine.store.ownership import require_amendable
from server.jobs import ServerJob
from server.tools.answer import Part, rounded
from server.tools.jobs import JobOutline, JobResult, answer
from server.tools.spec import LONGEST_TEXT, CaptureName, ToolSpec, WaitS
from server.workbench import Ctx, find_contrast, workbench


class CausalRow(BaseModel):
    """What steering at one layer does."""

    layer: int
    effect: float
    interval: tuple[float, float]
    p_value: float
    random: float
    works: bool
    wrong_way: float
    damage: float
    ablation: float | None = None
    ablation_interval: tuple[float, float] | None = None
    ablation_works: bool | None = None


class CausalReply(Part):
    """Layers by what steering there does, with the size of the measurement."""

    layers: list[CausalRow]
    strength: float
    prompts: int
    personas: int
    random_directions: int
    permutations: int
    smallest_p: float


async def rank_causally(
    ctx: Ctx,
    name: CaptureName,
    layers: Annotated[
        str | None,
        Field(description="As in capture_contrast; default: the tied layers and their neighbours", max_length=1000),
    ] = None,
    strength: Annotated[float, Field(gt=0, description="In units of the mean state norm")] = 0.1,
    neutral: Annotated[
        list[Annotated[str, Field(max_length=LONGEST_TEXT)]] | None,
        Field(max_length=2000, description="A neutral prompt per pair; default: topics of the concept"),
    ] = None,
    wait_s: WaitS = 40,
) -> Annotated[CallToolResult, JobOutline]:
    """Rank layers by what steering there does to the model's answers, against random and permuted directions.

    A layer may read well and do nothing. Takes minutes; repeat the call to resume. effect: log-probability that the
    answers of the positive persona gain on those of the negative one, in nats per token; works: beyond chance and
    controls; wrong_way: share of prompts that move away; damage: KL divergence; ablation: share of the personas'
    difference that is gone once the direction is projected out.
    """
    from engine.steering.causal_request import CausalRequest

    bench = workbench(ctx)
    store = bench.settings.store
    request = CausalRequest(layers=layers, strength=strength)
    record = await to_thread.run_sync(find_contrast, ctx, name)
    name, provenance = record["name"], record["provenance"]
    require_amendable(locate(name, store))
    if provenance is None:
        raise RequestError(f"the model of {name} is unknown", next_step="capture it again")

    def work(job: ServerJob) -> JobResult:
        from engine.plots.causal_text import causal_findings
        from engine.steering.causal_store import add_causal_ranking

        job.checkpoint(f"loading {provenance['alias']}")
        loaded = bench.models.captured(provenance)
        model, tokenizer = loaded.model, loaded.tokenizer
        found = add_causal_ranking(name, model, tokenizer, request, neutral=neutral, store=store, steps=job.tell)
        working = [row["layer"] for row in found["layers"] if works(row)]
        return JobResult(
            causal=describe_ranking(found),
            findings=causal_findings(show_capture(name, store=store)),
            warnings=found["warnings"],
            next_step=f"steer_text(name='{name}', layer={working[0]}, prompt='...')"
            if working
            else f"rank_layers(name='{name}') shows how well the layers read",
        )

    return await answer(ctx, bench.jobs.start("rank_causally", work), wait_s)


def describe_ranking(found: CausalRanking) -> CausalReply:
    """Describe a causal ranking with the digits that are worth sending."""
    return CausalReply(
        layers=[_row(row) for row in found["layers"]],
        strength=found["strength"],
        prompts=found["prompts"],
        personas=found["personas"],
        random_directions=found["random_directions"],
        permutations=found["permutations"],
        smallest_p=rounded(found["smallest_p"], 4),
    )


def _row(row: CausalLayer) -> CausalRow:
    described = CausalRow(
        layer=row["layer"],
        effect=rounded(row["effect"], 4),
        interval=(rounded(row["low"], 4), rounded(row["high"], 4)),
        p_value=rounded(row["p_value"], 4),
        random=rounded(row["random"], 4),
        works=works(row),
        wrong_way=rounded(row["wrong_way"], 2),
        damage=rounded(row["damage"], 4),
    )
    if "ablation" in row:
        described.ablation, described.ablation_works = rounded(row["ablation"], 2), ablation_works(row)
        described.ablation_interval = rounded(row["ablation_low"], 2), rounded(row["ablation_high"], 2)
    return described


TOOLS = (ToolSpec(rank_causally, "Rank layers by steering", writes=True),)
