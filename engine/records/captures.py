"""What a concept consists of, and the pairs it makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NotRequired, TypedDict, cast, final

from engine.records.models import Adapter, Receipt, SourceKind

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Persona:
    """The two roles of a contrast, worded alike but for what the contrast is about."""

    name: str
    positive: str
    negative: str


@dataclass(frozen=True)
class Template:
    """How a persona and a topic become a conversation; both texts may hold `{persona}` and `{topic}`."""

    name: str
    user: str
    system: str = ""


@dataclass(frozen=True)
class Concept:
    """A named contrast: what is varied (personas) and what it is varied over (templates, topics)."""

    name: str
    description: str
    positive: str
    negative: str
    personas: tuple[Persona, ...]
    templates: tuple[Template, ...]
    topics: tuple[str, ...]


class Factors(TypedDict):
    """What a pair was made from: statistics leave one of these out at a time."""

    template: str
    persona: str
    topic: str


class Message(TypedDict):
    """One turn of a conversation, as chat templates take it."""

    role: str
    content: str


@dataclass(frozen=True)
class Pair:
    """One positive and one negative conversation that differ only in the persona."""

    positive: tuple[Message, ...]
    negative: tuple[Message, ...]
    factors: Factors


class Provenance(TypedDict):
    """Everything that must be equal, or known to differ, before two captures are compared.

    Attributes:
        model: Model id.
        alias: Short name of the model.
        revision: Commit on the hub, version of the package, or hash of the GGUF file; None when nothing pins it.
        source: Kind of source.
        dtype: Dtype of the weights.
        device: Where the first block lay.
        attention: Attention implementation.
        chat_template: SHA-256 of the chat template that prompts went through, None when they were plain text.
        template_time: The time that the chat template was told, in ISO 8601, where it reads the clock.
        versions: Versions of layerscope, Python, torch and transformers.
        site: What was read at each layer; `embed` and `final_norm`, which have none, lie under the block they adjoin.
        positions: Which tokens were kept.
        mode: `hooks` where a pass stopped after the last layer, `whole_pass` where it ran to its end; in captures of
            older versions `hidden_states`.
        batch_size: Most prompts in one forward pass; None for as many as the token budget takes.
        token_budget: Most tokens in one forward pass; captures of older versions had none.
        prefix_reuse: Whether what prompts share at the beginning was run once: `on` where that saved something, with
            the longest prompt for which a sliding window allows it, `off` when it was not wanted, or `no` with what the
            model has against it.
        products: What computed matrix products: `oneDNN` for float32 where the check at load found that as exact, or
            PyTorch's `default`.
        seed: Seed of the draw of pairs, None where nothing was drawn.
        receipt: The check at load.
        weights: Fingerprint of the weights, without those of adapters; captures of older versions had none.
        adapters: The adapters on the model, where there were any.
        altered: What else was done to the model that its checkpoint does not say: hooks, wrapped modules, replaced
            forwards, edited weights, in words; where anything was.
        added_code: True where `altered` names code of somebody else's: two hooks of one name may do different things.
        autocast: The dtype that autocast computed in, where it did.
    """

    model: str
    alias: str
    revision: str | None
    source: SourceKind
    dtype: str
    device: str
    attention: str
    chat_template: str | None
    template_time: NotRequired[str]
    versions: dict[str, str]
    site: str
    positions: str
    mode: str
    batch_size: int | None
    token_budget: NotRequired[int]
    prefix_reuse: NotRequired[str]
    products: NotRequired[str]
    seed: int | None
    receipt: Receipt
    weights: NotRequired[str]
    adapters: NotRequired[list[Adapter]]
    altered: NotRequired[list[str]]
    added_code: NotRequired[bool]
    autocast: NotRequired[str]


def describe_adapter(adapter: Adapter) -> str:
    """An adapter in words."""
    return (
        f"{'merged ' if adapter['merged'] else ''}adapter {adapter['name']}: {adapter['kind']}"
        + (f", rank {adapter['rank']}" if adapter["rank"] else "")
        + "".join(f", scale {scale:g}" for scale in adapter["scales"])
        + f", weights {adapter['weights'][:8]}{'' if adapter['active'] or adapter['merged'] else ', not active'}"
    )


def model_differences(one: Provenance, other: Provenance) -> list[tuple[str, str, str]]:
    """In what the models of two captures differ that go by one name; empty where nothing is known to differ.

    Code that was added to a model is always named: two hooks of one name may do different things.

    Args:
        one: How a capture was made.
        other: How another was made.

    Returns:
        Name of the field, and what each capture has there, in words.
    """
    differing = [
        (field, _shown(dict(one).get(field)), _shown(dict(other).get(field)))
        for field in ("revision", "dtype", "adapters", "altered", "autocast")
        if _meaning(dict(one).get(field)) != _meaning(dict(other).get(field))
        or (field == "altered" and ("added_code" in one or "added_code" in other))
    ]
    weights = one.get("weights"), other.get("weights")
    if None not in weights and weights[0] != weights[1]:
        differing.append(("weights", str(weights[0])[:8], str(weights[1])[:8]))
    return differing


def _meaning(value: object) -> object:
    """A field without the adapters that take no part, and without the names of the others."""
    if isinstance(value, list):
        entries = [one for one in value if not isinstance(one, dict) or one["active"] or one["merged"]]
        return [one | {"name": ""} if isinstance(one, dict) else one for one in entries] or None
    return value


def _shown(value: object) -> str:
    if isinstance(value, list):
        words = (describe_adapter(cast("Adapter", one)) if isinstance(one, dict) else str(one) for one in value)
        return "; ".join(words) or "none"
    return "none" if value is None else str(value)


@final
class ActivationData(TypedDict):
    """What `capture_activations` returns.

    Attributes:
        activations: Layer number to states, `(batch, kept tokens, hidden)`, on the CPU in the model's dtype (float32
            for a mean). Rows of a batch end together: `[:, -1, :]` is the last kept token of every prompt, shorter
            prompts have zeros in front.
        input_ids: Token ids of the whole prompts, `(batch, sequence)`, aligned like the states.
        tokens: Token strings of the prompt; one list per prompt when several were given.
        prompt: The text; a list when several were given.
        num_layers: Number of decoder blocks in the model.
        captured_layers: The keys of `activations`, ascending.
        attention_mask: 1 where `activations` hold a token's state, 0 where they hold the zeros in front of a shorter
            prompt, `(batch, kept tokens)`; only when several prompts were given.
        provenance: How it was made. Lies in the JSON file on disk, not in the `.pt`.
    """

    activations: dict[int, Tensor]
    input_ids: Tensor
    tokens: list[str] | list[list[str]]
    prompt: str | list[str]
    num_layers: int
    captured_layers: list[int]
    attention_mask: NotRequired[Tensor]
    provenance: NotRequired[Provenance]


@final
class ContrastData(TypedDict):
    """What `capture_contrastive_activations` and `capture_from_concept` return.

    Attributes:
        positive: One capture per pair, each with a batch of one.
        negative: The other side, in the same order.
        num_pairs: Number of pairs.
        concept: Name of the concept, None for prompts of the user's own.
        layers: Captured layers, ascending.
        factors: What each pair was made from. Lies in the JSON file on disk, not in the `.pt`.
        provenance: How it was made. Lies in the JSON file on disk, not in the `.pt`.
    """

    positive: list[ActivationData]
    negative: list[ActivationData]
    num_pairs: int
    concept: str | None
    layers: list[int]
    factors: NotRequired[list[Factors]]
    provenance: NotRequired[Provenance]


CaptureData = ActivationData | ContrastData


class CaptureEstimate(TypedDict):
    """What a capture will cost.

    Attributes:
        prompts: Number of prompts.
        tokens: Number of tokens in them.
        bytes: Size of the states that are kept.
        in_shards: Whether it is saved as shards, which are resumable and need bounded memory.
        seconds: Time of the forward passes, if a pass was timed.
    """

    prompts: int
    tokens: int
    bytes: int
    in_shards: bool
    seconds: NotRequired[float]
