"""What describes each layer of a capture, as one table, a row per layer: what is saved as JSON and drawn."""

from engine.records.captures import CaptureData
from engine.records.statistics import LayerRow
from engine.stats.contrast import compute_contrastive_diff
from engine.stats.summary import compute_activation_stats


def layer_table(data: CaptureData) -> list[LayerRow]:
    """One row per captured layer, ascending.

    Args:
        data: A capture; of a prompt the columns of a contrast are None.
    """
    diffs = compute_contrastive_diff(data) if "positive" in data else {}
    return [
        LayerRow(
            layer=layer,
            **stats,
            diff_norm=diffs[layer]["diff_norm"] if diffs else None,
            relative_norm=diffs[layer]["relative_norm"] if diffs else None,
            cosine_sim=diffs[layer]["cosine_sim"] if diffs else None,
            pair_cosine=diffs[layer]["pair_cosine"] if diffs else None,
        )
        for layer, stats in compute_activation_stats(data).items()
    ]
