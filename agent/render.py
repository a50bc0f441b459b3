"""Messages become token ids, in two ways that never change an id which a model has already seen.

:meth:`ChatRenderer.prompt` renders a whole conversation, once, for an episode's first turn.
:meth:`ChatRenderer.suffix` renders only what follows the model's last message, so that whatever the template does to
history (trimming, stripping thoughts, wrapping calls) can't reach it: the template is given a placeholder for that
message, and what stands after the placeholder is the suffix.

Text that people and tools wrote (roles ``user`` and ``tool``) holds no control token: where it spells one, it is
encoded in two pieces. The control tokens of system and assistant messages are left alive, since a system prompt that
explains ``<tool_call>`` must show the token that the model is to write.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, Any]

INERT_ROLES = frozenset({"user", "tool"})

_WRAPPERS = ("<tool_response>", "</tool_response>")


class LedgerError(RuntimeError):
    """The conversation can't be represented token by token. One sentence; nothing was approximated."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """Text and the ids that stand for it."""

    text: str
    ids: list[int]


class ChatRenderer:
    """One tokenizer with its chat template. Works with any object that has ``encode`` and ``decode``."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", None) or {}
        texts = {int(number): _text(token) for number, token in added.items()}
        # Runs of blanks are added tokens of several tokenizers: they control nothing, and breaking them costs tokens.
        control = {n: t for n, t in texts.items() if t.strip() or getattr(added[n], "special", False)}
        self.control_ids = frozenset(control)
        spelled = sorted((re.escape(t) for t in control.values() if t), key=len, reverse=True)
        self._control = re.compile("|".join(spelled)) if spelled else None
        self._anchor = self._find_anchor(added)
        self._fold_system = False
        self._is_hf = hasattr(tokenizer, "added_tokens_decoder")

    def prompt(self, messages: Sequence[Message]) -> Rendered:
        """A whole conversation and the opening of the model's turn."""
        marker = _unused(_MARKER, messages)
        inert = [self._inert(message, marker) for message in messages]
        return self._encoded(self._whole(inert), marker, anchored=False)

    def suffix(self, before: Sequence[Message], after: Sequence[Message]) -> Rendered:
        """What stands between the text of the model's message, which follows ``before``, and its next turn."""
        marker = _unused(_MARKER, after)
        reply = _unused(_REPLY, [*before, *after])
        inert = [self._inert(message, marker) for message in after]
        text = self._render([*before, {"role": "assistant", "content": reply}, *inert], generate=True)
        _, found, suffix = text.rpartition(reply)
        if not found:
            raise LedgerError("the chat template leaves out assistant messages, so no conversation can be continued")
        return self._encoded(suffix, marker, anchored=True)

    def turn_end(self, before: Sequence[Message]) -> tuple[int | None, int | None]:
        """The control tokens that close an assistant's turn, and that follow its text before a user's turn.

        They are the same where the template closes turns. Where it doesn't, the second opens the user's turn, and a
        model that stops by sampling it has said the first token of the suffix itself.
        """
        reply = _unused(_REPLY, before)
        text = self._render([*before, {"role": "assistant", "content": reply}], generate=False)
        closing = self.encode_after(text.rpartition(reply)[2])
        following = self.suffix(before, [{"role": "user", "content": "go on"}]).ids
        return self._leading(closing), self._leading(following)

    def _leading(self, ids: Sequence[int]) -> int | None:
        return ids[0] if ids and ids[0] in self.control_ids else None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, control tokens included."""
        if not self._is_hf:
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))
        text = self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text)

    def eos_ids(self) -> frozenset[int]:
        """The tokenizer's own end-of-sequence ids."""
        eos = getattr(self._tokenizer, "eos_token_id", None)
        return frozenset() if eos is None else frozenset(eos if isinstance(eos, list | tuple) else [eos])

    def _whole(self, messages: Sequence[Message]) -> str:
        """Render from the start; a template that refuses or drops system messages gets them within a user message."""
        system = [str(message.get("content") or "").strip() for message in messages if message["role"] == "system"]
        if any(system):
            try:
                text = self._render(messages, generate=True)
            except Exception as error:  # noqa: BLE001 - templates raise whatever their author chose
                refusal: Exception | None = error
                text = ""
            else:
                refusal = None
            if all(part in text for part in system):
                return text
            self._fold_system = True
            try:
                text = self._render(messages, generate=True)
            except Exception as error:
                raise refusal or error from error
            if not all(part in text for part in system):
                raise LedgerError("the chat template leaves out the system text, even within a user message")
            return text
        return self._render(messages, generate=True)

    def _render(self, messages: Sequence[Message], *, generate: bool) -> str:
        plain = [dict(message) for message in messages]
        if self._fold_system:
            plain = _folded(plain)
        template = getattr(self._tokenizer, "apply_chat_template", None)
        if template is None:
            return "\n".join(f"{message['role']}: {message.get('content') or ''}" for message in plain)
        # Never with tokenize=True: transformers 5 returns a mapping there, and ids that know nothing of our pieces.
        return str(template(plain, tokenize=False, add_generation_prompt=generate))

    def _encoded(self, text: str, marker: str, *, anchored: bool) -> Rendered:
        first, *rest = text.split(marker)
        ids = self.encode_after(first) if anchored else self._encode(first)
        for piece in rest:
            ids += self.encode_after(piece)
        return Rendered(text.replace(marker, ""), ids)

    def _encode(self, text: str) -> list[int]:
        # Without the tokenizer's own additions: a template writes its BOS itself, so they would double it.
        return list(self._tokenizer.encode(text, add_special_tokens=False)) if text else []

    def encode_after(self, text: str) -> list[int]:
        """Encode what stands in the middle of a text: some tokenizers put a blank before what they take for a start."""
        if self._anchor is None or not text:
            return self._encode(text)
        spelled, number = self._anchor
        ids = self._encode(spelled + text)
        return ids[1:] if ids[:1] == [number] else self._encode(text)

    def _find_anchor(self, added: Mapping[int, Any]) -> tuple[str, int] | None:
        for number, token in added.items():
            spelled = _text(token)
            if not getattr(token, "special", False) or getattr(token, "rstrip", False) or not spelled:
                continue
            if self._encode(spelled) == [number]:
                return spelled, int(number)
        return None

    def _inert(self, message: Message, marker: str) -> Message:
        content = message.get("content")
        if message["role"] not in INERT_ROLES or not isinstance(content, str) or self._control is None:
            return message
        return {**message, "content": self.neutralise(content, marker)}

    def neutralise(self, text: str, marker: str) -> str:
        """Put ``marker`` inside every spelling of a control token; pieces between markers are encoded one by one."""
        if self._control is None:
            return text
        kept: set[str] = set()

        def break_up(found: re.Match[str]) -> str:
            if found.group() in _WRAPPERS and _is_wrapper(found):
                kept.add(found.group())  # the environment's own tags around a response, not what a tool printed
                return found.group()
            return self._broken(found.group(), marker)

        pieces = self._control.sub(break_up, text).split(marker)
        # A normalizer may make a token of what is spelled differently (full width, upper case): ask the tokenizer.
        return marker.join(p if self._is_inert(p, kept) else self._shattered(p, marker, kept) for p in pieces)

    def _broken(self, spelled: str, marker: str) -> str:
        """One spelling in two pieces, and those within it too; one character can't be broken, so it is written out."""
        if self._control is None or self._control.search(spelled) is None:
            return spelled
        if len(spelled) == 1:
            return _written_out(spelled)
        rest = self._control.sub(lambda found: self._broken(found.group(), marker), spelled[1:])
        return self._broken(spelled[0], marker) + marker + rest

    def _is_inert(self, piece: str, kept: Set[str]) -> bool:
        found = sum(number in self.control_ids for number in self.encode_after(piece))
        return found <= sum(piece.count(wrapper) for wrapper in kept)

    def _shattered(self, piece: str, marker: str, kept: Set[str]) -> str:
        units = re.findall("|".join([*kept, "."]), piece, re.DOTALL)
        return marker.join(
            unit if unit in kept or self.control_ids.isdisjoint(self.encode_after(unit)) else _written_out(unit)
            for unit in units
        )


def _written_out(character: str) -> str:
    return f"\\u{ord(character):04x}"


def _is_wrapper(found: re.Match[str]) -> bool:
    """``to_xml`` puts one response on a line of its own and escapes these tags within it."""
    text, start, end = found.string, found.start(), found.end()
    if found.group() == "<tool_response>":
        return text[start - 1 : start] in ("", "\n") and text.startswith("{", end)
    return text[end : end + 1] in ("", "\n") and text[:start].endswith("}")


def _folded(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    system = [str(message.get("content") or "") for message in messages if message["role"] == "system"]
    others = [message for message in messages if message["role"] != "system"]
    if not others or others[0]["role"] != "user":
        raise LedgerError("the chat template has no system role, and there is no user message to carry the system text")
    first = {**others[0], "content": "\n\n".join([*system, str(others[0].get("content") or "")])}
    return [first, *others[1:]]


def _text(token: Any) -> str:
    return str(getattr(token, "content", token))


def _contents(messages: Sequence[Message]) -> str:
    return "\0".join(str(message.get("content") or "") for message in messages)


def _unused(pattern: str, messages: Sequence[Message]) -> str:
    """``pattern`` with the first number that no message holds: there is always one, whatever a tool printed."""
    text = _contents(messages)
    return next(word for word in map(pattern.format, itertools.count()) if word not in text)


_MARKER = "\ue000{}\ue001"
"""Private use characters: no template strips or splits at them."""

_REPLY = "reply{}placeholder"
"""A plain word: it survives trimming and looks like no tag."""
