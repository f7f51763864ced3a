"""What to draw of a capture layer by layer, as data. Knows records; does not know how anything is drawn; no torch."""

from dataclasses import dataclass

from engine.plots.findings import describe_findings
from engine.records.files import CaptureRecord, count_prompts, record_warnings
from engine.records.ranking import RankedLayer
from engine.records.statistics import LayerRow


@dataclass(frozen=True)
class LayersChart:
    """The statistics of a capture, layer by layer.

    Attributes:
        title: What was captured.
        subtitle: Of which model, from how many prompts, at which positions.
        axis: What a layer number stands for.
        contrast: Whether there are two sides.
        rows: One per layer, ascending; only a contrast has differences.
        ranked: Layers by falling held-out d'; empty where nothing could be ranked.
        chance: Score that the best layer of shuffled labels stays below in 95% of shuffles; None without a ranking.
        findings: What it comes to, in sentences.
        warnings: What must be known before believing it, in sentences.
    """

    title: str
    subtitle: str
    axis: str
    contrast: bool
    rows: tuple[LayerRow, ...]
    ranked: tuple[RankedLayer, ...]
    chance: float | None
    findings: tuple[str, ...]
    warnings: tuple[str, ...]


def layers_chart(record: CaptureRecord) -> LayersChart:
    """Describe the chart of a capture.

    Args:
        record: Its JSON.
    """
    provenance, ranking = record["provenance"], record["ranking"]
    contrast = record["kind"] == "contrast"
    count = record["num_pairs"] if contrast else count_prompts(record)
    counted = f"{count} {'pair' if contrast else 'prompt'}{'' if count == 1 else 's'}"
    model = f"{provenance['model']}, " if provenance else ""
    site = provenance["site"] if provenance else "resid_post"
    read = f", positions: {provenance['positions']}" if provenance else ""
    if site != "resid_post":
        read += f", site: {site}"
    return LayersChart(
        title=record["concept"] or record["name"],
        subtitle=f"{model}{counted}{read}",
        axis="layer (output of block)" if site == "resid_post" else f"layer ({site} of block)",
        contrast=contrast,
        rows=tuple(record["statistics"]),
        ranked=tuple(ranking["layers"]) if ranking else (),
        chance=ranking["chance"] if ranking else None,
        findings=tuple(describe_findings(record)),
        warnings=tuple(record_warnings(record)),
    )
