"""The controller's own files as trees: read for an upload, made by a download. Blocking; run it in worker threads.

What comes out of a sandbox is hostile. A download is made in a fresh private folder that holds no link while it is
written: links come last, and only those that ``tarfile``'s data filter would make, so none leads out of the tree.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sandbox.errors import FileTooLarge
from sandbox.tree import END_OF_TREE, Entry, EntryType, Event, FileData, FileEnd, encode_data, encode_entry
from sandbox.wire import PATH_LEN_MAX

BLOCK = 256 * 1024
_NAMES = 32 * 1024 * 1024
NAMED = 100
"""Of what was left out, so many paths are named; there may be any number."""


@dataclass(frozen=True, slots=True)
class Download:
    """What a download brought."""

    files: int = 0
    bytes: int = 0
    left_out: tuple[str, ...] = ()
    """Links that lead out of the tree were not made; the first hundred are named here."""


def encode_local(root: Path) -> Generator[bytes, None, None]:
    """The tree's stream in blocks of about ``BLOCK`` bytes. Sockets, FIFOs and devices are left out."""
    block = bytearray()
    for piece in _encode_local(root):
        block += piece
        if len(block) >= BLOCK:
            yield bytes(block)
            block.clear()
    yield bytes(block)


def _encode_local(root: Path) -> Iterator[bytes | memoryview]:
    # The root may be a link, as in `cp -r link/ place`; below it links are copied as what they are.
    if root.is_dir():
        yield from _encode_directory(root, b"", root.stat())
    else:
        yield from _encode_file(root, b"")
    yield END_OF_TREE


def _encode_directory(path: Path, name: bytes, info: os.stat_result) -> Iterator[bytes | memoryview]:
    yield encode_entry(Entry(EntryType.DIRECTORY, name, stat.S_IMODE(info.st_mode), int(info.st_mtime)))
    for child in sorted(path.iterdir()):
        child_name = os.fsencode(child.name) if not name else name + b"/" + os.fsencode(child.name)
        if len(child_name) > PATH_LEN_MAX:
            raise OSError(36, "the path is longer than the protocol takes", str(child))
        info = child.lstat()
        if stat.S_ISLNK(info.st_mode):
            target = os.fsencode(child.readlink())
            yield encode_entry(Entry(EntryType.LINK, child_name, 0o777, int(info.st_mtime), target))
        elif stat.S_ISDIR(info.st_mode):
            yield from _encode_directory(child, child_name, info)
        elif stat.S_ISREG(info.st_mode):
            yield from _encode_file(child, child_name)


def _encode_file(path: Path, name: bytes) -> Iterator[bytes | memoryview]:
    # A FIFO that took the file's place meanwhile must not hold the thread for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise ValueError(f"{str(path)!r} is neither a file nor a directory; only those can be uploaded")
        yield encode_entry(Entry(EntryType.FILE, name, stat.S_IMODE(info.st_mode), int(info.st_mtime)))
        yield from encode_data(iter(lambda: file.read(BLOCK), b""))


class TreeWriter:
    """Makes a tree at ``root``, which must not exist and whose parent nobody else writes to."""

    def __init__(self, root: Path, *, max_entries: int) -> None:
        self._root = root
        self._max_entries = max_entries
        self._entries = 0
        self._names = 0
        self._file: BinaryIO | None = None
        self._file_entry: Entry | None = None
        self._links: list[Entry] = []
        self._directories: list[Entry] = []
        self._files = 0
        self._bytes = 0

    def take(self, events: list[Event]) -> None:
        """Carry out what came."""
        for event in events:
            if isinstance(event, FileData):
                assert self._file is not None
                self._file.write(event.data)
                self._bytes += len(event.data)
            elif isinstance(event, FileEnd):
                self._end_file()
            elif isinstance(event, Entry):
                self._begin(event)

    def finish(self) -> Download:
        """Make the links, and give the directories their modes and times: until now all were writable."""
        left_out = [entry.path for entry in self._links if not self._make_link(entry)]
        for entry in reversed(self._directories):
            self._place(entry).chmod(_directory_mode(entry.mode))
            self._set_time(entry)
        return Download(self._files, self._bytes, tuple(os.fsdecode(path) for path in left_out[:NAMED]))

    def close(self) -> None:
        """Close what is open, whatever happened."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin(self, entry: Entry) -> None:
        self._entries += 1
        self._names += len(entry.path) + len(entry.target)
        if self._entries > self._max_entries or self._names > _NAMES:
            raise FileTooLarge(
                f"The tree holds more than {self._max_entries} entries, or {_NAMES} bytes of names; "
                "download parts of it, or raise max_entries."
            )
        place = self._place(entry)
        if entry.type is EntryType.DIRECTORY:
            place.mkdir(0o700, parents=True, exist_ok=True)
            self._directories.append(entry)
            return
        place.parent.mkdir(0o700, parents=True, exist_ok=True)
        if entry.type is EntryType.LINK:
            self._links.append(entry)
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.fdopen(os.open(place, flags, 0o600), "wb")
            self._file_entry = entry

    def _make_link(self, entry: Entry) -> bool:
        if not leads_inside(entry):
            return False
        try:
            self._place(entry).symlink_to(os.fsdecode(entry.target))
        except FileExistsError:
            return False  # the tree changed while it was read, and had a file or directory of this name too
        return True

    def _end_file(self) -> None:
        assert self._file is not None
        assert self._file_entry is not None
        self._file.flush()
        os.fchmod(self._file.fileno(), _file_mode(self._file_entry.mode))
        self.close()
        self._set_time(self._file_entry)
        self._files += 1

    def _place(self, entry: Entry) -> Path:
        return self._root / os.fsdecode(entry.path)

    def _set_time(self, entry: Entry) -> None:
        # A sandbox can name any time; some file systems refuse those far away.
        with contextlib.suppress(OSError, OverflowError):
            os.utime(self._place(entry), (time.time(), entry.mtime), follow_symlinks=False)


def leads_inside(link: Entry) -> bool:
    """Whether a link stays in its tree wherever the tree stands and whatever the tree's other links are.

    ``..`` may only come first, and only as often as the link lies deep: then each step down is a name in the tree or
    another link of which the same holds.
    """
    if not link.path or not link.target or link.target.startswith(b"/") or b"\0" in link.target:
        return False
    parts = [part for part in link.target.split(b"/") if part not in (b"", b".")]
    climbs = 0
    while climbs < len(parts) and parts[climbs] == b"..":
        climbs += 1
    return climbs <= link.path.count(b"/") and b".." not in parts[climbs:]


def _file_mode(mode: int) -> int:
    """As ``tarfile.data_filter``: ours to read and write, nobody else's to write, executable only if it was for us."""
    mode &= 0o755
    if not mode & 0o100:
        mode &= ~0o111
    return mode | 0o600


def _directory_mode(mode: int) -> int:
    return (mode & 0o755) | 0o700
