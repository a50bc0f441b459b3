"""The guest's bytes over an attached socket: Docker's 8-byte headers are taken off, the guest's stderr is set aside.

The headers come from the daemon, not from the container, yet they are checked: a proxy or another engine may sit
between. Nothing is allocated by a header's word; its length is only counted down.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from anyio import BrokenResourceError
from anyio.abc import ByteStream

from sandbox.sockets import RawStream

HEADER = 8
STDERR_KEPT = 4096

_STDOUT, _STDERR = 1, 2
_HEADER = struct.Struct(">BxxxI")


class HeaderError(Exception):
    """The bytes are not what Docker's multiplexing makes."""


class Demultiplexer:
    """Sans-IO: bytes of the socket in, bytes of the guest's stdout out."""

    def __init__(self) -> None:
        self.stderr = bytearray()
        self._header = bytearray()
        self._stream = 0
        self._left = 0

    def feed(self, data: bytes) -> bytes:
        """The stdout bytes in ``data``, in order; never more than were fed."""
        if len(data) < HEADER:
            return self._feed(memoryview(data))
        # Nearly always: one whole frame, no more. It is worth a slice instead of a loop.
        if not self._left and not self._header and data[:HEADER] == _HEADER.pack(_STDOUT, len(data) - HEADER):
            return data[HEADER:]
        return self._feed(memoryview(data))

    def _feed(self, data: memoryview) -> bytes:
        parts: list[memoryview] = []
        while data:
            if not self._left:
                data = self._take_header(data)
                continue
            part, data = data[: self._left], data[self._left :]
            self._left -= len(part)
            if self._stream == _STDOUT:
                parts.append(part)
            else:
                self.stderr += part[: STDERR_KEPT - len(self.stderr)]
        return b"".join(parts)

    def _take_header(self, data: memoryview) -> memoryview:
        missing = HEADER - len(self._header)
        self._header += data[:missing]
        if len(self._header) == HEADER:
            if self._header[0] not in (_STDOUT, _STDERR) or any(self._header[1:4]):
                raise HeaderError(f"the engine sent {bytes(self._header).hex()} where a stream's header was due")
            self._stream = self._header[0]
            self._left = int.from_bytes(self._header[4:], "big")
            self._header.clear()
        return data[missing:]


class GuestStream(ByteStream):
    """The one stream to a guest. Closing it ends the guest."""

    def __init__(self, transport: RawStream) -> None:
        self._transport = transport
        self._demultiplexer = Demultiplexer()

    @classmethod
    async def over(cls, raw: socket.socket) -> GuestStream:
        """Take ownership of a connected socket."""
        return cls(RawStream(raw))

    @property
    def stderr(self) -> bytes:
        """The first bytes that the guest wrote to its stderr: why it could not go on."""
        return bytes(self._demultiplexer.stderr)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Some bytes of the guest's stdout."""
        while True:
            data = await self._transport.receive(max_bytes)
            try:
                payload = self._demultiplexer.feed(data)
            except HeaderError as error:
                raise BrokenResourceError(str(error)) from error
            if payload:
                return payload

    async def send(self, item: bytes) -> None:
        """Bytes for the guest's stdin."""
        await self._transport.send(item)

    def send_nowait(self, item: bytes) -> int:
        """Send what the socket takes at once; the rest, and every error, is for ``send``.

        It spares a call two turns of the event loop.
        """
        return self._transport.send_nowait(item)

    async def send_eof(self) -> None:
        """End the guest's stdin, and with it the guest; what it still says can be read."""
        await self._transport.send_eof()

    async def aclose(self) -> None:
        """Close the socket."""
        await self._transport.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """The socket's own."""
        return self._transport.extra_attributes


class OpenSockets:
    """The attached sockets of one engine: a forked child must not hold them.

    The engine ends a guest when the last holder of its stdin is gone, so a copy in a child (a data loader, a
    multiprocessing worker) would keep the guest alive after its controller's death. A child that executes another
    program is no danger: the sockets are close-on-exec.
    """

    def __init__(self) -> None:
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        # There is no way to take such a hook back, so it holds the set by a weak reference.
        reference = weakref.ref(self._sockets)
        os.register_at_fork(after_in_child=lambda: _close_all(reference()))

    def add(self, raw: socket.socket) -> None:
        """Watch one more; it leaves the set when it is no longer used."""
        self._sockets.add(raw)


def _close_all(sockets: weakref.WeakSet[socket.socket] | None) -> None:
    for raw in list(sockets or ()):
        with contextlib.suppress(OSError):
            raw.close()
