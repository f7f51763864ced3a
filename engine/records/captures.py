"""Records of concepts, pairs and captures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, NotRequired, TypedDict, cast, final
from unicodedata import normalize

import msgspec

from engine.records.models import Adapter, Receipt, SourceKind

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Persona:
    """The two roles of a contrast, worded alike except for the concept."""

    name: str
    positive: str
    negative: str


@dataclass(frozen=True)
class Template:
    """How a persona and a topic become a conversation.

    `{persona}` and `{topic}` each occur exactly once across `user` and `system`.
    """

    name: str
    user: str
    system: str = ""


@dataclass(frozen=True)
class Concept:
    """A named contrast between personas, varied over templates and topics."""

    name: str
    description: str
    positive: str
    negative: str
    personas: tuple[Persona, ...]
    templates: tuple[Template, ...]
    topics: tuple[str, ...]


class Factors(TypedDict):
    """What a pair was made from; statistics hold out one group of a factor at a time."""

    template: str
    persona: str
    topic: str


class Message(TypedDict):
    """One turn of a conversation, in the format of chat templates."""

    role: str
    content: str


@dataclass(frozen=True)
class Pair:
    """A positive and a negative conversation that differ only in the persona."""

    positive: tuple[Message, ...]
    negative: tuple[Message, ...]
    factors: Factors


class ResponseText(TypedDict):
    """A response to a prompt, whose tokens follow those of the prompt.

    Attributes:
        text: The response, without the end token.
        tokens: Number of its tokens; 0 if the model ended it at once.
        ended: Whether the model ended it before the maximum number of tokens; None for a given response.
    """

    text: str
    tokens: int
    ended: bool | None


class ResponseSource(TypedDict):
    """Where the responses of a capture come from.

    Attributes:
        origin: `generated` by the model, or `given` with the prompts.
        max_new_tokens: Maximum number of tokens of a response; None if they were given.
        sampled: Whether tokens were sampled; False for the most likely tokens and for given responses.
        seed: Seed for sampling; None if nothing was sampled.
        settings: The model's generation settings that may change responses, in words; empty if none are set.
    """

    origin: Literal["generated", "given"]
    max_new_tokens: int | None
    sampled: bool
    seed: int | None
    settings: str


CompiledAs = Annotated[str, msgspec.Meta(pattern=r"^(on\Z|off\Z|no: )")]
"""Whether blocks were compiled: `on`, `off`, or `no: ` and the reason why they could not be."""


class ModelState(TypedDict):
    """What a model computes with, as far as it is known.

    Attributes:
        revision: Commit on the hub, version of the package, or hash of the GGUF file; None if nothing pins it.
        dtype: Dtype of the weights.
        versions: Versions of layerscope, Python, torch and transformers.
        weights: Fingerprint of the weights without adapters; absent, like the next field, in captures of older
            versions.
        configuration: SHA-256 of the values in the model's configuration that may affect states, such as the scaling of
            rotary positions. Models with the same weights may differ in them.
        adapters: Adapters on the model, if any.
        altered: Other changes to the model that its checkpoint does not contain, in words: hooks, wrapped modules,
            replaced forwards, edited weights. Present if there are any.
        added_code: True if `altered` names third-party code: two hooks of the same name may do different things.
        autocast: Dtype that autocast computed in, if it was on.
    """

    revision: str | None
    dtype: str
    versions: dict[str, str]
    weights: NotRequired[str]
    configuration: NotRequired[str]
    adapters: NotRequired[list[Adapter]]
    altered: NotRequired[list[str]]
    added_code: NotRequired[bool]
    autocast: NotRequired[str]


class Provenance(ModelState):
    """How a capture was made: what must match, or be known to differ, in a comparison.

    Attributes:
        model: Model id.
        alias: Short name of the model.
        source: Kind of source.
        device: Device of the first block.
        attention: Attention implementation.
        chat_template: SHA-256 of the chat template that rendered the prompts; None for plain text.
        template_time: Time given to the chat template, in ISO 8601; present if the template reads the clock.
        site: What was read at each layer. `embed` and `final_norm`, which have no layer, are stored under the adjacent
            block.
        positions: Which tokens were kept.
        mode: `hooks` if the forward pass stopped after the last captured layer, `whole_pass` if it ran to the end;
            `hidden_states` in captures of older versions.
        batch_size: Maximum number of prompts in one forward pass; None if only the token budget limits it.
        token_budget: Maximum number of tokens in one forward pass; absent in captures of older versions.
        prefix_reuse: Whether shared prefixes were run once where that saved enough tokens: `on`, with the longest
            prompt that a sliding window allows; `off` if disabled; or `no` with the reason why the model does not
            support it.
        compiled: `on` if the blocks were compiled for full rows; or `no` with the reason why they could not be, if that
            was requested.
        products: Backend of matrix products: `oneDNN` for float32 where the load check found it as exact, or
            PyTorch's `default`.
        seed: Seed for sampling pairs; None if nothing was sampled.
        receipt: Result of the load check.
        responses: Where the responses come from, if the captured prompts have any.
    """

    model: str
    alias: str
    source: SourceKind
    device: str
    attention: str
    chat_template: str | None
    template_time: NotRequired[str]
    site: str
    positions: str
    mode: str
    batch_size: int | None
    token_budget: NotRequired[Annotated[int, msgspec.Meta(ge=1)]]
    prefix_reuse: NotRequired[str]
    compiled: NotRequired[CompiledAs]
    products: NotRequired[str]
    seed: int | None
    receipt: Receipt
    responses: NotRequired[ResponseSource]


def factor_columns(factors: Sequence[Factors]) -> dict[str, list[str]]:
    """Factor to its value for each pair, as it is first spelt; empty where it is missing.

    Values that differ in white space or capitals only are one: a stray space must not make a new persona.

    Example:
        >>> pairs = [Factors(persona=name, template="plain", topic="") for name in ("nurse", "Nurse ")]
        >>> factor_columns(pairs)["persona"]
        ['nurse', 'nurse']
    """
    return {
        "persona": _in_one_spelling(pair["persona"] for pair in factors),
        "template": _in_one_spelling(pair["template"] for pair in factors),
        "topic": _in_one_spelling(pair["topic"] for pair in factors),
    }


def has_neutral_prompts(concept: str | None, factors: Sequence[Factors] | None) -> bool:
    """Whether a contrast comes with prompts without a persona, the topics of its concept.

    Example:
        >>> has_neutral_prompts(None, [Factors(persona="nurse", template="plain", topic="tea")])
        False
    """
    return bool(concept and factors and all(pair["topic"] for pair in factors))


def _in_one_spelling(values: Iterable[str]) -> list[str]:
    alike: dict[str, str] = {}  # normal form to the first spelling
    known: dict[str, str] = {}  # there are few spellings, and to normalize one takes long
    found = []
    for value in values:
        if value not in known:
            normal = " ".join(normalize("NFKC", value).casefold().split())
            known[value] = alike.setdefault(normal, value) if normal else ""
        found.append(known[value])
    return found


def describe_adapter(adapter: Adapter) -> str:
    """Describe an adapter in words."""
    return (
        f"{'merged ' if adapter['merged'] else ''}adapter {adapter['name']}: {adapter['kind']}"
        + (f", rank {adapter['rank']}" if adapter["rank"] else "")
        + "".join(f", scale {scale:g}" for scale in adapter["scales"])
        + f", weights {adapter['weights'][:8]}{'' if adapter['active'] or adapter['merged'] else ', not active'}"
    )


def model_differences(one: ModelState, other: ModelState) -> list[tuple[str, str, str]]:
    """List the differences between two models of the same name.

    Code added to a model always counts as a difference: two hooks of the same name may do different things.
    Configurations are compared if the same version of transformers read them, since versions add values.

    Args:
        one: State of one model, as in the provenance of a capture.
        other: State of the other model.

    Returns:
        For each difference, the name of the field and its value in both captures, in words; empty if none is known.
    """
    differing = [
        (field, _shown(dict(one).get(field)), _shown(dict(other).get(field)))
        for field in ("revision", "dtype", "adapters", "altered", "autocast")
        if _meaning(dict(one).get(field)) != _meaning(dict(other).get(field))
        or (field == "altered" and ("added_code" in one or "added_code" in other))
    ]
    for field in comparable_hashes(one, other):
        hashes = str(dict(one)[field]), str(dict(other)[field])
        if hashes[0] != hashes[1]:
            differing.append((field, hashes[0][:8], hashes[1][:8]))
    return differing


def comparable_hashes(one: ModelState, other: ModelState) -> list[str]:
    """Fields whose hashes tell whether two models are the same.

    Weights of another dtype have another hash. Configurations that another version of transformers has read have other
    values, since versions add some.
    """
    versions = {state["versions"].get("transformers") for state in (one, other)}
    known = {"weights": one["dtype"] == other["dtype"], "configuration": len(versions) == 1 and None not in versions}
    return [field for field, alike in known.items() if alike and field in one and field in other]


def changed_model(theirs: ModelState, mine: ModelState, source: str) -> list[str]:
    """Warn of each difference between the model that something came from and the model now.

    Args:
        theirs: State of the model that it came from.
        mine: State of the model now.
        source: What came from that model, such as "the directions".
    """
    return [
        f"the model differs from that of {source} in {field}: {one} there, {other} here"
        for field, one, other in model_differences(theirs, mine)
    ]


def _meaning(value: object) -> object:
    """A field without inactive adapters and adapter names: they change no states."""
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
    """Captured states of one or more prompts, as returned by `capture_activations`.

    Attributes:
        activations: Layer number to states, `(batch, kept tokens, hidden)`, on the CPU in the model's dtype (float32
            for a mean). Rows are right-aligned: `[:, -1, :]` is the last kept token of every prompt, and shorter
            prompts start with zeros.
        input_ids: Token ids of the full prompts with their responses, `(batch, sequence)`, aligned like the states.
        tokens: Token strings of the prompt and its response; one list per prompt if several were given.
        prompt: The text; a list if several were given.
        num_layers: Number of decoder blocks in the model.
        captured_layers: The keys of `activations`, ascending.
        attention_mask: 1 where `activations` holds the state of a token, 0 where it holds padding,
            `(batch, kept tokens)`; present if several prompts were given.
        response: The response, if there is one; a list if several prompts were given. Stored in the JSON file, not in
            the `.pt`.
        provenance: How the capture was made. Stored in the JSON file, not in the `.pt`.
    """

    activations: dict[int, Tensor]
    input_ids: Tensor
    tokens: list[str] | list[list[str]]
    prompt: str | list[str]
    num_layers: int
    captured_layers: list[int]
    attention_mask: NotRequired[Tensor]
    response: NotRequired[ResponseText | list[ResponseText]]
    provenance: NotRequired[Provenance]


@final
class ContrastData(TypedDict):
    """Captured states of pairs, as returned by the contrastive capture functions.

    These are `capture_contrastive_activations` and `capture_from_concept`.

    Attributes:
        positive: One capture per positive prompt, each with a batch of one.
        negative: One capture per negative prompt, in the same order.
        num_pairs: Number of pairs.
        concept: Name of the concept; None for the user's own prompts.
        layers: Captured layers, ascending.
        factors: Factors of each pair. Stored in the JSON file, not in the `.pt`.
        provenance: How the capture was made. Stored in the JSON file, not in the `.pt`.
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
    """Estimated cost of a capture.

    Attributes:
        prompts: Number of prompts.
        tokens: Number of tokens in all prompts and responses; at most, for responses that the model has yet to write.
        bytes: Size of the kept states, in bytes; at most, for such responses.
        in_shards: Whether the capture is saved as shards, which are resumable and need bounded memory.
        seconds: Duration of the forward passes, in seconds; present if a forward pass was timed.
        neighbours: Number of further prompts, of the neighbours that are not cached for this model; 0 if all are cached
            or the capture is not compared with any. Absent unless counted.
    """

    prompts: int
    tokens: int
    bytes: int
    in_shards: bool
    seconds: NotRequired[float]
    neighbours: NotRequired[int]
