"""Arguments that several tools take, and what agents are told about them.

Every text has a longest length: what is longer is a mistake, and is refused before anything reads it.
"""

from typing import Annotated

from pydantic import Field

LONGEST_NAME = 200
LONGEST_TEXT = 100_000

CaptureName = Annotated[
    str, Field(description="Name of a capture from list_captures, e.g. smollm2_honesty", max_length=LONGEST_NAME)
]
ConceptName = Annotated[str, Field(description="Name from list_concepts, e.g. honesty", max_length=LONGEST_NAME)]
ModelName = Annotated[
    str, Field(description="Name of a model from list_models, e.g. smollm2", max_length=10 * LONGEST_NAME)
]
WaitS = Annotated[
    float, Field(ge=0, le=50, description="Seconds to wait for the result; then the answer is a job to wait for")
]
Layers = Annotated[
    str,
    Field(description="all, recommended, or numbers and ranges such as 14,15 or 10-20 or -1", max_length=1000),
]
Site = Annotated[
    str,
    Field(
        description="resid_post (after a block), resid_pre, attn_out, mlp_out, embed, final_norm",
        max_length=LONGEST_NAME,
    ),
]
Positions = Annotated[
    str,
    Field(
        description="last, all, mean, an index (-2) or a span (2:10) of the prompt's tokens", max_length=LONGEST_NAME
    ),
]
NewName = Annotated[
    str | None,
    Field(description="Name to save under; left out: the model's and the concept's", min_length=1, max_length=128),
]
DryRun = Annotated[bool, Field(description="Only estimate prompts, tokens, seconds and bytes; capture nothing")]
Replace = Annotated[bool, Field(description="Whether a capture of that name may be replaced")]
