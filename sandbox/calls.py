"""One call from its request to its end: input, live output, and the kill when its caller is interrupted."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple, Self

from sandbox.channel import Channel
from sandbox.connection import Call
from sandbox.errors import SandboxExhausted
from sandbox.exchange import LATE, Exchange, StreamName
from sandbox.outcome import exhausted_result, run_result
from sandbox.shield import beside
from sandbox.spec import ExecResult
from sandbox.wire import Request

Watcher = Callable[[StreamName, bytes], Awaitable[object] | object]
Source = Iterable[bytes | memoryview] | AsyncIterable[bytes]


def begin(channel: Channel, request: Request, *, has_input: bool) -> Exchange:
    """Send a request."""
    patience = None if not request.timeout_ms else (request.timeout_ms + request.grace_ms) / 1000 + LATE
    return channel.begin(request, more_input=has_input, patience=patience)


async def perform(
    channel: Channel, request: Request, *, source: Source | None = None, watcher: Watcher | None = None
) -> Call:
    """Carry a call out. If anything interrupts it, its command is dead before that goes on."""
    exchange = begin(channel, request, has_input=source is not None)
    try:
        if isinstance(source, AsyncIterable):
            async with beside(partial(exchange.pump, source)):
                await _attend(exchange, watcher)
        else:
            if source is not None:
                exchange.feed(source)
            await _attend(exchange, watcher)
    except BaseException:
        await channel.abandon(exchange, request.grace_ms / 1000)
        raise
    return exchange.call


async def _attend(exchange: Exchange, watcher: Watcher | None) -> None:
    if watcher is None:
        await exchange.outcome()
        return
    while (output := await exchange.next_output()) is not None:
        taken = watcher(*output)
        if inspect.isawaitable(taken):
            await taken


class Chunk(NamedTuple):
    """Live bytes of a command."""

    stream: StreamName
    data: bytes


class Running:
    """A command that runs, as an async iterator of its output; made by :meth:`sandbox.Sandbox.stream`.

    While nobody iterates the command waits when its pipe is full; other commands don't.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    @property
    def result(self) -> ExecResult:
        """How the command ended: there when the iteration, or the block, has ended."""
        try:
            self._exchange.check()
        except SandboxExhausted as error:
            return exhausted_result(error)
        return run_result(self._exchange.call)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        try:
            output = await self._exchange.next_output()
        except SandboxExhausted:
            raise StopAsyncIteration from None  # the result says it, as data
        if output is None:
            raise StopAsyncIteration
        return Chunk(*output)


@asynccontextmanager
async def streaming(channel: Channel, request: Request, source: Source | None) -> AsyncIterator[Running]:
    """Carry a call out around a block; a command that still runs at the block's end is killed."""
    exchange = begin(channel, request, has_input=source is not None)
    pumps = [partial(exchange.pump, source)] if isinstance(source, AsyncIterable) else []
    try:
        if source is not None and not isinstance(source, AsyncIterable):
            exchange.feed(source)
        async with beside(*pumps):
            yield Running(exchange)
    finally:
        await channel.abandon(exchange, request.grace_ms / 1000)
