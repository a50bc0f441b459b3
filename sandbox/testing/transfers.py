"""The fake guest's file calls."""

from __future__ import annotations

import errno
import os

from sandbox.testing.calls import GuestCall
from sandbox.testing.files import FileSystem, User, fail
from sandbox.tree import (
    END_OF_TREE,
    Entry,
    EntryType,
    FileData,
    FileEnd,
    TreeDecoder,
    TreeEnd,
    encode_data,
    encode_entry,
)
from sandbox.wire import Exit, Kind, Status


async def transfer(call: GuestCall, files: FileSystem, path: str, user: User) -> Exit:
    """Carry out READ, GET, PUT or CHECK; an ``OSError`` is its failure."""
    match call.kind:
        case Kind.READ:
            node = files.read(path, user)
            if len(node.data) > call.max_bytes:
                raise fail(errno.EFBIG, path)
            await call.send_output(node.data)
            return Exit(Status.EXITED, total_out=len(node.data), mode=0o100000 | node.mode)
        case Kind.GET:
            return Exit(Status.EXITED, total_out=await _get(call, files, path, user))
        case Kind.PUT:
            return Exit(Status.EXITED, total_out=await _put(call, files, path, user))
        case _:
            return Exit(Status.EXITED)


async def _get(call: GuestCall, files: FileSystem, path: str, user: User) -> int:
    place = files.resolve(path, user)
    if files.node(place).kind == "S":
        raise fail(errno.EINVAL, path)
    total = 0
    for entry, data in list(files.walk(place, user)):
        total += len(data)
        if total > call.max_bytes:
            raise fail(errno.EFBIG, path)
        encoded = encode_entry(entry)
        if entry.type is EntryType.FILE:
            encoded += b"".join(encode_data((data,)))
        await call.send_output(encoded)
    await call.send_output(END_OF_TREE)
    return total


async def _put(call: GuestCall, files: FileSystem, path: str, user: User) -> int:
    decoder = TreeDecoder()
    entry: Entry | None = None
    content = bytearray()
    total = 0
    while data := await call.read_some():
        for event in decoder.feed(data):
            match event:
                case FileData(piece):
                    content += piece
                    total += len(piece)
                case FileEnd():
                    assert entry is not None
                    place = _below(path, entry)
                    files.write(place, bytes(content), user, mode=entry.mode, mtime=entry.mtime)
                    content.clear()
                case TreeEnd():
                    return total
                case Entry(type=EntryType.DIRECTORY):
                    files.make_directory(_below(path, event), user, event.mode)
                case Entry(type=EntryType.LINK):
                    files.make_link(_below(path, event), os.fsdecode(event.target), user)
                case Entry():
                    entry = event
        if total > call.max_bytes:
            raise fail(errno.EFBIG, path)
    raise fail(errno.EPROTO, path)


def _below(path: str, entry: Entry) -> str:
    return f"{path}/{os.fsdecode(entry.path)}" if entry.path else path
