"""What a concept consists of, and the pairs it makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict


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
