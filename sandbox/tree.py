"""Trees of files as a stream of bytes, sans-IO: what GET sends and PUT takes. docs/protocol.md has the layout.

The decoder judges names: no file system has ``..`` or an empty name in it, so a guest that sends one is lying. Where
a link may point is judged by who makes it (:mod:`sandbox.localtree`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple

from sandbox.wire import MAX_FRAME, MODE_KEEP, PATH_LEN_MAX, ProtocolError

ENTRY = struct.Struct("<BBHIQ")
CHUNK = struct.Struct("<I")
_END_OF_FILE = CHUNK.pack(0)

DEPTH_MAX = 256
"""Parts of a path: what a guest walks, and what Python's own functions make and remove without running out of stack."""


class EntryType(IntEnum):
    """What an entry is."""

    DIRECTORY = ord("D")
    FILE = ord("F")
    LINK = ord("L")
    END = ord("E")


_TYPES = frozenset(EntryType)
END_OF_TREE = ENTRY.pack(EntryType.END, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Entry:
    """One member of a tree. ``path`` is relative to the tree's root, which has the empty path."""

    type: EntryType
    path: bytes
    mode: int
    mtime: int = 0
    target: bytes = b""


class FileData(NamedTuple):
    """Bytes of the file whose entry came last."""

    data: bytes


class FileEnd(NamedTuple):
    """The file whose entry came last is complete."""


class TreeEnd(NamedTuple):
    """The tree is complete."""


Event = Entry | FileData | FileEnd | TreeEnd


def encode_entry(entry: Entry) -> bytes:
    """A directory or a link whole; a file's beginning."""
    head = ENTRY.pack(entry.type, 0, entry.mode, len(entry.path), max(0, entry.mtime)) + entry.path
    if entry.type is EntryType.LINK:
        return head + b"".join(encode_data((entry.target,)))
    return head


def encode_data(pieces: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """A file's bytes and its end."""
    for piece in pieces:
        view = memoryview(piece).cast("B")
        for start in range(0, len(view), MAX_FRAME):
            chunk = view[start : start + MAX_FRAME]
            yield CHUNK.pack(len(chunk))
            yield chunk
    yield _END_OF_FILE


def encode_file(data: bytes | memoryview, mode: int | None) -> Iterator[bytes | memoryview]:
    """A whole tree of one file; its time is when it is written."""
    yield encode_entry(Entry(EntryType.FILE, b"", MODE_KEEP if mode is None else mode))
    yield from encode_data((data,))
    yield END_OF_TREE


class TreeDecoder:
    """Cuts a tree's stream into events. It holds no more than one name or one link's target."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._next = self._take_entry
        self._entry: Entry | None = None
        self._target = bytearray()
        self._chunk_left = 0
        self._entries = 0
        self._is_one_file = False
        self.ended = False

    def feed(self, data: bytes) -> Iterator[Event]:
        """Yield what ``data`` completes; take all of it before feeding again."""
        self._buffer += data
        while (events := self._next()) is not None:
            yield from events

    def _take_entry(self) -> tuple[Event, ...] | None:
        if len(self._buffer) < ENTRY.size:
            return None
        kind, zero, mode, path_len, mtime = ENTRY.unpack_from(self._buffer)
        if kind not in _TYPES or zero:
            raise ProtocolError(f"a tree has an entry of the unknown type {kind}")
        if path_len > PATH_LEN_MAX:
            raise ProtocolError(f"a tree has a path of {path_len} bytes")
        if len(self._buffer) < ENTRY.size + path_len:
            return None
        path = self._cut(ENTRY.size + path_len)[ENTRY.size :]
        return self._begin(Entry(EntryType(kind), path, mode if mode == MODE_KEEP else mode & 0o7777, mtime))

    def _begin(self, entry: Entry) -> tuple[Event, ...]:
        self._judge(entry)
        self._entries += 1
        match entry.type:
            case EntryType.END:
                self.ended = True
                self._next = self._take_nothing
                return (TreeEnd(),)
            case EntryType.DIRECTORY:
                return (entry,)
            case EntryType.FILE:
                self._entry, self._next = None, self._take_chunk
                return (entry,)
            case EntryType.LINK:
                self._entry, self._next = entry, self._take_chunk
                self._target.clear()
                return ()

    def _judge(self, entry: Entry) -> None:
        if entry.type is EntryType.END:
            if entry.path:
                raise ProtocolError("the end of a tree has a path")
        elif entry.path:
            if self._is_one_file:
                raise ProtocolError("a tree of one file goes on")
            parts = entry.path.split(b"/")
            if b"\0" in entry.path or any(part in (b"", b".", b"..") for part in parts):
                raise ProtocolError(f"a tree has the path {entry.path!r}")
            if len(parts) > DEPTH_MAX:
                raise ProtocolError(f"a tree has a path of {len(parts)} parts")
        elif self._entries:
            raise ProtocolError("a tree names its root after its members")
        else:
            self._is_one_file = entry.type is not EntryType.DIRECTORY

    def _take_chunk(self) -> tuple[Event, ...] | None:
        if len(self._buffer) < CHUNK.size:
            return None
        (length,) = CHUNK.unpack(self._cut(CHUNK.size))
        if length == 0:
            self._next = self._take_entry
            if self._entry is None:
                return (FileEnd(),)
            return (replace(self._entry, target=bytes(self._target)),)
        if length > (MAX_FRAME if self._entry is None else PATH_LEN_MAX - len(self._target)):
            raise ProtocolError(f"a tree has a chunk of {length} bytes")
        self._chunk_left = length
        self._next = self._take_data
        return ()

    def _take_data(self) -> tuple[Event, ...] | None:
        if not self._buffer:
            return None
        data = self._cut(min(self._chunk_left, len(self._buffer)))
        self._chunk_left -= len(data)
        if not self._chunk_left:
            self._next = self._take_chunk
        if self._entry is None:
            return (FileData(data),)
        self._target += data
        return ()

    def _take_nothing(self) -> tuple[Event, ...] | None:
        if self._buffer:
            raise ProtocolError("bytes follow the end of a tree")
        return None

    def _cut(self, count: int) -> bytes:
        data = bytes(memoryview(self._buffer)[:count])
        del self._buffer[:count]
        return data
