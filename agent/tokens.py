"""The token ledger: which ids the model consumed and produced, in order, and which of them it chose itself.

Append-only. A turn's prompt is everything so far plus the rendered suffix; a turn's outcome is taken over exactly as
the server returned it, or refused. Knows no server and does no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.checks import MASKED, NOT_SAMPLED, problems, real
from agent.render import ChatRenderer, LedgerError, Message

_NAMED = "</s> <eos> <|endoftext|> <|end_of_text|> <|eot_id|> <|eom_id|> <|im_end|> <|end|> <end_of_turn> <turn|>"
STOP_TOKENS = frozenset(_NAMED.split())
"""With which some model ends its turn. One that was sampled is not followed by the template's own."""


@dataclass
class SequenceData:
    """One sequence for training: what the server consumed (masked) and produced."""

    full_text: str
    tokens: list[int]
    masked_tokens: list[int]
    """-100 for the prompt and the observations, the id itself for what was sampled."""
    logprobs: list[float]
    """1.0 where nothing was sampled."""
    trainable: bool = True
    """False where the ids or logprobs aren't the server's own; ``reason`` says why."""
    reason: str = ""

    @classmethod
    def from_sequence_node(cls, node: Any) -> SequenceData:
        """Copy a node of ``ManagedServer``'s, or of anything like it; what doesn't add up is marked as unfit."""
        tokens, masks, logprobs = list(node.tokens), list(node.masked_tokens), list(node.logprobs)
        metadata = getattr(node, "metadata", None) or {}
        found = problems(tokens, masks, logprobs)
        if metadata.get("dummy_tokens"):
            found = ["its tokens are placeholders (DummyManagedServer)"]
        return cls(str(node.full_text), tokens, masks, logprobs, not found, "; ".join(found))


@dataclass(frozen=True, slots=True)
class Pending:
    """A prompt that is about to be sent."""

    messages: tuple[Message, ...]
    ids: list[int]
    text: str
    """All of it, as text."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One completion, as the server returned it."""

    text: str
    """Without the stop token that ends it."""
    ids: tuple[int, ...]
    finish_reason: str


@dataclass
class TokenLedger:
    """One conversation."""

    renderer: ChatRenderer
    ids: list[int] = field(default_factory=list)
    masks: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    turns: list[Turn] = field(default_factory=list)
    _messages: tuple[Message, ...] = ()
    _ends: frozenset[int] = frozenset()
    _opener: int | None = None

    def prompt(self, messages: Sequence[Message]) -> Pending:
        """What to send for the next turn. It begins with exactly the ids so far; nothing is recorded yet."""
        taken = tuple(dict(message) for message in messages)
        if not self.turns:
            rendered = self.renderer.prompt(taken)
            return Pending(taken, rendered.ids, rendered.text)
        known = len(self._messages)
        expected = {"role": "assistant", "content": self.turns[-1].text}
        if taken[:known] != self._messages or taken[known : known + 1] != (expected,):
            raise LedgerError("the messages don't continue the conversation so far, so its ids can't be kept")
        rendered = self.renderer.suffix(taken[:known], taken[known + 1 :])
        suffix, text = rendered.ids, rendered.text
        stop = self._stop_at_the_end(self.ids)
        if stop is not None and suffix and (suffix[0] == stop or suffix[0] in self._ends):
            # The model ended its turn itself: one stop token stands at the join, and it is the sampled one.
            suffix, text = suffix[1:], text.removeprefix(self.renderer.decode(suffix[:1]))
        return Pending(taken, self.ids + suffix, self.text + text)

    def record(
        self,
        pending: Pending,
        used: Sequence[int],
        output: Sequence[int],
        logprobs: Sequence[float],
        finish_reason: object,
    ) -> Turn:
        """Take over a completion, or raise :class:`LedgerError` and stay as before.

        ``used`` are the ids that the server says it consumed: a server that strips a doubled BOS says so there.
        """
        prompt, ids = list(used), list(output)
        if prompt[: len(self.ids)] != self.ids:
            raise LedgerError("the server consumed other ids than those of the conversation so far")
        if self.turns and prompt != pending.ids:
            raise LedgerError("the server consumed other ids than it was sent")
        reason = _reason(finish_reason)
        if not ids:
            raise LedgerError(f"the server returned no token ids (finish reason {reason}), so nothing can be recorded")
        if len(logprobs) != len(ids):
            raise LedgerError(f"the server returned {len(logprobs)} logprobs for {len(ids)} token ids")
        unreal = next((position for position, value in enumerate(logprobs) if not real(value)), None)
        if unreal is not None:
            raise LedgerError(f"the server returned no real logprob for token {unreal} of its completion")
        if not self.turns:
            self._find_stops(pending.messages)
        stop = self._stop_at_the_end(ids)
        turn = Turn(self.renderer.decode(ids if stop is None else ids[:-1]), tuple(ids), reason)
        added = len(prompt) - len(self.ids)
        self.ids = prompt + ids
        self.masks = self.masks + [MASKED] * added + ids
        self.logprobs = self.logprobs + [NOT_SAMPLED] * added + [float(value) for value in logprobs]
        self.text = pending.text + self.renderer.decode(ids)
        self._messages = pending.messages
        self.turns.append(turn)
        if not len(self.ids) == len(self.masks) == len(self.logprobs):
            raise LedgerError(
                "the ledger's lengths differ: a mistake in it, and nothing of this episode is fit to train"
            )
        return turn

    def _stop_at_the_end(self, ids: Sequence[int]) -> int | None:
        return ids[-1] if ids and (ids[-1] in self._ends or ids[-1] == self._opener) else None

    def _find_stops(self, messages: Sequence[Message]) -> None:
        named = {number for number in self.renderer.control_ids if self.renderer.decode([number]) in STOP_TOKENS}
        end, self._opener = self.renderer.turn_end(messages)
        self._ends = frozenset(named | self.renderer.eos_ids() | (set() if end is None else {end}))


def _reason(finish_reason: object) -> str:
    """vLLM says ``"stop"``, SGLang ``{"type": "stop", "matched": 2}``, and both may say nothing."""
    if isinstance(finish_reason, dict):
        finish_reason = finish_reason.get("type")
    return "stop" if finish_reason is None else str(finish_reason)
