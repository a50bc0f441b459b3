"""One call as the fake guest sees it: its input, its output, what is kept of it, and its end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import anyio

from sandbox.spec import Status
from sandbox.testing.commands import Process, Stream
from sandbox.wire import (
    CREDIT,
    EXIT,
    MAX_FRAME,
    OPEN,
    STDERR,
    STDOUT,
    TAIL,
    WINDOW,
    CallFlag,
    Exit,
    Kind,
    Type,
    encode,
)

Send = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Reply:
    """A scripted outcome of a command."""

    stdout: bytes | str = b""
    stderr: bytes | str = b""
    exit_code: int = 0
    signal: int = 0
    """Of the statuses ``signaled`` and ``out_of_memory``."""
    status: Status = "exited"
    delay: float = 0.0
    """Seconds that the command takes."""
    background: bool = False


class Invocation:
    """A command that the fake was asked to run, as ``respond=`` sees it."""

    def __init__(self, argv: Sequence[str], process: Process) -> None:
        self.argv = tuple(argv)
        self.command = argv[2] if self.argv[:2] == ("/bin/sh", "-c") else " ".join(argv)
        """The script for a shell, or the arguments joined by spaces."""
        self.cwd = process.cwd
        self.env = process.env
        self.user = process.user.name
        self._read = process.read

    async def read_stdin(self) -> bytes:
        """All of the command's stdin."""
        data = bytearray()
        while piece := await self._read():
            data += piece
        return bytes(data)


Answer = Reply | str | None
Responder = Callable[[Invocation], Awaitable[Answer] | Answer]
"""Answers a command, or returns None and leaves it to the fake's own shell. A ``str`` is the stdout of a success."""


class Keep:
    """The head and tail of one stream, as docs/protocol.md splits them."""

    def __init__(self, limit: int) -> None:
        self.total = 0
        self._limit = limit
        self._head = limit * 2 // 5
        self._first = bytearray()
        self._last = bytearray()

    def add(self, data: bytes) -> None:
        """Take what a command wrote."""
        self.total += len(data)
        self._first += data[: self._limit - len(self._first)]
        self._last += data
        del self._last[: max(0, len(self._last) - (self._limit - self._head))]

    def frames(self, call_id: int, stream: int) -> bytes:
        """The KEPT frames."""
        if self.total <= self._limit:
            parts = ((stream, self._first), (stream | TAIL, bytearray()))
        else:
            parts = ((stream, self._first[: self._head]), (stream | TAIL, self._last))
        return b"".join(
            encode(Type.KEPT, call_id, bytes(data[start : start + MAX_FRAME]), flag)
            for flag, data in parts
            for start in range(0, len(data), MAX_FRAME)
        )


class GuestCall:
    """One open call."""

    def __init__(self, call_id: int, fixed: bytes, send: Send) -> None:
        kind, flags, _, argc, envc, body, script, timeout, _grace, limit, most = OPEN.unpack(fixed)
        self.id = call_id
        self.kind = Kind(kind)
        self.flags = CallFlag(flags)
        self.timeout = timeout / 1000 if timeout else None
        self.max_bytes: int = most
        self.scope = anyio.CancelScope()
        self.background: set[anyio.CancelScope] = set()
        self.cancelled = False
        self.ended = anyio.Event()
        self.kept: dict[Stream, Keep] = {"stdout": Keep(limit), "stderr": Keep(limit)}
        self._counts = argc, envc, body, script
        self._send = send
        self._input = bytearray()
        self._input_ended = False
        self._input_window = WINDOW
        self._ungranted = 0
        self._output_credit = WINDOW
        self._came = anyio.Event()

    def take_input(self, data: bytes, last: bool) -> None:
        """An INPUT frame."""
        self._input_window -= len(data)
        if self._input_window < 0:
            raise ValueError(f"call {self.id} was sent input beyond its window")
        self._input += data
        self._input_ended = self._input_ended or last
        self._came.set()

    def take_credit(self, count: int) -> None:
        """A CREDIT frame."""
        self._output_credit += count
        self._came.set()

    def cancel(self) -> None:
        """A CANCEL frame, or a reset."""
        self.cancelled = True
        self.scope.cancel()

    async def read(self, count: int) -> bytes:
        """Exactly so many bytes of input; fewer at its end."""
        data = bytearray()
        while len(data) < count:
            piece = await self.read_some(count - len(data))
            if not piece:
                break
            data += piece
        return bytes(data)

    async def read_some(self, most: int = MAX_FRAME) -> bytes:
        """Some bytes of input; none at its end."""
        while not self._input:
            if self._input_ended:
                return b""
            await self._wait()
        data = bytes(self._input[:most])
        del self._input[:most]
        self._grant(len(data))
        return data

    async def read_request(self) -> tuple[str, str, list[str], dict[str, str], bytes]:
        """User, working directory, arguments, environment and script."""
        argc, envc, body_len, script_len = self._counts
        body = await self.read(body_len)
        parts = [part.decode("utf-8", "surrogateescape") for part in body.split(b"\0")]
        if len(body) != body_len or len(parts) != 3 + argc + envc or parts[-1]:
            raise ValueError(f"the body of call {self.id} is not what its OPEN says")
        user, cwd, *rest = parts[:-1]
        env = dict(entry.split("=", 1) for entry in rest[argc:])
        return user, cwd, rest[:argc], env, await self.read(script_len)

    async def write(self, stream: Stream, data: bytes) -> None:
        """Output of a command: kept, and sent if it is watched. What comes after the call's end is lost."""
        if CallFlag.MERGE in self.flags:
            stream = "stdout"
        if self.ended.is_set():
            return
        self.kept[stream].add(data)
        if CallFlag.WATCH in self.flags:
            await self.send_output(data, STDOUT if stream == "stdout" else STDERR)

    async def send_output(self, data: bytes, flag: int = STDOUT) -> None:
        """OUTPUT frames, as there is credit for them."""
        while data:
            count = min(len(data), MAX_FRAME, self._output_credit)
            if not count:
                await self._wait()
                continue
            self._output_credit -= count
            self._send(encode(Type.OUTPUT, self.id, data[:count], flag))
            data = data[count:]

    def end(self, report: Exit) -> None:
        """Send what was kept, and EXIT."""
        out, err = self.kept["stdout"], self.kept["stderr"]
        if self.kind is Kind.RUN:
            self._send(out.frames(self.id, STDOUT) + err.frames(self.id, STDERR))
            report = report._replace(total_out=out.total, total_err=err.total)
        self._send(encode(Type.EXIT, self.id, encode_exit(report)))
        self.ended.set()

    def _grant(self, count: int) -> None:
        self._ungranted += count
        if self._ungranted >= WINDOW // 4 and not self._input_ended:
            self._input_window += self._ungranted
            self._send(encode(Type.CREDIT, self.id, CREDIT.pack(self._ungranted)))
            self._ungranted = 0

    async def _wait(self) -> None:
        self._came = anyio.Event()
        await self._came.wait()


def encode_exit(report: Exit) -> bytes:
    """The EXIT payload; the opposite of ``Exit.decode``."""
    return EXIT.pack(
        report.status,
        report.stage or 0,
        report.flags,
        report.signal,
        report.exit_code,
        report.error,
        report.survivors,
        report.total_out,
        report.total_err,
        report.wall_us,
        report.user_us,
        report.sys_us,
        report.maxrss_kib,
        report.mode,
        0,
    )
