"""The token ledger over ``ManagedServer``: the one place of the loop's side that knows an Atropos class.

``ManagedServer`` 0.4.0 tracks a conversation by rendering it anew at each turn and comparing text, which doubles stop
tokens, loses special tokens and drops whole turns with many chat templates. Here the conversation still goes through
it, in this process, but it is lent our ids and our text for each request, and the node that it ends up with is ours.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from agent.direct import DirectChatClient
from agent.render import ChatRenderer, LedgerError, Message
from agent.tokens import Pending, SequenceData, TokenLedger

logger = logging.getLogger(__name__)

BYPASS = "ATROPOS_BYPASS_MANAGED_SERVER"
INSTALL = "pip install 'shell-agent-sandbox[agent]'"

__all__ = ["ChatModel", "ContextExceeded", "LedgerError", "SequenceData", "open_model", "rebuilt"]

_FINISH_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
_PROBE_TIMEOUT = 5.0  # seconds


class ContextExceeded(Exception):  # noqa: N818 - it says what happened, and it is no mistake of anybody's
    """The next prompt leaves the model no room to answer; it was not sent."""

    def __init__(self, prompt: int, limit: int) -> None:
        super().__init__(f"the prompt has {prompt} tokens, the model's context {limit}")
        self.prompt = prompt
        self.limit = limit


class ChatModel(Protocol):
    """What the loop needs: ``ManagedServer``, the ledger around it, or anything of this shape."""

    async def chat_completion(self, **kwargs: Any) -> Any:
        """Complete ``messages``; returns an object with ``choices[i].message.content``."""


@asynccontextmanager
async def open_model(server: Any, tokenizer: Any = None, max_context: int | None = None) -> AsyncIterator[ChatModel]:
    """Open one episode's conversation with ``server``, a ``ServerManager`` or a single ``APIServer``.

    ``max_context`` counts tokens, prompt and completion together; without it the server is asked. With
    ``ATROPOS_BYPASS_MANAGED_SERVER=1`` nothing is tracked.
    """
    if os.environ.get(BYPASS) == "1":
        yield _Untracked(DirectChatClient(server), tokenizer, max_context)
    elif hasattr(server, "managed_server"):
        async with server.managed_server(tokenizer=tokenizer) as managed:
            yield _tracked(managed, tokenizer, max_context)
    else:
        managed = _managed_server_class()(server=server, tokenizer=tokenizer)
        try:
            yield _tracked(managed, tokenizer, max_context)
        finally:
            managed.reset()


def _managed_server_class() -> Any:
    try:
        from atroposlib.envs.server_handling.managed_server import ManagedServer
    except ImportError as error:
        raise RuntimeError(
            f"a single APIServer is wrapped in atroposlib's ManagedServer; install it: {INSTALL}"
        ) from error
    return ManagedServer


def _tracked(managed: Any, tokenizer: Any, max_context: int | None) -> ChatModel:
    """Put the ledger around a real ``ManagedServer``; what isn't one, or completes chats its own way, is left alone."""
    try:
        from atroposlib.envs.server_handling.managed_server import ManagedServer
    except ImportError:
        return _Untracked(managed, tokenizer, max_context)
    own = isinstance(managed, ManagedServer) and type(managed).chat_completion is ManagedServer.chat_completion
    if not own or managed.track_tree or managed.tokenizer is None:
        return _Untracked(managed, tokenizer, max_context)
    return LedgerServer(managed, max_context)


class LedgerServer:
    """A ``ManagedServer`` whose ids are owned: see the module's text."""

    def __init__(self, managed: Any, max_context: int | None = None) -> None:
        self._managed = managed
        self._max_context = max_context
        self._asked = max_context is not None
        self.renderer = ChatRenderer(managed.tokenizer)
        self.ledger = TokenLedger(self.renderer)
        self._nodes: list[Any] = []

    @property
    def opened_think(self) -> bool:
        """Whether the last prompt ended inside a ``<think>`` block that its template had opened."""
        return self._prompt_text.rstrip().endswith("<think>")

    _prompt_text = ""

    async def chat_completion(self, **kwargs: Any) -> Any:
        """Complete ``messages`` for ``n=1``; raises :class:`ContextExceeded`, :class:`LedgerError`, or what failed."""
        messages: Sequence[Message] = kwargs.pop("messages")
        if kwargs.get("n", 1) != 1:
            raise LedgerError("a conversation has one continuation: ask for n=1")
        pending = self.ledger.prompt(messages)
        limit = await self._limit()
        if limit is not None:
            room = limit - len(pending.ids)
            if room < 1:
                raise ContextExceeded(len(pending.ids), limit)
            kwargs["max_tokens"] = min(kwargs.get("max_tokens") or room, room)
        elif kwargs.get("max_tokens") is None and not self.ledger.turns:
            logger.warning("neither max_tokens nor the model's context is known; vLLM then stops after 16 tokens")
        self._prompt_text = pending.text
        response, completion = await self._complete(pending, kwargs)
        turn = self.ledger.record(pending, *completion)
        self._nodes = [self._node(turn.finish_reason)]
        self._managed.current_nodes[:] = self._nodes
        response.choices[0].message.content = turn.text
        return response

    async def _complete(self, pending: Pending, kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, Any, Any, Any]]:
        managed = self._managed
        server, tokenizer = managed.server, managed.tokenizer
        lent = _LentServer(server, pending.ids)
        managed.server, managed.tokenizer = lent, _LentTokenizer(tokenizer, pending)
        managed.current_nodes.clear()  # else it looks for a node to extend, by text
        try:
            response = await managed.chat_completion(messages=list(pending.messages), **kwargs)
        finally:
            managed.server, managed.tokenizer = server, tokenizer
            managed.current_nodes[:] = self._nodes
        if lent.completion is None:
            raise LedgerError("the server was not asked for a completion")
        return response, lent.completion

    def _node(self, finish_reason: str) -> Any:
        from atroposlib.envs.server_handling.managed_server import SequenceNode

        ledger = self.ledger
        return SequenceNode(
            full_text=ledger.text,
            tokens=list(ledger.ids),
            masked_tokens=list(ledger.masks),
            logprobs=list(ledger.logprobs),
            metadata={"finish_reason": finish_reason},
        )

    def get_state(self) -> dict[str, Any]:
        """As ``ManagedServer`` gives it: one node, or none before the first completion."""
        state: dict[str, Any] = self._managed.get_state()
        return state

    @property
    def finish_reason(self) -> str | None:
        """The server's own word for how the last completion ended: ``stop``, ``length``, ``abort`` ..."""
        return self.ledger.turns[-1].finish_reason if self.ledger.turns else None

    async def _limit(self) -> int | None:
        if not self._asked:
            self._asked = True
            self._max_context = await _context_of(self._managed.server)
        return self._max_context


class _LentServer:
    """Stands in for the server during one request: sends our ids and keeps the answer before anyone pads it."""

    def __init__(self, server: Any, ids: list[int]) -> None:
        self._server = server
        self._ids = ids
        self.completion: tuple[Any, Any, Any, Any] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)

    async def tokens_and_logprobs_completion(self, **kwargs: Any) -> tuple[Any, Any, Any, Any]:
        kwargs["input_ids"] = list(self._ids)
        answer = await self._server.tokens_and_logprobs_completion(**kwargs)
        try:
            used, outputs, logprobs, reasons = answer
            ((output,), (values,), (reason,)) = outputs, logprobs, reasons
        except (TypeError, ValueError) as error:
            raise LedgerError("the server did not return exactly one completion with its ids and logprobs") from error
        self.completion = (list(used), list(output), list(values or ()), reason)
        kind = reason.get("type") if isinstance(reason, dict) else reason
        # openai's model of a choice knows no "abort" and no None; the true word is kept above.
        return used, [list(output)], [[0.0] * len(output)], [kind if kind in _FINISH_REASONS else "stop"]


class _LentTokenizer:
    """Stands in for the tokenizer during one request: the prompt is rendered and encoded already."""

    def __init__(self, tokenizer: Any, pending: Pending) -> None:
        self._tokenizer = tokenizer
        self._pending = pending

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def apply_chat_template(self, *_: Any, **__: Any) -> str:
        return self._pending.text

    def encode(self, *_: Any, **__: Any) -> list[int]:
        return list(self._pending.ids)


class _Untracked:
    """A model whose tokens are its own affair. Keeps the bound on the context where a tokenizer can count."""

    def __init__(self, model: Any, tokenizer: Any, max_context: int | None) -> None:
        self._model = model
        self._max_context = max_context
        self._renderer = ChatRenderer(tokenizer) if tokenizer is not None and max_context is not None else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    async def chat_completion(self, **kwargs: Any) -> Any:
        if self._renderer is not None and self._max_context is not None:
            prompt = len(self._renderer.prompt(kwargs["messages"]).ids)
            if prompt >= self._max_context:
                raise ContextExceeded(prompt, self._max_context)
        response = await self._model.chat_completion(**kwargs)
        if hasattr(type(self._model), "fetch_state"):  # a ManagedServer behind a proxy tells its nodes when asked
            await self._model.fetch_state()
        return response


async def _context_of(server: Any) -> int | None:
    """The model's context length in tokens, where the server tells one."""
    told = getattr(server, "max_model_len", None)
    if isinstance(told, int):
        return told
    config = getattr(server, "config", None)
    base_url = getattr(config, "base_url", None)
    if not isinstance(base_url, str) or not base_url:
        return None
    try:
        import httpx

        key = getattr(config, "api_key", None)
        async with httpx.AsyncClient(timeout=_PROBE_TIMEOUT, trust_env=False) as client:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            answer = (await client.get(f"{base_url.rstrip('/')}/models", headers=headers)).raise_for_status().json()
        models = [model for model in answer["data"] if isinstance(model, dict)]
        named = [model for model in models if model.get("id") == getattr(config, "model_name", None)] or models
        length = named[0].get("max_model_len")
    except Exception as error:  # noqa: BLE001 - many servers have no such route; then the length is unknown
        logger.debug("the server doesn't tell its context length: %s", type(error).__name__)
        return None
    return length if isinstance(length, int) and length > 0 else None


def rebuilt(tokenizer: Any, messages: Sequence[Message], response: str) -> SequenceData:
    """The last completion as data, from the chat template alone: for logs and counts, not for training."""
    renderer = ChatRenderer(tokenizer)
    prompt = renderer.prompt(messages)
    output = renderer.encode_after(response)
    return SequenceData(
        full_text=prompt.text + response,
        tokens=prompt.ids + output,
        masked_tokens=[-100] * len(prompt.ids) + output,
        logprobs=[1.0] * len(prompt.ids) + [0.0] * len(output),
        trainable=False,
        reason="no server tracked it: ids and logprobs were rebuilt from the chat template",
    )
