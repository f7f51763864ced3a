"""Sentences and the table of a causal ranking."""

from typing import Any

from rich.console import Console

from engine.plots.causal_text import causal_as_text, causal_findings
from engine.records.causal import CausalLayer
from engine.records.files import CaptureRecord
from tests.engine.plots.records import causal_layer, causal_ranking, contrast_record, contrast_rows, ranking_of


def record(*layers: CausalLayer, **changes: Any) -> CaptureRecord:
    """A capture of four layers, of which layer 1 reads best."""
    made = contrast_record(contrast_rows(), ranking_of())
    made["causal"] = causal_ranking(layers, **changes)
    return made


def shown(made: CaptureRecord, width: int = 80) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as text:
        console.print(causal_as_text(made))
    return text.get()


def test_a_capture_without_one_says_nothing() -> None:
    plain = contrast_record(contrast_rows(), ranking_of())
    assert causal_findings(plain) == []
    assert "was not measured" in shown(plain)


def test_the_effect_is_stated_with_its_interval_and_the_control() -> None:
    first, *_, last = causal_findings(record(causal_layer(1, 0.2), causal_layer(2, 0.1)))
    assert first == (
        "Steering by 0.1 moves the answers towards the concept at layers 1-2, most at layer 1: by +0.200 nats per token"
        " (95% interval +0.150 to +0.250; random directions 0.020). 25% of the prompts move the wrong way."
    )
    assert last.startswith("Measured on 24 held-out prompts of 12 personas, against 19 random directions and 19 of")


def test_a_layer_that_reads_best_and_does_nothing_is_named() -> None:
    without = {"prompts": 0.5, "controls": 0.5}
    found = causal_findings(record(causal_layer(1, 0.01, p_by_control=without), causal_layer(2, 0.2)))
    assert (
        "Layer 1 reads best (held-out d' 2.00), but steering there was not found to do anything (+0.010, p = 0.500)."
        in found
    )
    assert "at layer 2, most at layer 2" in found[0]


def test_a_leading_layer_no_better_than_controls_is_not_said_to_do_nothing() -> None:
    shared = causal_layer(1, 0.04, p_by_control={"prompts": 0.01, "controls": 0.3})
    found = " ".join(causal_findings(record(shared, causal_layer(2, 0.2))))
    assert "but steering there does not clearly do more than the controls (+0.040, p = 0.500)" in found
    assert "not found to do anything" not in found


def test_the_best_layer_to_steer_is_named_where_intervals_do_not_meet() -> None:
    found = causal_findings(record(causal_layer(1, 0.1), causal_layer(2, 0.4)))
    assert "Layer 1 reads best, but steering does most at layer 2." in found
    together = causal_findings(record(causal_layer(1, 0.35), causal_layer(2, 0.4)))
    assert not any("reads best" in sentence for sentence in together)


def test_nothing_found_is_not_called_no_effect() -> None:
    found = causal_findings(record(causal_layer(1, 0.02), causal_layer(3, 0.04, p_value=0.2)))
    assert found[0] == (
        "Steering by 0.1 was not found to move the answers at any of 2 layers: p = 0.200 at layer 3, where it is"
        " lowest."
    )


def test_effects_that_controls_share_and_effects_the_wrong_way_are_named() -> None:
    shared = causal_layer(2, 0.04, p_by_control={"prompts": 0.01, "controls": 0.3})
    against = causal_layer(3, -0.2)
    against["p_by_control"]["prompts"] = 0.9
    found = causal_findings(record(causal_layer(1, 0.2), shared, against))
    assert "At layer 3, steering moves the answers the wrong way, which random directions may do too." in found
    assert any(sentence.startswith("At layer 2, the answers move as well, but not clearly more") for sentence in found)


def test_ablation_is_stated_where_it_works_and_where_it_does_not() -> None:
    numbers = {"ablation": 0.4, "ablation_low": 0.2, "ablation_high": 0.6, "ablation_control": 0.1}
    works = causal_layer(1, 0.2, **numbers, ablation_p=0.01)
    assert (
        "Projecting the direction out works too at layer 1: at layer 1 it removes 40% of the difference between the"
        " personas (95% interval 20% to 60%; a control removes at most 10%)." in causal_findings(record(works))
    )
    fails = causal_layer(1, 0.2, **numbers, ablation_p=0.2)
    assert any("was not found to remove more" in sentence for sentence in causal_findings(record(fails)))


def test_the_table_puts_reading_and_cause_side_by_side() -> None:
    numbers = {"ablation": 0.4, "ablation_low": 0.2, "ablation_high": 0.6, "ablation_control": 0.1, "ablation_p": 0.01}
    made = record(causal_layer(1, 0.2, **numbers), causal_layer(2, 0.1), causal_layer(3, 0.01), warnings=["few of all"])
    text = shown(made)
    assert max(map(len, text.splitlines())) <= 80
    rows = [line.split() for line in text.splitlines()]
    assert ["1", "2.00", "1", "+0.200**", "+0.150", "to", "+0.250", "0.010", "0.020", "25%", "0.03", "40%"] in rows
    assert ["2", "1.70", "2", "+0.100*", "+0.050", "to", "+0.150", "0.010", "0.020", "25%", "0.03"] in rows
    assert ["3", "-0.20", "4", "+0.010", "-0.040", "to", "+0.060", "0.500", "0.020", "25%", "0.03"] in rows
    assert "warning: few of all" in text
