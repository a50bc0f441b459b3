"""A connected socket as anyio's byte stream, for the one stream of a sandbox.

anyio's own would do but for three things. Over a unix socket on asyncio it reports an InvalidStateError when a receive
is cancelled in the very turn in which the socket becomes readable, as it does when both sides end at once. It gives
the event loop a turn before each receive and each send, which a call's latency pays for. And it can't send without
waiting, over a TCP connection not even when nothing is held back.

On asyncio the socket stays registered with the event loop between receives: to register it for each one, as
``anyio.wait_readable`` does, takes two system calls and a turn of the loop on the way of every call's answer.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import Any

import anyio
from anyio.abc import ByteStream, SocketAttribute
from anyio.lowlevel import cancel_shielded_checkpoint, checkpoint, checkpoint_if_cancelled, current_token


class RawStream(ByteStream):
    """Owns a connected socket. One task may receive while another sends."""

    def __init__(self, raw: socket.socket) -> None:
        raw.setblocking(False)
        self._socket = raw
        loop = _asyncio_loop()
        self._inbox = None if loop is None else _Inbox(raw, loop)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Some bytes; ``EndOfStream`` when the other side has ended."""
        await checkpoint_if_cancelled()
        try:
            data = await (self._receive(max_bytes) if self._inbox is None else self._inbox.receive(max_bytes))
        except OSError as error:
            raise self._translated(error) from error
        if not data:
            raise anyio.EndOfStream
        return data

    async def _receive(self, max_bytes: int) -> bytes:
        waited = False
        while True:
            try:
                data = self._socket.recv(max_bytes)
            except BlockingIOError:
                await self._wait(anyio.wait_readable)
                waited = True
                continue
            if not waited:
                await cancel_shielded_checkpoint()  # a flood must not keep the event loop from everything else
            return data

    async def send(self, item: bytes) -> None:
        """All of the bytes."""
        await checkpoint()
        view = memoryview(item)
        while view:
            try:
                view = view[self._socket.send(view) :]
            except BlockingIOError:
                await self._wait(anyio.wait_writable)
            except OSError as error:
                raise self._translated(error) from error

    def send_nowait(self, item: bytes) -> int:
        """Send what the socket takes at once; the rest, and every error, is for ``send``."""
        try:
            return self._socket.send(item)
        except OSError:
            return 0

    async def send_eof(self) -> None:
        """End our direction only."""
        await checkpoint()
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise self._translated(error) from error

    async def aclose(self) -> None:
        """Close the socket; whoever waits for it gets ``ClosedResourceError``."""
        if self._socket.fileno() >= 0:
            anyio.notify_closing(self._socket)
            if self._inbox is not None:
                self._inbox.close()
            self._socket.close()
        await checkpoint()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """The raw socket."""
        return {SocketAttribute.raw_socket: lambda: self._socket}

    async def _wait(self, ready: Callable[[socket.socket], Any]) -> None:
        if self._socket.fileno() < 0:
            raise anyio.ClosedResourceError
        await ready(self._socket)

    def _translated(self, error: OSError) -> Exception:
        if self._socket.fileno() < 0:
            return anyio.ClosedResourceError()
        return anyio.BrokenResourceError(error.strerror or str(error))


def _asyncio_loop() -> asyncio.AbstractEventLoop | None:
    """This event loop, if it is asyncio's."""
    loop = current_token().native_token
    return loop if isinstance(loop, asyncio.AbstractEventLoop) else None


class _Inbox:
    """What the event loop of asyncio has read from a socket and nobody has taken yet: at most one piece."""

    def __init__(self, raw: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._socket = raw
        self._loop = loop
        self._most = 0
        self._piece: bytes | None = None
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._registered = False
        self._closed = False

    async def receive(self, max_bytes: int) -> bytes:
        """Some bytes; none at the end of the stream, now and ever after."""
        if self._waiter is not None:
            raise anyio.BusyResourceError("receiving from")
        if self._piece is None and self._error is None:
            self._most = max_bytes
            await self._wait()
        else:
            await cancel_shielded_checkpoint()  # a flood must not keep the event loop from everything else
        if self._error is not None:
            raise self._error
        piece = self._piece or b""
        rest = piece[max_bytes:]
        if piece:
            self._piece = rest or None
        return piece[:max_bytes] if rest else piece

    def close(self) -> None:
        """Let go of the socket; whoever waits gets ``ClosedResourceError``."""
        self._unregister()
        self._closed = True
        self._fail(anyio.ClosedResourceError())

    async def _wait(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
        if not self._registered:
            self._loop.add_reader(self._socket, self._readable)
            self._registered = True
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _readable(self) -> None:
        """Called by the event loop. Nothing more is read than somebody wants: the kernel keeps the rest."""
        if self._piece is not None or self._error is not None:
            self._unregister()
            return
        try:
            self._piece = self._socket.recv(self._most)
        except BlockingIOError:
            return
        except OSError as error:
            self._error = error
        self._wake()

    def _fail(self, error: Exception) -> None:
        self._error = error
        self._wake()

    def _wake(self) -> None:
        # It may have been cancelled in this very turn; then the piece is for the next receive.
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _unregister(self) -> None:
        if self._registered:
            self._loop.remove_reader(self._socket)
            self._registered = False
