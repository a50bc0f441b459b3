"""What the fake's shell can run, and what a command of it sees."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import anyio
from anyio.lowlevel import checkpoint

from sandbox.testing.files import FileSystem, User

Stream = Literal["stdout", "stderr"]
Write = Callable[[Stream, bytes], Awaitable[None]]
Read = Callable[[], Awaitable[bytes]]

_BLOCK = 65536


class Exited(Exception):
    """The shell's end."""

    def __init__(self, code: int) -> None:
        self.code = code


class Signaled(Exception):
    """The shell's end by a signal."""

    def __init__(self, number: int) -> None:
        self.number = number


@dataclass
class Process:
    """What one command of the fake sees and may do."""

    env: dict[str, str]
    cwd: str
    user: User
    files: FileSystem
    read: Read
    write: Write
    spawn: Callable[[Callable[[], Awaitable[object]]], None]
    last: int = 0

    def path(self, name: str) -> str:
        """A path made absolute."""
        return posixpath.join(self.cwd, name)

    async def say(self, text: str) -> None:
        """Text on stdout."""
        await self.write("stdout", text.encode("utf-8", "surrogateescape"))

    async def complain(self, text: str) -> int:
        """Text on stderr, and the exit status of a failure."""
        await self.write("stderr", f"sh: {text}\n".encode("utf-8", "surrogateescape"))
        return 1


async def _true(_process: Process, _args: list[str]) -> int:
    return 0


async def _false(_process: Process, _args: list[str]) -> int:
    return 1


async def _echo(process: Process, args: list[str]) -> int:
    newline = "\n"
    if args[:1] == ["-n"]:
        args, newline = args[1:], ""
    await process.say(" ".join(args) + newline)
    return 0


async def _printf(process: Process, args: list[str]) -> int:
    text = args[0] if args else ""
    rest = list(args[1:])
    text = re.sub(r"%[sd]", lambda _found: rest.pop(0) if rest else "", text)
    data = re.sub(
        rb"\\(n|t|\\|[0-7]{1,3})",
        lambda found: {b"n": b"\n", b"t": b"\t", b"\\": b"\\"}.get(found[1]) or bytes([int(found[1], 8) & 255]),
        text.encode("utf-8", "surrogateescape"),
    )
    await process.write("stdout", data)
    return 0


async def _cat(process: Process, args: list[str]) -> int:
    for name in args or ["-"]:
        if name != "-":
            await process.write("stdout", process.files.read(process.path(name), process.user).data)
            continue
        while data := await process.read():
            await process.write("stdout", data)
    return 0


async def _wc(process: Process, _args: list[str]) -> int:
    count = 0
    while data := await process.read():
        count += len(data)
    await process.say(f"{count}\n")
    return 0


async def _sleep(_process: Process, args: list[str]) -> int:
    await anyio.sleep(float(args[0]))
    return 0


async def _kill(process: Process, args: list[str]) -> int:
    number, pid = (args[0].lstrip("-"), args[1]) if len(args) > 1 else ("15", args[0])
    names = {"KILL": 9, "TERM": 15, "INT": 2, "HUP": 1, "SEGV": 11}
    if pid != "2":
        return await process.complain(f"kill: no process {pid} in the fake")
    raise Signaled(names.get(number.removeprefix("SIG"), 0) or int(number))


async def _yes(process: Process, args: list[str]) -> int:
    block = (" ".join(args) or "y").encode() + b"\n"
    block *= _BLOCK // len(block)
    while True:
        await process.write("stdout", block)
        await checkpoint()


async def _head(process: Process, args: list[str]) -> int:
    """Only ``head -c N [FILE]``; ``/dev/zero`` is endless."""
    count = int(args[1])
    if args[2:] == ["/dev/zero"]:
        while count > 0:
            await process.write("stdout", bytes(min(count, _BLOCK)))
            count -= _BLOCK
    elif args[2:]:
        await process.write("stdout", process.files.read(process.path(args[2]), process.user).data[:count])
    else:
        while count > 0 and (data := await process.read()):
            await process.write("stdout", data[:count])
            count -= len(data)
    return 0


async def _pwd(process: Process, _args: list[str]) -> int:
    await process.say(process.cwd + "\n")
    return 0


async def _env(process: Process, _args: list[str]) -> int:
    await process.say("".join(f"{name}={value}\n" for name, value in process.env.items()))
    return 0


async def _id(process: Process, args: list[str]) -> int:
    user = process.user
    known = {"-u": str(user.uid), "-g": str(user.gid), "-un": user.name}
    await process.say(known.get("".join(args), f"uid={user.uid}({user.name}) gid={user.gid}") + "\n")
    return 0


async def _cd(process: Process, args: list[str]) -> int:
    try:
        process.cwd = process.files.enter(process.path(args[0] if args else process.env.get("HOME", "/")), process.user)
    except OSError as error:
        return 2 * await process.complain(f"cd: can't cd to {args[0]}: {error.strerror}")
    return 0


async def _exit(process: Process, args: list[str]) -> int:
    raise Exited(int(args[0]) & 255 if args else process.last)


async def _export(process: Process, args: list[str]) -> int:
    for word in args:
        name, separator, value = word.partition("=")
        if separator:
            process.env[name] = value
    return 0


async def _test(process: Process, args: list[str]) -> int:
    """Only ``-e``, ``-f``, ``-d``, ``-L``."""
    args = [word for word in args if word != "]"]
    try:
        place = process.files.resolve(process.path(args[1]), process.user, follow=args[0] != "-L")
        kind = process.files.node(place).kind
    except OSError:
        return 1
    return 0 if kind in {"-e": "DFS", "-f": "F", "-d": "D", "-L": "L"}[args[0]] else 1


async def _mkdir(process: Process, args: list[str]) -> int:
    for name in args:
        if name != "-p":
            process.files.make_directory(process.path(name), process.user)
    return 0


async def _rm(process: Process, args: list[str]) -> int:
    forced = any(word.startswith("-") and "f" in word for word in args)
    for name in args:
        try:
            if not name.startswith("-"):
                process.files.remove(process.path(name), process.user)
        except FileNotFoundError:
            if not forced:
                raise
    return 0


async def _ln(process: Process, args: list[str]) -> int:
    """Only ``ln -s TARGET LINK``."""
    process.files.make_link(process.path(args[2]), args[1], process.user)
    return 0


async def _chmod(process: Process, args: list[str]) -> int:
    process.files.node(process.files.resolve(process.path(args[1]), process.user)).mode = int(args[0], 8)
    return 0


async def _stat(process: Process, args: list[str]) -> int:
    """Only ``stat -c %a FILE``."""
    node = process.files.node(process.files.resolve(process.path(args[-1]), process.user))
    await process.say(f"{node.mode & 0o7777:o}\n")
    return 0


async def _readlink(process: Process, args: list[str]) -> int:
    node = process.files.node(process.files.resolve(process.path(args[0]), process.user, follow=False))
    await process.say(node.target + "\n")
    return 0 if node.kind == "L" else 1


Command = Callable[[Process, list[str]], Awaitable[int]]

COMMANDS: Mapping[str, Command] = {
    ":": _true,
    "[": _test,
    "cat": _cat,
    "cd": _cd,
    "chmod": _chmod,
    "echo": _echo,
    "env": _env,
    "exit": _exit,
    "export": _export,
    "false": _false,
    "head": _head,
    "id": _id,
    "kill": _kill,
    "ln": _ln,
    "mkdir": _mkdir,
    "printf": _printf,
    "pwd": _pwd,
    "readlink": _readlink,
    "rm": _rm,
    "sleep": _sleep,
    "stat": _stat,
    "test": _test,
    "true": _true,
    "wc": _wc,
    "yes": _yes,
}
"""The commands that the fake knows."""
