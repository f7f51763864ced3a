"""A text along a direction: the first tokens, and the most extreme of all but the first."""

from engine.records.files import TokenReading
from server.replies.directions import describe_reading


def reading(values: list[float]) -> TokenReading:
    return TokenReading(
        prompt="some text",
        tokens=[f"Ġt{number}" for number in range(len(values))],
        values={7: values},
        layers=[7],
        leading=7,
        method="mean_diff",
        concept="honesty",
        warnings=[],
    )


def test_a_long_text_is_cut_and_its_extremes_are_kept() -> None:
    values = [0.5] * 200
    values[0], values[150], values[160] = 900.0, 3.0, -2.0
    said = describe_reading(reading(values))
    assert (len(said.tokens), said.left_out, said.layer) == (120, 80, 7)
    assert (said.highest[0].token, said.highest[0].value) == (" t150", 3.0)
    assert (said.lowest[0].token, said.lowest[0].value) == (" t160", -2.0)
    assert said.tokens[0].value == 900.0


def test_a_text_of_one_token_is_its_own_extreme() -> None:
    said = describe_reading(reading([1.234]))
    assert [token.value for token in said.highest] == [token.value for token in said.lowest] == [1.23]
