"""Resolve a request against a checked model, and plan its batches."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engine.capture.batches import Limits, sorted_batches
from engine.capture.budget import token_budget
from engine.capture.prefixes import Plan, planned_tokens, shared_batches, some_compiled
from engine.capture.selection import Positions
from engine.capture.sites import BETWEEN_BLOCKS, DEFAULT_SITE, wanted_layers
from engine.models.compiled import why_not_compiled
from engine.models.description import examine_model
from engine.models.forward import input_device
from engine.models.shortcuts import ONEDNN_TOLERANCE, attention_name
from engine.models.structure import find_blocks
from engine.models.thread_hooks import prompt_hooks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from engine.capture.request import CaptureRequest
    from engine.models.alterations import Snapshot
    from engine.records.models import ModelConfig, Receipt

log = logging.getLogger(__name__)

# Pack prompts only if at most this share of their tokens remains where attention over packed rows costs extra: on an
# H100 passes took 1.1 to 1.4 times as long as padded ones; on a CPU in half precision or with other attention, a tenth.
_WORTH_SHARING = {"cpu": 0.9}
_WORTH_SHARING_ON_GPU = 0.8
_ALWAYS = math.inf


@dataclass(frozen=True)
class Settings:
    """What a run keeps, and how it runs.

    Attributes:
        model: Description of the model when the capture starts.
        snapshot: Snapshot of its state at that time, to detect later changes.
        site: The site to read.
        layers: Layer numbers, ascending; the adjoining block for a site without layers.
        positions: The tokens to keep.
        use_hooks: Whether a forward pass stops after the last requested layer.
        limits: Maximum size of a batch.
        prefix_reuse: "on" or "off" for prefix sharing, or "no: " and why the model does not allow it.
        window: Maximum prompt length for prefix sharing; None for no limit.
        onednn: Whether float32 matrix products use oneDNN; None if that makes no difference.
        worth_packing: Share of the tokens that may remain if prompts are packed; infinite to pack those that share no
            prefix as well, because attention in blocks is faster then, or because packed rows run compiled.
        compiled: "on" or "off" for compiled blocks, or "no: " and why they cannot be compiled.
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
    worth_packing: float = _WORTH_SHARING_ON_GPU
    compiled: str = "off"

    @classmethod
    def for_model(cls, model: PreTrainedModel, request: CaptureRequest) -> Settings:
        """Resolve a request against a model.

        Raises:
            RequestError: The model does not have the layers.
            ModelError: The model fails the load check, or does not have the site.
        """
        known, snapshot = examine_model(model)
        receipt, added = known.receipt, known.added
        layers = wanted_layers(request.site, request.layers, receipt)
        separate = receipt.get("separate", "not checked")
        batch_size = request.batch_size
        if added:
            log.info("running prompts one at a time because code was added to the model: %s", "; ".join(added))
            batch_size = 1
        responds = request.respond is not None or request.gives_responses
        if not responds and any(hook.generated for hook in prompt_hooks(find_blocks(model).decoder)):
            log.warning("steering of generated tokens changes no state here: these prompts have no responses")
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
            onednn=uses_onednn(receipt),
            worth_packing=worth_packing(model, receipt),
        )

    def compile(self, model: PreTrainedModel, rows: Sequence[list[int]]) -> Settings:
        """Compile the blocks, if the model, the request and the prompts allow it; else say why they do not.

        The first time for a kind of model, this takes up to a minute.

        Args:
            model: A checked model.
            rows: Token ids of the prompts; empty if they are not in memory.
        """
        compiled = replace(self, compiled="on", worth_packing=_ALWAYS)
        if self.site not in BETWEEN_BLOCKS:
            why = f"{self.site} is read inside the blocks"
        elif self.prefix_reuse != "on":
            why = "prompts run in full" if self.prefix_reuse == "off" else self.prefix_reuse.removeprefix("no: ")
        elif rows and not some_compiled(compiled.plan(rows), rows, self.limits.tokens):
            why = f"no row of these prompts fills half of the {self.limits.tokens} tokens of compiled rows"
        else:
            why = why_not_compiled(model, find_blocks(model), self.limits.tokens, self.model.receipt["tolerance"])
        if why:
            log.info("blocks are not compiled: %s", why)
        return replace(self, compiled=f"no: {why}") if why else compiled

    @property
    def compiled_tokens(self) -> int | None:
        """Length of the rows that run compiled; None without compiled blocks."""
        return self.limits.tokens if self.compiled == "on" else None

    def plan(self, rows: Sequence[list[int]]) -> Plan:
        """Group prompts into batches: packed if that is faster and the model allows it, else padded.

        Args:
            rows: Token ids of each prompt.
        """
        padded: Plan = [*sorted_batches([len(row) for row in rows], self.limits)]
        if self.prefix_reuse == "off" or len(rows) < 2:
            return padded
        shared, longest = shared_batches(rows, self.limits, compiled=self.compiled == "on"), max(map(len, rows))
        share = planned_tokens(shared, rows) / sum(map(len, rows))
        if self.prefix_reuse == "on" and (self.window is None or longest <= self.window):
            return shared if share <= self.worth_packing else padded
        if share <= _WORTH_SHARING["cpu"]:
            log.info("running shared prefixes once per prompt: %s", self._why_separate())
        return padded

    def _why_separate(self) -> str:
        if self.prefix_reuse != "on":
            return self.prefix_reuse.removeprefix("no: ")
        return f"some prompts are longer than the model's attention window of {self.window} tokens"


def uses_onednn(receipt: Receipt) -> bool | None:
    """Whether float32 matrix products use oneDNN; None if that makes no difference."""
    error = receipt.get("onednn_error")
    return None if error is None else error <= ONEDNN_TOLERANCE


def worth_packing(model: PreTrainedModel, receipt: Receipt) -> float:
    """Share of the tokens that may remain if prompts are packed; infinite if packing is faster in any case."""
    if uses_onednn(receipt) and attention_name(model.config) == "sdpa":
        return _ALWAYS
    return _WORTH_SHARING.get(input_device(model).type, _WORTH_SHARING_ON_GPU)


def sharing_allowed(model: ModelConfig) -> bool:
    """Whether prompts of a model may be packed into one row; code added to a model might not respect the mask."""
    return not model.added and not model.receipt.get("separate", "not checked")
