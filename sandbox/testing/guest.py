"""The fake guest: the protocol from the other side, so that what it serves is the genuine channel.

It follows docs/protocol.md and not :mod:`sandbox.connection`, whose rules it is there to test.
"""

from __future__ import annotations

import errno
import inspect
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio
from anyio.abc import ByteStream, TaskGroup

from sandbox.testing.calls import GuestCall, Invocation, Reply, Responder
from sandbox.testing.commands import Exited, Process, Signaled
from sandbox.testing.files import FileSystem, User
from sandbox.testing.shell import run_argv, run_script
from sandbox.testing.transfers import transfer
from sandbox.wire import (
    CREDIT,
    HELLO,
    LAST,
    MAGIC,
    MAX_FRAME,
    TO_GUEST,
    VERSION,
    WINDOW,
    CallFlag,
    Decoder,
    Exit,
    ExitFlag,
    Feature,
    Frame,
    Kind,
    ProtocolError,
    Stage,
    Status,
    Type,
    encode,
)


@dataclass
class Machine:
    """What a fake container is made of."""

    files: FileSystem
    respond: Responder | None = None
    lease: float = 120.0
    pid: int = 1
    features: Feature = Feature.SH | Feature.OOM
    interfaces: tuple[str, ...] = ("lo",)
    magic: int = MAGIC
    version: int = VERSION


class Refused(Exception):
    """The call ended before it could begin."""

    def __init__(self, report: Exit) -> None:
        self.report = report


class FakeGuest:
    """Serves one stream until it ends."""

    def __init__(self, machine: Machine, stream: ByteStream) -> None:
        self._machine = machine
        self._stream = stream
        self._calls: dict[int, GuestCall] = {}
        self._lingering: set[GuestCall] = set()
        self._decoder = Decoder(TO_GUEST)
        self._outbox: list[bytes] = []
        self._posted = anyio.Event()
        self._stalled: anyio.Event | None = None

    @property
    def open_calls(self) -> int:
        """How many calls have not ended."""
        return len(self._calls)

    def send(self, data: bytes) -> None:
        """Leave bytes for the writer; also for tests that send garbage."""
        self._outbox.append(data)
        self._posted.set()

    def stall(self, stalled: bool) -> None:
        """Stop reading and answering, or go on."""
        if stalled and self._stalled is None:
            self._stalled = anyio.Event()
        elif not stalled and self._stalled is not None:
            self._stalled.set()
            self._stalled = None

    async def serve(self) -> str:
        """Serve until the stream ends; the clause that says why."""
        machine = self._machine
        names = b"".join(name.encode() + b"\0" for name in machine.interfaces)
        fixed = HELLO.pack(machine.magic, machine.version, machine.features, machine.pid, WINDOW, MAX_FRAME)
        self.send(encode(Type.HELLO, 0, fixed + names))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._write)
            cause = await self._read(tasks)
            tasks.cancel_scope.cancel()
        return cause

    async def _read(self, tasks: TaskGroup) -> str:
        while True:
            try:
                with anyio.move_on_after(self._machine.lease) as lease:
                    data = await self._stream.receive()
                if lease.cancelled_caught:
                    return "the lease ran out: no word came from the controller for too long"
                await self._while_stalled()
                for frame in self._decoder.feed(data):
                    self._take(frame, tasks)
            except (ProtocolError, ValueError) as error:
                with anyio.move_on_after(1):
                    await self._stream.send(encode(Type.FATAL, 0, str(error).encode()[:1024]))
                return "a frame broke the protocol"
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                return "the link to its controller was closed"

    async def _write(self) -> None:
        try:
            while True:
                while not self._outbox:
                    self._posted = anyio.Event()
                    await self._posted.wait()
                await self._while_stalled()
                data = b"".join(self._outbox)
                self._outbox.clear()
                await self._stream.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return  # the reader sees the same end

    async def _while_stalled(self) -> None:
        while self._stalled is not None:
            await self._stalled.wait()

    def _take(self, frame: Frame, tasks: TaskGroup) -> None:
        call = self._calls.get(frame.id)
        match frame.type:
            case Type.OPEN:
                if call is not None:
                    raise ProtocolError(f"call {frame.id} was opened twice")
                call = self._calls[frame.id] = GuestCall(frame.id, frame.payload, self.send)
                tasks.start_soon(self._serve_call, call, tasks)
            case Type.INPUT if call is not None:
                call.take_input(frame.payload, frame.flag == LAST)
            case Type.CREDIT if call is not None:
                call.take_credit(CREDIT.unpack(frame.payload)[0])
            case Type.CANCEL if call is not None:
                call.cancel()
            case Type.PING:
                self.send(encode(Type.PONG, 0, frame.payload))
            case Type.RESET:
                tasks.start_soon(self._reset)
            case _:
                pass  # it crossed its call's EXIT

    async def _reset(self) -> None:
        calls = list(self._calls.values())
        for call in [*calls, *self._lingering]:
            call.cancel()
            for scope in call.background:
                scope.cancel()
        for call in calls:
            await call.ended.wait()
        self.send(encode(Type.RESET_DONE))

    async def _serve_call(self, call: GuestCall, tasks: TaskGroup) -> None:
        began = time.monotonic()
        report = Exit(Status.TIMED_OUT, signal=15)
        with call.scope, anyio.move_on_after(call.timeout):
            report = await self._carry_out(call, tasks)
        if call.scope.cancelled_caught:
            report = Exit(Status.CANCELLED, signal=15)
        if report.status in (Status.TIMED_OUT, Status.CANCELLED):
            for scope in call.background:
                scope.cancel()
        elif call.background:
            report = report._replace(flags=report.flags | ExitFlag.BACKGROUND)
        call.end(report._replace(wall_us=int((time.monotonic() - began) * 1e6)))
        del self._calls[call.id]

    async def _carry_out(self, call: GuestCall, tasks: TaskGroup) -> Exit:
        try:
            user_text, cwd, args, env, script = await call.read_request()
            user, cwd = self._enter(user_text, cwd)
            if call.kind is Kind.RUN:
                process = self._process(call, user, cwd, env, tasks)
                return await self._run(call, process, args, script)
            return await transfer(call, self._machine.files, os.path.join(cwd, args[0]), user)  # noqa: PTH118
        except Refused as refusal:
            return refusal.report
        except OSError as error:
            return Exit(Status.FAILED, Stage.FILE, error=error.errno or errno.EIO)

    def _enter(self, user_text: str, cwd: str) -> tuple[User, str]:
        user = self._machine.files.find_user(user_text or "0:0")
        if user is None:
            raise Refused(Exit(Status.FAILED, Stage.USER, error=errno.ENOENT))
        try:
            return user, self._machine.files.enter(cwd, user)
        except OSError as error:
            raise Refused(Exit(Status.FAILED, Stage.CWD, error=error.errno or errno.EIO)) from None

    def _process(self, call: GuestCall, user: User, cwd: str, env: dict[str, str], tasks: TaskGroup) -> Process:
        has_stdin = CallFlag.STDIN in call.flags

        async def read() -> bytes:
            return await call.read_some() if has_stdin else b""

        def spawn(run: Callable[[], Awaitable[object]]) -> None:
            scope = anyio.CancelScope()
            call.background.add(scope)
            self._lingering.add(call)
            tasks.start_soon(self._run_background, call, scope, run)

        env = {"HOME": user.home, "USER": user.name, "LOGNAME": user.name, **env}
        return Process(env, cwd, user, self._machine.files, read, call.write, spawn)

    async def _run_background(
        self, call: GuestCall, scope: anyio.CancelScope, run: Callable[[], Awaitable[object]]
    ) -> None:
        try:
            with scope:
                await run()
        except (Exited, Signaled):
            pass
        finally:
            call.background.discard(scope)
            if not call.background:
                self._lingering.discard(call)

    async def _run(self, call: GuestCall, process: Process, args: list[str], script: bytes) -> Exit:
        if CallFlag.SCRIPT in call.flags:
            args = [*args, "-c", script.decode("utf-8", "surrogateescape")]
        reply = await self._scripted(process, args)
        if reply is not None:
            return await _play(process, reply)
        try:
            is_shell = args[0] == "/bin/sh" and args[1:2] == ["-c"]
            code = await (run_script(process, args[2]) if is_shell else run_argv(process, args))
        except Exited as end:
            code = end.code
        except Signaled as end:
            return Exit(Status.SIGNALED, signal=end.number)
        return Exit(Status.EXITED, exit_code=code)

    async def _scripted(self, process: Process, args: list[str]) -> Reply | None:
        if self._machine.respond is None:
            return None
        answer = self._machine.respond(Invocation(args, process))
        if inspect.isawaitable(answer):
            answer = await answer
        return Reply(stdout=answer) if isinstance(answer, str) else answer


async def _play(process: Process, reply: Reply) -> Exit:
    await process.write("stdout", _bytes(reply.stdout))
    await process.write("stderr", _bytes(reply.stderr))
    await anyio.sleep(reply.delay)
    flags = ExitFlag.BACKGROUND if reply.background else ExitFlag(0)
    match reply.status:
        case "timed_out":
            return Exit(Status.TIMED_OUT, signal=15)
        case "refused":
            return Exit(Status.REFUSED, Stage.PROCESS, error=errno.EAGAIN)
        case "killed":
            return Exit(Status.KILLED)
        case "out_of_memory":
            flags |= ExitFlag.OOM
        case _:
            pass
    if reply.signal:
        return Exit(Status.SIGNALED, flags=flags, signal=reply.signal)
    return Exit(Status.EXITED, flags=flags, exit_code=reply.exit_code)


def _bytes(text: bytes | str) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
