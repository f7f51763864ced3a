"""What describes each layer of a capture, as one table, a row per layer: what is saved as JSON and drawn."""

from collections.abc import Mapping

from engine.records.captures import CaptureData
from engine.records.statistics import LayerRow, LayerStats
from engine.stats.contrast import compute_contrastive_diff
from engine.stats.summary import compute_activation_stats


def layer_table(data: CaptureData) -> list[LayerRow]:
    """One row per captured layer, ascending.

    Args:
        data: A capture; of a prompt the columns of a contrast are None.
    """
    return add_differences(compute_activation_stats(data), data)


def add_differences(summaries: Mapping[int, LayerStats], data: CaptureData | None) -> list[LayerRow]:
    """The same table, of a capture whose states are summarised already.

    Args:
        summaries: Layer to the summary of its states.
        data: The capture, if it is a contrast; anything else has no two sides.
    """
    diffs = compute_contrastive_diff(data) if data is not None and "positive" in data else {}
    return [
        LayerRow(
            layer=layer,
            **summary,
            diff_norm=diffs[layer]["diff_norm"] if diffs else None,
            relative_norm=diffs[layer]["relative_norm"] if diffs else None,
            cosine_sim=diffs[layer]["cosine_sim"] if diffs else None,
            pair_cosine=diffs[layer]["pair_cosine"] if diffs else None,
        )
        for layer, summary in summaries.items()
    ]
