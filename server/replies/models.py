"""What is answered about models."""

from collections.abc import Sequence

from pydantic import BaseModel, Field

from engine.records.models import ModelListing
from server.replies.reply import Reply


class ModelState(BaseModel):
    """A model that can be named."""

    name: str
    model_id: str
    layers: int = Field(description="Number of decoder blocks, numbered from 0; 0 here: known once it is loaded")
    size: str = Field(description="Number of parameters, e.g. 135M")
    here: bool = Field(description="Whether it loads without a download")
    loaded: bool
    note: str = ""


class ModelsReply(Reply):
    """The models."""

    models: list[ModelState]
    loaded_bytes: int = Field(description="Weights in memory")
    budget_bytes: int = Field(description="Weights that may stay in memory; least recently used go first")


def model_state(listing: ModelListing, loaded: Sequence[str]) -> ModelState:
    """A model as clients see it."""
    return ModelState(
        name=listing.alias,
        model_id=listing.source.model_id,
        layers=listing.layers,
        size=listing.parameters,
        here=listing.source.local,
        loaded=listing.alias in loaded,
        note=listing.note,
    )
