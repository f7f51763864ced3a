"""Tools about what captures show: rank layers, look at one, compare two captures, directions, read a text."""

from typing import Annotated, Literal

from mcp.types import CallToolResult
from pydantic import Field

from engine.errors import RequestError
from engine.plots.comparison_text import describe_comparison
from engine.plots.findings import layers_in_words
from engine.plots.tokens_text import readable_token
from engine.records.comparison import Comparison
from engine.records.directions import TokenReading
from engine.stats.scores import DEFAULT_SCORE, ScoredLayer, order_layers
from engine.stats.wrong_pairs import wrong_pairs
from server.errors import taken_names
from server.jobs import Job
from server.replies import (
    ComparedRow,
    ComparisonReply,
    DirectionReply,
    JobReply,
    LayerReply,
    RankedRow,
    RankingReply,
    ReadingReply,
    TokenValue,
    WrongPair,
    findings_of,
    rounded,
    send,
    shorten,
    warnings_of,
)
from server.tools.jobs import answer
from server.tools.spec import CaptureName, ToolSpec, WaitS
from server.workbench import Ctx, find_capture, workbench

_MOST_WRONG = 5
_MOST_TOKENS = 120
_MOST_ROWS = 60
_EXTREMES = 5


def rank_layers(
    ctx: Ctx,
    name: CaptureName,
    score: Annotated[
        str,
        Field(description="d_prime (held-out, default), auroc, wrong_way, pair_cosine, relative_norm or diff_norm"),
    ] = DEFAULT_SCORE,
    top: Annotated[int, Field(ge=1, le=100, description="Layers to show")] = 10,
    detail: Annotated[Literal["concise", "full"], Field(description="full: d' by what was left out")] = "concise",
) -> Annotated[CallToolResult, RankingReply]:
    """Rank the layers of a contrast by how well its two sides separate on prompts left out, with intervals and ties.

    Report the tied layers, not only the first: a tie means that the data cannot tell them apart. Read the warnings:
    they name what else could explain the contrast. The raw norm grows with depth whatever the concept.
    """
    record = find_capture(ctx, name)
    layers = order_layers(record, score)
    return send(
        RankingReply(
            capture=name,
            score=score,
            layers=[_ranked_row(layer, full=detail == "full") for layer in layers[:top]],
            left_out=max(len(layers) - top, 0),
            findings=findings_of(record),
            warnings=warnings_of(record),
            next_step=f"inspect_layer(name='{name}', layer={layers[0].row['layer']}), plot_capture(name='{name}')",
        )
    )


def inspect_layer(
    ctx: Ctx, name: CaptureName, layer: Annotated[int, Field(ge=0, description="Layer number")]
) -> Annotated[CallToolResult, LayerReply]:
    """Look at one layer: where the left-out prompts of both sides lie, and which pairs point the wrong way."""
    from engine.stats.sides import project_sides
    from engine.store.read import load_contrast

    store = workbench(ctx).settings.store
    record = find_capture(ctx, name)
    sides = project_sides(load_contrast(name, store=store), layer)
    wrong = wrong_pairs(sides)
    ranked = {row["layer"]: row for row in record["ranking"]["layers"]} if record["ranking"] else {}
    by_factor = ranked[layer]["by_factor"] if layer in ranked else {}
    return send(
        LayerReply(
            capture=name,
            layer=layer,
            d_prime=rounded(sides["d_prime"]),
            auroc=rounded(sides["auroc"]),
            worst_left_out=sides["left_out"],
            by_left_out={factor: rounded(separation["d_prime"]) for factor, separation in by_factor.items()},
            positive_quartiles=_quartiles(sides["positive"]),
            negative_quartiles=_quartiles(sides["negative"]),
            wrong_pairs=[
                WrongPair(
                    pair=pair,
                    gap=rounded(sides["positive"][pair] - sides["negative"][pair]),
                    positive_prompt=shorten(record["prompts"][pair]),
                    factors=dict(record["factors"][pair]) if record["factors"] else None,  # type: ignore[arg-type]
                )
                for pair in wrong[:_MOST_WRONG]
            ],
            wrong_total=len(wrong),
            next_step=f"plot_capture(name='{name}', layer={layer}) for the picture",
        )
    )


def compare_captures(ctx: Ctx, one: CaptureName, other: CaptureName) -> Annotated[CallToolResult, ComparisonReply]:
    """Compare two captures: cosine of two concepts' directions on one model, or one concept's layers on two models."""
    comparison = run_comparison(ctx, one, other)
    rows = [
        ComparedRow(
            layer=row["layer"],
            cosine=rounded(row["cosine"]),
            random_within=rounded(row["chance"]),
            halves_reach=rounded(row["ceiling"]),
        )
        for row in comparison["directions"]
    ] + [
        ComparedRow(
            layer=row["layer"],
            capture=row["capture"],
            depth=rounded(row["depth"]),
            d_prime=rounded(row["d_prime"]),
            tied=row["tied"],
        )
        for row in comparison["depths"]
    ]
    step = -(-len(rows) // _MOST_ROWS)
    return send(
        ComparisonReply(
            kind=comparison["kind"],
            captures=(one, other),
            findings=describe_comparison(comparison),
            rows=rows[:: step or 1],
            warnings=comparison["warnings"],
            next_step="a cosine beyond random_within says that the two directions share something",
        )
    )


def run_comparison(ctx: Ctx, one: str, other: str) -> Comparison:
    """The comparison behind the tool and its picture."""
    from engine.stats.comparison import compare_captures as compare
    from engine.store.read import load_contrast

    store = workbench(ctx).settings.store
    records = find_capture(ctx, one), find_capture(ctx, other)
    return compare(*records, lambda record: load_contrast(record["name"], store=store))


def extract_direction(
    ctx: Ctx,
    name: CaptureName,
    method: Annotated[str, Field(description="mean_diff, pca or logistic")] = "mean_diff",
    save_as: Annotated[str | None, Field(description="Name to save under; the capture's unless given")] = None,
    replace: Annotated[bool, Field(description="Whether directions of that name may be replaced")] = False,
) -> Annotated[CallToolResult, DirectionReply]:
    """Extract a contrast's direction (a unit vector, positive minus negative) at every layer, and save it."""
    from engine.stats.direction import extract_directions
    from engine.store.directions import leading_layer, save_directions
    from engine.store.read import load_contrast

    store = workbench(ctx).settings.store
    find_capture(ctx, name)
    found = extract_directions(load_contrast(name, store=store), method)
    leading = leading_layer(store / name, found)
    with taken_names("save_as"):
        save_directions(found, save_as or name, store=store, leading=leading, force=replace)
    return send(
        DirectionReply(
            name=save_as or name,
            layers=layers_in_words(list(found)),
            method=method,
            leading=leading,
            next_step=f"read_text(name='{save_as or name}', text='...')",
        )
    )


async def read_text(
    ctx: Ctx,
    name: Annotated[str, Field(description="A capture of pairs, or directions saved by extract_direction")],
    text: Annotated[str, Field(min_length=1, description="The text to read")],
    layer: Annotated[int | None, Field(ge=0, description="Layer; the one that ranks first unless given")] = None,
    chat: Annotated[bool, Field(description="Put the text through the chat template, as a user's message")] = False,
    wait_s: WaitS = 40,
) -> Annotated[CallToolResult, JobReply]:
    """Read a text token by token along a contrast's direction: 0 is the negative mean, 1 the positive mean."""
    bench = workbench(ctx)
    store = bench.settings.store

    def work(job: Job) -> tuple[ReadingReply, list[str]]:
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
        return _reading(reading), reading["warnings"]

    return await answer(ctx, bench.jobs.start("read_text", work), wait_s)


def _reading(reading: TokenReading) -> ReadingReply:
    values = reading["values"][reading["leading"]]
    tokens = [
        TokenValue(token=readable_token(token), value=rounded(value, 2))
        for token, value in zip(reading["tokens"], values, strict=True)
    ]
    # The first token's state is hundreds of times larger than any other in many models: extreme, and says nothing.
    extremes = sorted(tokens[1:] or tokens, key=lambda token: token.value)
    return ReadingReply(
        layer=reading["leading"],
        concept=reading["concept"],
        tokens=tokens[:_MOST_TOKENS],
        left_out=max(len(tokens) - _MOST_TOKENS, 0),
        highest=extremes[::-1][:_EXTREMES],
        lowest=extremes[:_EXTREMES],
    )


def _ranked_row(layer: ScoredLayer, *, full: bool) -> RankedRow:
    ranked = layer.ranked
    row = RankedRow(
        rank=layer.rank,
        layer=layer.row["layer"],
        value=None if layer.value is None else rounded(layer.value, 4),
        d_prime=rounded(ranked["d_prime"]) if ranked else None,
        interval=(rounded(ranked["low"]), rounded(ranked["high"])) if ranked else None,
        places=(ranked["rank_low"], ranked["rank_high"]) if ranked else None,
        tied=ranked["tied"] if ranked else None,
        p_value=rounded(ranked["p_value"], 4) if ranked else None,
        auroc=rounded(ranked["auroc"]) if ranked else None,
        raw_norm=rounded(layer.row["diff_norm"] or 0.0),
    )
    if full and ranked:
        row.d_prime_by_left_out = {key: rounded(value["d_prime"]) for key, value in ranked["by_factor"].items()}
        row.wrong_way = rounded(ranked["wrong_way"])
    return row


def _quartiles(values: list[float]) -> list[float]:
    ordered = sorted(values)
    return [rounded(ordered[round(share * (len(ordered) - 1))]) for share in (0, 0.25, 0.5, 0.75, 1)]


TOOLS = (
    ToolSpec(rank_layers, "Rank layers"),
    ToolSpec(inspect_layer, "Inspect a layer"),
    ToolSpec(compare_captures, "Compare two captures"),
    ToolSpec(extract_direction, "Extract a direction", writes=True, repeatable=False),
    ToolSpec(read_text, "Read a text along a direction"),
)
