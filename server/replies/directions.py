"""What is answered about directions, and about texts read along them."""

from pydantic import BaseModel, Field

from engine.plots.tokens_text import readable_token
from engine.records.files import TokenReading
from server.replies.reply import Reply, rounded

_MOST_TOKENS = 120
_EXTREMES = 5


class DirectionReply(Reply):
    """Directions that were saved."""

    name: str
    layers: str
    method: str
    leading: int | None


class TokenValue(BaseModel):
    """A token along a direction."""

    token: str
    value: float = Field(description="0: mean of the negative prompts, 1: mean of the positive ones")


class ReadingReply(BaseModel):
    """A text along a direction."""

    layer: int
    concept: str | None
    tokens: list[TokenValue]
    left_out: int = Field(description="Tokens not shown")
    highest: list[TokenValue]
    lowest: list[TokenValue]


def describe_reading(reading: TokenReading) -> ReadingReply:
    """A text along a direction as clients see it: the first tokens, and the most extreme of all."""
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
