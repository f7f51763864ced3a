"""Look at one layer of a contrast."""

from typing import Annotated

from mcp.types import CallToolResult
from pydantic import Field

from engine.stats.wrong_pairs import wrong_pairs
from server.replies.layers import LayerReply, WrongPair
from server.replies.reply import rounded, send, shorten
from server.tools.arguments import CaptureName
from server.tools.spec import ToolSpec
from server.workbench import Ctx, find_capture, workbench

_MOST_WRONG = 5


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


def _quartiles(values: list[float]) -> list[float]:
    ordered = sorted(values)
    return [rounded(ordered[round(share * (len(ordered) - 1))]) for share in (0, 0.25, 0.5, 0.75, 1)]


TOOLS = (ToolSpec(inspect_layer, "Inspect a layer"),)
