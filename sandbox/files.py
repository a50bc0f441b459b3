"""Files into and out of a sandbox, through its guest and as the call's user: streamed, bounded."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from uuid import uuid4

from sandbox.calls import perform
from sandbox.channel import Channel
from sandbox.errors import SandboxLost
from sandbox.localtree import Download, TreeWriter, encode_local
from sandbox.outcome import check_transfer
from sandbox.request import Defaults, file_request
from sandbox.shield import finish, in_thread
from sandbox.tree import Entry, EntryType, Event, FileData, TreeDecoder, encode_file
from sandbox.wire import Kind, ProtocolError

UNBOUNDED = (1 << 64) - 1
_CLEANUP = 60.0


async def read_file(
    channel: Channel, defaults: Defaults, path: str, *, max_bytes: int, user: str | None, timeout: float | None
) -> bytes:
    """The whole file."""
    request = file_request(defaults, Kind.READ, path, user=user, timeout=timeout, max_bytes=max_bytes)
    content = bytearray()

    def take(_stream: str, data: bytes) -> None:
        content.extend(data)

    check_transfer(await perform(channel, request, watcher=take), path)
    return bytes(content)


async def write_file(
    channel: Channel,
    defaults: Defaults,
    path: str,
    data: bytes | str,
    *,
    mode: int | None,
    user: str | None,
    timeout: float | None,
) -> None:
    """The whole file, old or new to any reader and never half."""
    if mode is not None and not 0 <= mode <= 0o7777:
        raise ValueError(f"a mode of {mode:o} is outside 0..7777")
    content = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
    request = file_request(defaults, Kind.PUT, path, user=user, timeout=timeout, max_bytes=UNBOUNDED)
    check_transfer(await perform(channel, request, source=encode_file(content, mode)), path)


async def upload(
    channel: Channel, defaults: Defaults, local: Path, remote: str, *, user: str | None, timeout: float | None
) -> None:
    """A file or a tree; ``remote`` becomes what ``local`` is."""
    request = file_request(defaults, Kind.PUT, remote, user=user, timeout=timeout, max_bytes=UNBOUNDED)
    check_transfer(await perform(channel, request, source=_blocks(local)), remote)


async def _blocks(local: Path) -> AsyncIterator[bytes]:
    blocks = encode_local(local)
    try:
        while (block := await in_thread(partial(next, blocks, None))) is not None:
            yield block
    finally:
        blocks.close()


async def download(
    channel: Channel,
    defaults: Defaults,
    remote: str,
    local: Path,
    *,
    max_bytes: int,
    max_entries: int,
    user: str | None,
    timeout: float | None,
) -> Download:
    """A file or a tree, made beside its place and renamed when it is whole."""
    request = file_request(defaults, Kind.GET, remote, user=user, timeout=timeout, max_bytes=max_bytes)
    staging = local.parent / f".{local.name}.{uuid4().hex}.part"
    writer = TreeWriter(staging / "tree", max_entries=max_entries)
    receiver = _Receiver(channel, writer, max_bytes)
    try:
        await in_thread(partial(staging.mkdir, mode=0o700))
        check_transfer(await perform(channel, request, watcher=receiver.take), remote)
        receiver.check_complete()
        return await in_thread(partial(_publish, writer, staging / "tree", local))
    finally:
        await finish(partial(in_thread, partial(_discard, writer, staging)), deadline=_CLEANUP)


class _Receiver:
    """Between the call and the writer: what breaks the tree's rules ends the sandbox, not just the download."""

    def __init__(self, channel: Channel, writer: TreeWriter, max_bytes: int) -> None:
        self._channel = channel
        self._writer = writer
        self._left = max_bytes
        self._decoder = TreeDecoder()
        self._has_root = False

    async def take(self, _stream: str, data: bytes) -> None:
        try:
            events = list(self._decoder.feed(data))
        except ProtocolError as error:
            raise self._broken(str(error)) from None
        self._has_root = self._has_root or any(_makes_something(event) for event in events)
        self._left -= sum(len(event.data) for event in events if isinstance(event, FileData))
        if self._left < 0:
            raise self._broken("it sent more of a tree than it was asked for")
        await in_thread(partial(self._writer.take, events))

    def check_complete(self) -> None:
        if not self._decoder.ended or not self._has_root:
            raise self._broken("a tree has no end, or nothing before it")

    def _broken(self, why: str) -> SandboxLost:
        self._channel.lose(f"the guest broke the protocol ({why})")
        return SandboxLost(f"The sandbox was lost: the guest broke the protocol ({why}). Open a new one.")


def _makes_something(event: Event) -> bool:
    """A link may be left out."""
    return isinstance(event, Entry) and event.type is not EntryType.LINK


def _publish(writer: TreeWriter, made: Path, local: Path) -> Download:
    result = writer.finish()
    made.replace(local)
    return result


def _discard(writer: TreeWriter, staging: Path) -> None:
    writer.close()
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(staging)
