"""What a model wrote, read as reasoning, tool calls and mistakes. Pure text: hostile input never raises.

The rules:

* A call is one JSON object between ``<tool_call>`` and ``</tool_call>``, with ``name`` (text), ``arguments`` (an
  object) and, if the model likes, ``uniq_id`` or ``id``. JSON strings may hold any tag: the object is decoded from its
  opening brace and not cut out by searching for the closing tag.
* Anything that set out to be a call and is none becomes a :class:`ParseError` *in its place*, so that it can be
  answered. It is never skipped and never turns the message into a final answer.
* Reasoning stands in ``<think>`` blocks, and calls in them don't run. A closing tag without an opening one means that
  the prompt itself had opened the block (several chat templates do), so all that stands before it is reasoning.
* Everything else that breaks the format (text beside the calls, a forged ``<tool_response>``) is noted in
  ``format_errors`` and tolerated; ``strict`` turns the calls of such a message into errors.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

_TAG = re.compile(r"</?(?:think|tool_call|tool_response)>")
_CALL_TAG = re.compile(r"</?tool_call>")
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """One well-formed call. Whether the tool exists and takes these arguments is for the registry to say."""

    name: str
    arguments: dict[str, Any]
    raw_text: str
    uniq_id: str | None = None
    """The id that the model gave, where it gave one."""


@dataclass(frozen=True, slots=True)
class ParseError:
    """Something that set out to be a call. ``message`` is one sentence for the model."""

    message: str
    raw_text: str


@dataclass(frozen=True, slots=True)
class ParsedMessage:
    """One assistant message, read. ``items`` keeps the order in which calls and mistakes stand."""

    items: tuple[ParsedCall | ParseError, ...] = ()
    format_errors: tuple[str, ...] = ()

    @property
    def calls(self) -> list[ParsedCall]:
        """The calls that are to run."""
        return [item for item in self.items if isinstance(item, ParsedCall)]

    @property
    def errors(self) -> list[ParseError]:
        """The calls that can't run."""
        return [item for item in self.items if isinstance(item, ParseError)]

    @property
    def is_final(self) -> bool:
        """Whether the message holds neither a call nor an attempt at one."""
        return not self.items


def parse_message(text: str, *, thinking: bool = False, strict: bool = False) -> ParsedMessage:
    """Read one assistant message.

    ``thinking`` says that the prompt ended inside an open ``<think>`` block. ``strict`` refuses every call of a
    message that also breaks the format.
    """
    items, notes = _Scanner(text, thinking).scan()
    if strict and notes and items:
        complaint = "Nothing of this message was run: " + "; ".join(notes) + "."
        items = [item if isinstance(item, ParseError) else ParseError(complaint, item.raw_text) for item in items]
    return ParsedMessage(tuple(items), tuple(notes))


class _Scanner:
    def __init__(self, text: str, thinking: bool) -> None:
        self._text = text
        self._position = 0
        self._thinking = thinking
        self._items: list[ParsedCall | ParseError] = []
        self._notes: list[str] = []
        self._loose = False
        self._blocks = 0

    def scan(self) -> tuple[list[ParsedCall | ParseError], list[str]]:
        if self._thinking:
            self._think(0)
        while (tag := _TAG.search(self._text, self._position)) is not None:
            self._loose = self._loose or bool(self._text[self._position : tag.start()].strip())
            self._position = tag.end()
            self._take(tag)
        self._loose = self._loose or bool(self._text[self._position :].strip())
        if self._loose and self._items:
            self._notes.append("text stands outside the <think> and <tool_call> blocks")
        if self._blocks > 1:
            self._notes.append("there is more than one <think> block")
        return self._items, list(dict.fromkeys(self._notes))

    def _take(self, tag: re.Match[str]) -> None:
        match tag.group():
            case "<think>":
                self._think(tag.start())
            case "</think>" if not self._blocks:
                # The prompt had opened the block: what was read so far is reasoning.
                self._blocks = 1
                self._items.clear()
                self._notes.clear()
                self._loose = False
            case "</think>":
                self._notes.append("a </think> stands without its <think>")
            case "<tool_call>":
                self._items.append(self._call(tag))
            case "</tool_call>":
                self._items.append(ParseError("A </tool_call> stands without its <tool_call>.", tag.group()))
            case _:
                self._notes.append("only the environment writes <tool_response>")

    def _think(self, start: int) -> None:
        self._blocks += 1
        end = self._text.find("</think>", self._position)
        if end >= 0:
            self._position = end + len("</think>")
            return
        rest = self._text[self._position :]
        self._position = len(self._text)
        self._notes.append("the <think> block is not closed")
        if "<tool_call>" in rest:
            self._items.append(
                ParseError("The <think> block is not closed, so the calls in it did not run.", self._text[start:])
            )

    def _call(self, tag: re.Match[str]) -> ParsedCall | ParseError:
        begin = _after_space(self._text, tag.end())
        if not self._text.startswith("{", begin):
            return self._bad(tag, "the <tool_call> holds no JSON object")
        try:
            value, end = _DECODER.raw_decode(self._text, begin)
        except RecursionError:
            return self._bad(tag, "the JSON is nested too deeply")
        except ValueError as error:  # JSONDecodeError, a number of 5000 digits, NaN
            return self._bad(tag, f"the JSON can't be read: {_reason(error, begin)}")
        close = _after_space(self._text, end)
        if not self._text.startswith("</tool_call>", close):
            at_end = close == len(self._text)
            return self._bad(tag, "the <tool_call> is not closed" if at_end else "text follows the JSON object")
        self._position = close + len("</tool_call>")
        return _check(value, self._text[tag.start() : self._position])

    def _bad(self, tag: re.Match[str], why: str) -> ParseError:
        """Skip to where this call seems to end: its closing tag, or the next opening one."""
        following = _CALL_TAG.search(self._text, tag.end())
        if following is None:
            self._position = len(self._text)
            if "not closed" not in why:
                why += ", and the <tool_call> is not closed"
        elif following.group() == "</tool_call>":
            self._position = following.end()
        else:
            self._position = following.start()
            if "not closed" not in why:
                why += ", and the <tool_call> is not closed"
        return ParseError(f"This call did not run: {why}.", self._text[tag.start() : self._position])


def _check(value: dict[str, Any], raw: str) -> ParsedCall | ParseError:
    name = value.get("name")
    arguments = value.get("arguments")
    if not isinstance(name, str) or not name:
        return ParseError('This call did not run: "name" must be the name of a tool.', raw)
    if not isinstance(arguments, dict):
        return ParseError('This call did not run: "arguments" must be a JSON object.', raw)
    given = value.get("uniq_id", value.get("id"))
    return ParsedCall(name, arguments, raw, None if given is None else str(given))


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return position if match is None else match.end()


def _reason(error: ValueError, begin: int) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos - begin + 1} of the object"
    return "a number in it is not allowed"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and Infinity are no JSON, though Python reads them


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
