"""Answers of tools: shared fields, sending, and the limit of 8 KB."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from mcp.types import CallToolResult, ImageContent, TextContent
from pydantic import BaseModel, Field, SerializeAsAny, WithJsonSchema
from pydantic_core import to_json

MOST_BYTES = 8192
"""Maximum size of an answer's text and of its structured content, in bytes of UTF-8."""
MOST_TEXT = 160
"""Characters of a prompt in a concise answer."""

_NOTE_BYTES = 640  # kept free for `cut`
_UNCUT = ("name", "job", "next_step")  # useless when shortened


Outline = Annotated[SerializeAsAny[BaseModel], WithJsonSchema({"type": "object"})]
"""A part whose fields the schema of another tool describes: here the schema only says that it is an object."""


class Part(BaseModel):
    """A part of an answer.

    Attributes:
        counted: Names of the lists whose missing entries the field `left_out` counts.
    """

    counted: ClassVar[tuple[str, ...]] = ()


class Reply(Part):
    """The fields of every answer.

    The server's instructions explain them once, instead of every schema.

    Attributes:
        next_step: What to call next.
        warnings: What a reader must know before trusting the result.
        cut: What was cut to stay within the limit, and how to get it; empty if nothing was.
    """

    next_step: str = ""
    warnings: list[str] = Field(default_factory=list)
    cut: str = ""

    def rest(self) -> str:
        """How a client gets what the size limit cut."""
        return ""


class Page(Reply):
    """An answer that shows one page of a longer list.

    Attributes:
        paged: Names of the lists that make up the page, in order.
    """

    paged: ClassVar[tuple[str, ...]] = ()
    total: int | None = None
    next_offset: int | None = Field(default=None, description="offset of the next page")

    def rest(self) -> str:
        """The next page."""
        return f"offset={self.next_offset} shows the next entries" if self.next_offset is not None else ""


def send(reply: Reply, *, failed: bool = False) -> CallToolResult:
    """Make the result of a call: the answer as JSON text and as structured content, without nulls, within 8 KB.

    Args:
        reply: The answer.
        failed: Whether it reports an error.
    """
    reply = fit(reply)
    return CallToolResult(
        content=[TextContent(type="text", text=reply.model_dump_json(exclude_none=True, exclude_defaults=True))],
        structured_content=reply.model_dump(mode="json", exclude_none=True),
        is_error=failed,
    )


def send_chart(text: str, image: ImageContent | None, rest: str) -> CallToolResult:
    """Make the result of a call that draws.

    Args:
        text: The chart as text; its middle lines are dropped if it exceeds 8 KB.
        image: The chart as a picture, if wanted.
        rest: How a client gets the dropped lines.
    """
    content = [TextContent(type="text", text=_fit_lines(text, rest))]
    return CallToolResult(content=[*content, image] if image else [*content])


def shorten(text: str, most: int = MOST_TEXT) -> str:
    """Put a text on one line of at most `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def rounded(value: float, digits: int = 3) -> float:
    """Round a number to the digits that are worth sending."""
    return round(value, digits)


def fit(reply: Reply) -> Reply:
    """Return the answer, or a shortened copy that says what was cut.

    A page ends earlier, and `next_offset` leads to the rest. Otherwise the largest list, mapping or text is cut first.
    """
    if _size(reply) <= MOST_BYTES:
        return reply
    return _Shortening(reply.model_copy(deep=True)).run()


@dataclass
class _Shortening:
    """Cuts one answer to the limit and notes what it cut."""

    reply: Reply
    dropped: dict[str, tuple[int, int]] = field(default_factory=dict)  # list: entries dropped, entries before
    shortened: bool = False

    def run(self) -> Reply:
        if isinstance(self.reply, Page):
            self._end_page(self.reply)
        for longest in (300, 60):
            while (excess := self._excess()) > 0 and self._cut_largest(excess, longest):
                pass
        lists = [f"{dropped} of {before} {name}" for name, (dropped, before) in self.dropped.items()]
        note = f"dropped {', '.join(lists)}" if lists else ""
        texts = "shortened long texts" if self.shortened else ""
        rest = f": {self.reply.rest()}" if self.reply.rest() else ""
        self.reply.cut = f"{'; '.join(filter(None, [note, texts]))} to stay within {MOST_BYTES} bytes{rest}"
        return self.reply

    def _excess(self) -> int:
        return _size(self.reply) + _NOTE_BYTES - MOST_BYTES

    def _end_page(self, page: Page) -> None:
        """End the page earlier, after at least one entry."""
        lists = {name: getattr(page, name) or [] for name in page.paged}
        gone = 0
        for name in reversed(page.paged):
            keep = 0 if sum(len(entries) for entries in lists.values()) > len(lists[name]) else 1
            gone += self._drop(page, name, lists[name], self._excess(), keep)
        if gone:
            page.next_offset = (page.next_offset or page.total or 0) - gone

    def _cut_largest(self, excess: int, longest: int) -> bool:
        """Cut the part with the most to cut; return False if there is none."""
        paged = self.reply.paged if isinstance(self.reply, Page) else ()
        containers = [found for found in _containers(self.reply) if found[1] not in paged and len(found[2]) > 1]
        container = max(containers, key=lambda found: _droppable(found[2]), default=None)
        text = max(_texts(self.reply), key=lambda found: len(found[2].encode()), default=None)
        over = len(text[2].encode()) - longest if text else 0
        if container and _droppable(container[2]) >= over:
            owner, name, entries = container
            self._drop(owner, name, entries, excess, keep=1)
            return True
        if text is None or over <= 0:
            return False
        holder, key, said = text
        _put(holder, key, _clip(said, max(longest, len(said.encode()) - excess)))
        self.shortened = True
        return True

    def _drop(self, owner: BaseModel, name: str, entries: Any, excess: int, keep: int) -> int:  # noqa: ANN401 - list or dict
        """Drop entries from the end until the excess is gone; return how many."""
        before, gone = len(entries), 0
        while excess > 0 and len(entries) > keep:
            excess -= _size(entries.pop() if isinstance(entries, list) else entries.popitem()) + 1
            gone += 1
        if gone:
            earlier, first = self.dropped.get(name, (0, before))
            self.dropped[name] = earlier + gone, first
            if isinstance(owner, Part) and name in owner.counted:
                owner.left_out += gone  # type: ignore[attr-defined]  # a part that counts has the field
        return gone


def _containers(value: BaseModel) -> Iterator[tuple[BaseModel, str, Any]]:
    """Yield the lists and mappings of an answer, with owner and name.

    Those inside lists are skipped.
    """
    for name in type(value).model_fields:
        inner = getattr(value, name)
        if isinstance(inner, BaseModel):
            yield from _containers(inner)
        elif isinstance(inner, list | dict):
            yield value, name, inner


def _texts(value: Any) -> Iterator[tuple[Any, Any, str]]:  # noqa: ANN401 - any part of an answer
    """Yield the texts of an answer that may be shortened, with their holder and key."""
    if isinstance(value, BaseModel):
        entries: Any = [(name, getattr(value, name)) for name in type(value).model_fields if name not in _UNCUT]
    elif isinstance(value, dict):
        entries = value.items()
    else:
        entries = enumerate(value)
    for key, inner in entries:
        if isinstance(inner, str):
            yield value, key, inner
        elif isinstance(inner, BaseModel | dict | list):
            yield from _texts(inner)


def _put(holder: Any, key: Any, text: str) -> None:  # noqa: ANN401 - any part of an answer
    if isinstance(holder, BaseModel):
        setattr(holder, key, text)
    else:
        holder[key] = text


def _size(value: object) -> int:
    """Return the size of a value as JSON, in bytes."""
    return len(to_json(value, exclude_none=True))


def _droppable(entries: Any) -> int:  # noqa: ANN401 - list or dict
    """Return the size of all entries except the first, in bytes."""
    first = entries[0] if isinstance(entries, list) else next(iter(entries.items()))
    return _size(entries) - _size(first)


def _clip(text: str, most: int) -> str:
    """Cut a text to at most `most` bytes."""
    return f"{text.encode()[: most - 3].decode(errors='ignore')}…"


def _fit_lines(text: str, rest: str) -> str:
    """Drop the middle lines of a text that is too long."""
    if len(text.encode()) <= MOST_BYTES:
        return text
    lines = text.splitlines()
    start = stop = middle = len(lines) // 2
    excess = len(text.encode()) + _NOTE_BYTES - MOST_BYTES
    while excess > 0 and stop - start < len(lines):
        if stop < len(lines) and stop - middle <= middle - start:
            gone, stop = lines[stop], stop + 1
        else:
            gone, start = lines[start - 1], start - 1
        excess -= len(gone.encode()) + 1
    note = f"… {stop - start} lines dropped to stay within {MOST_BYTES} bytes: {rest}"
    return "\n".join([*lines[:start], note, *lines[stop:]])
