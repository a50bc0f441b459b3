"""A connected socket as anyio's byte stream, for the one stream of a sandbox.

anyio's own would do but for three things. Over a unix socket on asyncio it reports an InvalidStateError when a receive
is cancelled in the very turn in which the socket becomes readable, as it does when both sides end at once. It gives
the event loop a turn before each receive and each send, which a call's latency pays for. And it can't send without
waiting, over a TCP connection not even when nothing is held back.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any

import anyio
from anyio.abc import ByteStream, SocketAttribute
from anyio.lowlevel import cancel_shielded_checkpoint, checkpoint, checkpoint_if_cancelled


class RawStream(ByteStream):
    """Owns a connected socket. One task may receive while another sends."""

    def __init__(self, raw: socket.socket) -> None:
        raw.setblocking(False)
        self._socket = raw

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Some bytes; ``EndOfStream`` when the other side has ended."""
        await checkpoint_if_cancelled()
        waited = False
        while True:
            try:
                data = self._socket.recv(max_bytes)
            except BlockingIOError:
                await self._wait(anyio.wait_readable)
                waited = True
                continue
            except OSError as error:
                raise self._translated(error) from error
            if not waited:
                await cancel_shielded_checkpoint()  # a flood must not keep the event loop from everything else
            if not data:
                raise anyio.EndOfStream
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
