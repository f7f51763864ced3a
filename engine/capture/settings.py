"""What a run keeps, and how: what a user asked for, in the light of a model.

Knows sites, layers, positions and the check at load, and plans passes from token ids. Runs nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.capture.batches import Limits, sorted_batches, token_budget
from engine.capture.prefixes import Plan, planned_tokens, shared_batches
from engine.capture.selection import Positions
from engine.capture.sites import DEFAULT_SITE, wanted_layers
from engine.models.description import examine_model
from engine.models.shortcuts import ONEDNN_TOLERANCE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from engine.capture.request import CaptureRequest
    from engine.models.alterations import Snapshot
    from engine.records.models import ModelConfig

log = logging.getLogger(__name__)

# Share of the tokens that must at most be left: attention over a packed row costs more than padding.
_WORTH_SHARING = 0.9


@dataclass(frozen=True)
class Settings:
    """What a run keeps, and how.

    Attributes:
        model: The model as it stands when the capture begins.
        snapshot: What can be seen of it then, for a later look.
        site: What is read.
        layers: Layer numbers, ascending; of a site without layers the block that it adjoins.
        positions: Which tokens.
        use_hooks: Whether a pass stops when the last of the layers has been read, or runs to its end.
        limits: What goes through the model at once.
        prefix_reuse: Whether what prompts share at the beginning is run once; or why not.
        window: The longest prompt for which it can be, None for any.
        onednn: Whether float32 products go through oneDNN; None where that makes no difference.
    """

    model: ModelConfig
    snapshot: Snapshot
    site: str
    layers: list[int]
    positions: Positions
    use_hooks: bool
    limits: Limits
    prefix_reuse: str = "off"
    window: int | None = None
    onednn: bool | None = None

    @classmethod
    def for_model(cls, model: PreTrainedModel, request: CaptureRequest) -> Settings:
        """Settle what a request leaves to the model.

        Raises:
            RequestError: The model does not have the layers.
            ModelError: The model fails the check, or does not have the site.
        """
        known, snapshot = examine_model(model)
        receipt, added = known.receipt, known.added
        layers = wanted_layers(request.site, request.layers, receipt)
        error, separate = receipt.get("onednn_error"), receipt.get("separate", "not checked")
        batch_size = request.batch_size
        if added:
            log.info("prompts are run one at a time, for code was added to the model: %s", "; ".join(added))
            batch_size = 1
        reuse = request.prefix_reuse and batch_size != 1
        return cls(
            model=known,
            snapshot=snapshot,
            site=request.site,
            layers=layers,
            positions=request.kept,
            use_hooks=request.use_hooks or request.site != DEFAULT_SITE,
            limits=Limits(token_budget(model), batch_size),
            prefix_reuse="off" if not reuse else f"no: {separate}" if separate else "on",
            window=receipt.get("window"),
            onednn=None if error is None else error <= ONEDNN_TOLERANCE,
        )

    def plan(self, rows: Sequence[list[int]]) -> Plan:
        """In which passes to run prompts: packed where they share enough of their beginnings, else padded.

        Args:
            rows: Token ids of each prompt.
        """
        padded: Plan = [*sorted_batches([len(row) for row in rows], self.limits)]
        if self.prefix_reuse == "off" or len(rows) < 2:
            return padded
        shared = shared_batches(rows, self.limits)
        if planned_tokens(shared, rows) > _WORTH_SHARING * sum(map(len, rows)):
            return padded
        longest = max(len(row) for row in rows)
        if self.prefix_reuse != "on" or (self.window is not None and longest > self.window):
            log.info("what prompts share at the beginning is run for each: %s", self._why_separate(longest))
            return padded
        return shared

    def _why_separate(self, longest: int) -> str:
        if self.prefix_reuse != "on":
            return self.prefix_reuse.removeprefix("no: ")
        return f"the longest has {longest} tokens, and tokens of this model see {self.window} back"
