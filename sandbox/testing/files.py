"""A file system in memory, as far as a sandbox's file calls and small commands need one."""

from __future__ import annotations

import errno
import os
import posixpath
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from sandbox.tree import Entry, EntryType
from sandbox.wire import MODE_KEEP

READ, WRITE, SEARCH = 4, 2, 1
_LINKS = 40

PASSWD = b"root:x:0:0:root:/root:/bin/sh\nagent:x:1000:1000::/home/agent:/bin/sh\n"


@dataclass(slots=True)
class Node:
    """A directory ``D``, a file ``F``, a link ``L`` or a special file ``S``."""

    kind: str
    mode: int
    uid: int = 0
    data: bytes = b""
    target: str = ""
    mtime: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True, slots=True)
class User:
    """Whose call it is."""

    name: str
    uid: int
    gid: int
    home: str


def fail(number: int, path: str) -> OSError:
    """The error as the guest would report it."""
    return OSError(number, os.strerror(number), path)


class FileSystem:
    """Paths to nodes. The rights are those of a sandbox without capabilities: root has no more than its own."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {"/": Node("D", 0o755)}
        for path, mode, uid in (
            ("/bin", 0o755, 0),
            ("/dev", 0o755, 0),
            ("/etc", 0o755, 0),
            ("/home", 0o755, 0),
            ("/home/agent", 0o755, 1000),
            ("/root", 0o700, 0),
            ("/srv", 0o755, 0),
            ("/tmp", 0o1777, 0),
            ("/workspace", 0o755, 1000),
        ):
            self._nodes[path] = Node("D", mode, uid)
        self._nodes["/bin/sh"] = Node("F", 0o755)
        self._nodes["/etc/passwd"] = Node("F", 0o644, data=PASSWD)
        self._nodes["/dev/null"] = Node("S", 0o666)
        self._nodes["/dev/zero"] = Node("S", 0o666)

    def find_user(self, text: str) -> User | None:
        """The user by ``/etc/passwd``: ``name``, ``uid``, either with ``:group``."""
        wanted, _, group = text.partition(":")
        known = {}
        passwd = self._nodes.get("/etc/passwd", Node("F", 0))
        for line in passwd.data.decode("utf-8", "replace").splitlines():
            name, _, uid, gid, _, home, *_ = [*line.split(":"), *[""] * 7]
            if uid.isdigit() and gid.isdigit():
                known[name] = known[uid] = User(name, int(uid), int(gid), home)
        user = known.get(wanted)
        if user is None and wanted.isdigit():
            user = User(wanted, int(wanted), 0, "/")
        if user is None or (group and not group.isdigit() and group not in known):
            return None
        return replace(user, gid=int(group) if group.isdigit() else known[group].gid) if group else user

    def resolve(self, path: str, user: User, *, follow: bool = True) -> str:
        """The path without links, each directory on the way searched by ``user``."""
        links = 0
        done = "/"
        rest = [part for part in path.split("/") if part not in ("", ".")]
        while rest:
            part = rest.pop(0)
            if part == "..":
                done = posixpath.dirname(done)
                continue
            self.check(done, user, SEARCH)
            here = posixpath.join(done, part)
            node = self._nodes.get(here)
            if node is not None and node.kind == "L" and (rest or follow):
                links += 1
                if links > _LINKS:
                    raise fail(errno.ELOOP, path)
                rest = [p for p in node.target.split("/") if p not in ("", ".")] + rest
                done = "/" if node.target.startswith("/") else done
                continue
            if node is None and rest:
                raise fail(errno.ENOENT, path)
            done = here
        return done

    def node(self, path: str) -> Node:
        """What is at a resolved path."""
        try:
            return self._nodes[path]
        except KeyError:
            raise fail(errno.ENOENT, path) from None

    def exists(self, path: str) -> bool:
        """Whether something is at a resolved path."""
        return path in self._nodes

    def check(self, path: str, user: User, right: int) -> None:
        """Raise unless the user has the right."""
        node = self.node(path)
        if right == SEARCH and node.kind != "D":
            raise fail(errno.ENOTDIR, path)
        bits = node.mode >> 6 if node.uid == user.uid else node.mode
        if not bits & right:
            raise fail(errno.EACCES, path)

    def enter(self, path: str, user: User) -> str:
        """Where ``cd`` leads."""
        place = self.resolve(path, user)
        self.check(place, user, SEARCH)
        return place

    def read(self, path: str, user: User) -> Node:
        """The file at ``path``, if the user may read it."""
        place = self.resolve(path, user)
        node = self.node(place)
        if node.kind == "D":
            raise fail(errno.EISDIR, path)
        if node.kind == "S":
            raise fail(errno.EINVAL, path)
        self.check(place, user, READ)
        return node

    def write(self, path: str, data: bytes, user: User, *, mode: int = MODE_KEEP, mtime: int = 0) -> None:
        """A whole file; its parents are made."""
        place = self._place(path, user)
        old = self._nodes.get(place)
        if old is not None and old.kind in "DS":
            raise fail(errno.EISDIR if old.kind == "D" else errno.EINVAL, path)
        if mode == MODE_KEEP:
            mode = old.mode if old is not None and old.kind == "F" else 0o644
        self._nodes[place] = Node("F", mode, user.uid, data=data)
        if mtime:
            self._nodes[place].mtime = mtime

    def append(self, path: str, data: bytes, user: User) -> None:
        """What ``>>`` does."""
        old = b""
        if self.exists(self.resolve(path, user)):
            old = self.read(path, user).data
        self.write(path, old + data, user)

    def make_directory(self, path: str, user: User, mode: int = 0o755) -> None:
        """A directory and its parents; one that is there is left as it is."""
        place = self._place(path, user) if path != "/" else "/"
        node = self._nodes.get(place)
        if node is None:
            self._nodes[place] = Node("D", mode, user.uid)
        elif node.kind != "D":
            raise fail(errno.ENOTDIR, path)

    def make_link(self, path: str, target: str, user: User) -> None:
        """A symbolic link."""
        self._nodes[self._place(path, user, follow=False)] = Node("L", 0o777, user.uid, target=target)

    def make_special(self, path: str) -> None:
        """A device, FIFO or socket, for tests of what refuses them."""
        self._nodes[path] = Node("S", 0o666)

    def remove(self, path: str, user: User) -> None:
        """A file, or a tree."""
        place = self.resolve(path, user, follow=False)
        self.node(place)
        self.check(posixpath.dirname(place), user, WRITE)
        for inner in [name for name in self._nodes if name == place or name.startswith(place + "/")]:
            del self._nodes[inner]

    def walk(self, place: str, user: User) -> Iterator[tuple[Entry, bytes]]:
        """The entries of a tree, parents first, each file with its bytes."""
        root = self.node(place)
        members = [(place, root)]
        if root.kind == "D":
            members += sorted((name, node) for name, node in self._nodes.items() if _is_below(name, place))
        for name, node in members:
            path = os.fsencode(name[len(place) :].strip("/"))
            if node.kind == "D":
                self.check(name, user, READ)
                yield Entry(EntryType.DIRECTORY, path, node.mode, node.mtime), b""
            elif node.kind == "F":
                self.check(name, user, READ)
                yield Entry(EntryType.FILE, path, node.mode, node.mtime), node.data
            elif node.kind == "L":
                yield Entry(EntryType.LINK, path, node.mode, node.mtime, os.fsencode(node.target)), b""

    def _place(self, path: str, user: User, *, follow: bool = True) -> str:
        """Where something new goes: the parents are made, and the user may write to the last of them."""
        parent = posixpath.dirname(path.rstrip("/")) or "/"
        if not self.exists(self._existing(parent, user)):
            self.make_directory(parent, user)
        place = self.resolve(path, user, follow=follow)
        if not self.exists(place):
            self.check(posixpath.dirname(place), user, WRITE)
        return place

    def _existing(self, path: str, user: User) -> str:
        try:
            return self.resolve(path, user)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return path
            raise


def _is_below(name: str, place: str) -> bool:
    return name != place and name.startswith(place.rstrip("/") + "/")
