"""What is answered about one layer."""

from pydantic import BaseModel, Field

from server.replies.reply import Reply


class WrongPair(BaseModel):
    """A pair whose positive prompt lies on the negative side of its partner."""

    pair: int
    gap: float
    positive_prompt: str
    factors: dict[str, str] | None


class LayerReply(Reply):
    """One layer in detail."""

    capture: str
    layer: int
    d_prime: float
    auroc: float
    worst_left_out: str = Field(description="What was left out where the separation is lowest")
    by_left_out: dict[str, float] = Field(description="d' with each factor left out")
    positive_quartiles: list[float] = Field(description="Minimum, quartiles and maximum of the positive projections")
    negative_quartiles: list[float]
    wrong_pairs: list[WrongPair]
    wrong_total: int
