"""A raw driver for the guest's real binary: no engine, no container, and an encoder of its own.

The guest runs as PID 1 of a namespace that ``unshare`` makes, with private mounts, no network, and the capabilities
that an engine would leave it. ``sandbox.wire`` is not used: two encoders that agree prove each other.

Every frame is judged as it comes: a guest that oversteps a window, sends KEPT out of order or answers a call twice
fails whatever test was running.
"""

from __future__ import annotations

import os
import select
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

OPEN, INPUT, CREDIT, CANCEL, PING, RESET = 1, 2, 3, 4, 5, 6
HELLO, OUTPUT, KEPT, EXIT, PONG, RESET_DONE, FATAL = 16, 17, 18, 19, 20, 21, 22
RUN, READ, GET, PUT, CHECK = 1, 2, 3, 4, 5
MERGE, WATCH, STDIN, SCRIPT = 1, 2, 4, 8
EXITED, SIGNALED, TIMED_OUT, CANCELLED, REFUSED, KILLED, FAILED = 1, 2, 3, 4, 5, 6, 7
USER, CWD, PROCESS, EXEC, DISK, FILE, BAD_INPUT = 1, 2, 3, 4, 5, 6, 7
BACKGROUND, OOM, OOM_UNKNOWN, COLLATERAL, SWEPT = 1, 2, 4, 8, 16
LAST = 1
OUT, ERR, TAIL = 1, 2, 4
FRAME_MAX, WINDOW = 65536, 262144
MODE_KEEP = 0xFFFF

HEADER = struct.Struct("<IBBHI")
FIXED = struct.Struct("<BBHIIIIIIIQ")
REPORT = struct.Struct("<BBBBiiIQQQQQQII")
GREETING = struct.Struct("<IHHIII")
ENTRY = struct.Struct("<BBHIQ")

PATH = b"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENGINE_CAPS = ("setuid", "setgid", "kill")
PATIENCE = 20.0


class GuestGoneError(Exception):
    """The guest ended; with its status and its last words."""

    def __init__(self, status: int, fatal: str | None) -> None:
        super().__init__(f"the guest exited with {status}, saying {fatal!r}")
        self.status = status
        self.fatal = fatal


@dataclass
class Report:
    """An EXIT frame."""

    status: int
    stage: int
    flags: int
    signal: int
    exit_code: int
    error: int
    survivors: int
    total_out: int
    total_err: int
    wall_us: int
    user_us: int
    sys_us: int
    maxrss_kib: int
    mode: int
    zero: int

    @property
    def outcome(self) -> tuple[int, int, int]:
        """What most tests ask: status, stage, exit code."""
        return self.status, self.stage, self.exit_code


@dataclass(repr=False)
class Call:
    """One call as the controller sees it."""

    id: int
    kind: int
    limit: int
    pending: bytearray = field(default_factory=bytearray)
    ends: bool = True
    window: int = WINDOW
    granted: int = WINDOW
    auto_credit: bool = True
    taken: int = 0
    live: dict[int, bytearray] = field(default_factory=lambda: {OUT: bytearray(), ERR: bytearray()})
    live_order: list[tuple[int, bytes]] = field(default_factory=list)
    kept: dict[int, bytearray] = field(
        default_factory=lambda: {f: bytearray() for f in (OUT, ERR, OUT | TAIL, ERR | TAIL)}
    )
    report: Report | None = None
    last_sent: bool = False

    def __repr__(self) -> str:
        return f"<call {self.id} of kind {self.kind}: {self.report or f'open, {self.taken} bytes of output taken'}>"

    @property
    def end(self) -> Report:
        assert self.report is not None, "the call has not ended"
        return self.report

    @property
    def out(self) -> bytes:
        return bytes(self.kept[OUT] + self.kept[OUT | TAIL])

    @property
    def err(self) -> bytes:
        return bytes(self.kept[ERR] + self.kept[ERR | TAIL])

    @property
    def data(self) -> bytes:
        """A READ's or GET's bytes, a watched run's stdout."""
        return bytes(self.live[OUT])


def frame(kind: int, call_id: int = 0, payload: bytes = b"", flag: int = 0) -> bytes:
    return HEADER.pack(len(payload), kind, flag, 0, call_id) + payload


def fixed(
    kind: int = RUN,
    flags: int = 0,
    argc: int = 1,
    envc: int = 0,
    body: int = 0,
    script: int = 0,
    timeout_ms: int = 0,
    grace_ms: int = 0,
    limit: int = 0,
    max_bytes: int = 0,
) -> bytes:
    return FIXED.pack(kind, flags, 0, argc, envc, body, script, timeout_ms, grace_ms, limit, max_bytes)


def encode(text: str | bytes) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


@dataclass(frozen=True)
class Stage:
    """What a test session prepares once: the binaries and a folder that every user inside can reach."""

    folder: Path
    """Bound to /mnt inside: ``guest``, ``probe``, ``logs`` (sanitizer reports), ``etc`` (bound to /etc)."""
    binary: str
    sanitized: bool


class Guest:
    """One running guest. Use as a context manager; leaving it checks that it ends as it should."""

    def __init__(
        self,
        stage: Stage,
        *args: str,
        caps: Sequence[str] = ENGINE_CAPS,
        etc: Path | None = None,
        mounts: str = "",
        enter: str = "",
        network: bool = False,
        extra_fds: Sequence[int] = (),
        mapped_ids: int | None = None,
    ) -> None:
        self.stage = stage
        self.calls: dict[int, Call] = {}
        self.pongs: list[bytes] = []
        self.resets = 0
        self.fatal: str | None = None
        self._next_id = 0
        self._incoming = bytearray()
        self._outgoing = bytearray()
        logs = "/mnt/logs/report"
        setup = "\n".join(
            (
                "set -e",
                f"mount --bind {stage.folder} /mnt",
                f"mount --bind {etc or stage.folder / 'etc'} /etc",
                "mount -t tmpfs -o mode=1777 none /tmp",
                mounts,
                "cd /",
                'exec "$@"',
            )
        )
        limits = [
            "setpriv",
            "--bounding-set=-all," + ",".join(f"+{cap}" for cap in caps),
            "--inh-caps=-all",
            "--no-new-privs",
        ]
        command = [
            "unshare",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
            "--ipc",
            *([] if network else ["--net"]),
            "sh",
            "-c",
            setup,
            "sh",
            *limits,
            f"/mnt/{stage.binary}",
            *args,
        ]
        if mapped_ids is not None:
            wait = 'while [ -z "$(cat /proc/self/gid_map)" ]; do sleep 0.01; done; exec "$@"'
            command = ["unshare", "--user", "sh", "-c", wait, "sh", *command]
        if enter:
            command = ["sh", "-c", f'{enter}\nexec "$@"', "sh", *command]
        self._stderr = (stage.folder / "logs" / f"stderr-{time.monotonic_ns()}").open("wb")
        options = (
            f"detect_leaks=0:abort_on_error=0:exitcode=99:log_path={logs}:handle_abort=1:allocator_may_return_null=1"
        )
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            bufsize=0,
            pass_fds=extra_fds,
            env={
                "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
                "ASAN_OPTIONS": options,
                "UBSAN_OPTIONS": "print_stacktrace=1",
                "SECRET": "of the controller",
            },
        )
        self._stderr.close()
        assert self.process.stdin and self.process.stdout
        self._stdin, self._stdout = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self._stdin, False)
        try:
            if mapped_ids is not None:
                self._map_ids(mapped_ids)
            kind, _, _, payload = self._first_frame()
            assert kind == HELLO, (kind, payload)
            magic, version, self.features, pid, window, most = GREETING.unpack_from(payload)
            assert (magic, version, pid, window, most) == (0x31584253, 1, 1, WINDOW, FRAME_MAX)
            self.interfaces = payload[GREETING.size :].split(b"\0")[:-1]
        except BaseException:
            self.kill()
            raise

    def _map_ids(self, count: int) -> None:
        """As an engine does for a container with a user namespace, but with fewer ids."""
        own = Path("/proc/self/ns/user").readlink()
        theirs = Path(f"/proc/{self.process.pid}")
        until = time.monotonic() + PATIENCE
        while (theirs / "ns/user").readlink() == own and time.monotonic() < until:
            time.sleep(0.005)
        for kind in ("uid", "gid"):
            (theirs / f"{kind}_map").write_text(f"0 0 {count}\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self.process.poll() is None and not self.process.stdin.closed:  # type: ignore[union-attr]
            status = self.close()
            assert status == 0, f"the guest exited with {status} at the end of its input: {self.fatal!r}"
        else:
            self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream
            stream.close()

    def close(self) -> int:
        """End the guest's input; its exit status."""
        assert self.process.stdin and self.process.stdout
        self._outgoing.clear()
        self.process.stdin.close()
        status = self.wait_gone()
        self.process.stdout.close()
        return status

    def wait_gone(self, timeout: float = PATIENCE) -> int:
        """Take what still comes, until the guest is gone."""
        until = time.monotonic() + timeout
        try:
            while time.monotonic() < until:
                self._read(0.1)
        except GuestGoneError as gone:
            return gone.status
        raise AssertionError("the guest does not end")

    @property
    def pid(self) -> int:
        """PID 1's number on the host."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    # -- calls

    def open(
        self,
        argv: Sequence[str | bytes] = (".",),
        *,
        kind: int = RUN,
        flags: int = 0,
        user: str | bytes = "",
        cwd: str | bytes = "/",
        env: Sequence[str | bytes] = (PATH,),
        stdin: bytes | None = None,
        more: bool = False,
        script: bytes | None = None,
        timeout: float = 0,
        grace: float = 0.2,
        limit: int = 1 << 20,
        max_bytes: int = 1 << 40,
        tree: bytes = b"",
        credit: bool = True,
    ) -> Call:
        """Begin a call. ``more``: its stdin goes on (see ``feed``). ``credit``: take its output as it comes."""
        body = b"".join(encode(text) + b"\0" for text in (user, cwd, *argv, *env))
        if kind == RUN and (stdin is not None or more):
            flags |= STDIN
        if script is not None:
            flags |= SCRIPT
        self._next_id += 1
        call = Call(self._next_id, kind, limit, auto_credit=credit)
        call.pending += body + (script or b"") + (stdin or b"") + tree
        call.ends = not more
        self.calls[call.id] = call
        self.send(
            frame(
                OPEN,
                call.id,
                fixed(
                    kind,
                    flags,
                    len(argv),
                    len(env),
                    len(body),
                    len(script or b""),
                    round(timeout * 1000),
                    round(grace * 1000),
                    limit,
                    max_bytes,
                ),
            )
        )
        self._send_input(call)
        return call

    def sh(self, command: str | bytes, **options) -> Call:
        return self.open(["/bin/sh", "-c", command], **options)

    def run(self, command: str | bytes, **options) -> Call:
        """A shell command, from its beginning to its end."""
        return self.wait(self.sh(command, **options))

    def do(self, argv: Sequence[str | bytes], **options) -> Call:
        """Any call, from its beginning to its end."""
        return self.wait(self.open(argv, **options))

    def feed(self, call: Call, data: bytes, *, last: bool = False) -> None:
        call.pending += data
        call.ends = last
        self._send_input(call)

    def grant(self, call: Call, amount: int) -> None:
        call.granted += amount
        self.send(frame(CREDIT, call.id, struct.pack("<I", amount)))

    def cancel(self, call: Call) -> None:
        self.send(frame(CANCEL, call.id))

    def reset(self) -> None:
        before = self.resets
        self.send(frame(RESET))
        self.until(lambda: self.resets > before)

    def ping(self, payload: bytes = b"?") -> None:
        before = len(self.pongs)
        self.send(frame(PING, 0, payload))
        self.until(lambda: len(self.pongs) > before)
        assert self.pongs[-1] == payload

    def wait(self, *calls: Call, timeout: float = PATIENCE) -> Call:
        self.until(lambda: all(call.report for call in calls), timeout)
        return calls[0]

    def memory(self, kind: str = "Anonymous") -> int:
        """KiB of PID 1's."""
        lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(kind))

    @property
    def descriptors(self) -> int:
        """How many PID 1 has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    @property
    def own_uid(self) -> int:
        """Whom the guest itself runs as."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("Uid:")))

    def feed_to_the_end(self, data: bytes) -> int:
        """Send bytes of any kind, judge no answer, and end the input; the guest's exit status."""
        assert self.process.stdin
        deaf = time.monotonic() + PATIENCE
        self._take = lambda *_: None  # type: ignore[method-assign]
        self.send(data)
        try:
            while self._outgoing and time.monotonic() < deaf:
                self._read(1)
        except GuestGoneError as gone:
            return gone.status
        self.process.stdin.close()
        return self.wait_gone()

    def until(self, condition: Callable[[], object], timeout: float = PATIENCE) -> None:
        until = time.monotonic() + timeout
        while not condition():
            left = until - time.monotonic()
            assert left > 0, f"nothing came for {timeout} s; open: {[c for c in self.calls.values() if not c.report]}"
            self._read(left)

    def idle(self, seconds: float) -> None:
        """Take what comes for a while."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._read(left)

    # -- the stream

    def send(self, data: bytes) -> None:
        assert self.process.stdin
        if not self.process.stdin.closed:
            self._outgoing += data
            self._write()

    def send_input(self, call: Call, data: bytes, flag: int = 0) -> None:
        """One INPUT frame as it is, within the window."""
        call.window -= len(data)
        self.send(frame(INPUT, call.id, data, flag))

    def raw_call(self, kind: int, payload: bytes) -> Call:
        """A call of which only the OPEN is sent."""
        self._next_id += 1
        call = self.calls[self._next_id] = Call(self._next_id, kind, 1 << 20)
        call.last_sent = True
        self.send(frame(OPEN, call.id, payload))
        return call

    def _write(self) -> None:
        try:
            while self._outgoing:
                sent = os.write(self._stdin, self._outgoing)
                del self._outgoing[:sent]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._outgoing.clear()  # its last words tell why

    def _send_input(self, call: Call) -> None:
        if call.report or call.last_sent:
            return
        while call.pending and call.window:
            part = bytes(call.pending[: min(FRAME_MAX, call.window)])
            del call.pending[: len(part)]
            call.window -= len(part)
            call.last_sent = call.ends and not call.pending
            self.send(frame(INPUT, call.id, part, LAST if call.last_sent else 0))
        if call.ends and not call.pending and not call.last_sent:
            call.last_sent = True
            self.send(frame(INPUT, call.id, b"", LAST))

    def _read(self, timeout: float) -> None:
        readable, writable, _ = select.select(
            [self._stdout], [self._stdin] if self._outgoing else [], [], max(0.0, timeout)
        )
        if writable:
            self._write()
        if not readable:
            return
        data = os.read(self._stdout, 1 << 18)
        self._incoming += data
        for kind, flag, call_id, payload in self._frames():
            self._take(kind, flag, call_id, payload)
        if not data:
            raise GuestGoneError(self._status(), self.fatal)

    def _status(self) -> int:
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError("the guest closed its output and lives on") from None

    def _frames(self) -> Iterable[tuple[int, int, int, bytes]]:
        while len(self._incoming) >= HEADER.size:
            length, kind, flag, zero, call_id = HEADER.unpack_from(self._incoming)
            assert length <= FRAME_MAX and zero == 0, (length, kind, flag, zero, call_id)
            if len(self._incoming) < HEADER.size + length:
                return
            payload = bytes(self._incoming[HEADER.size : HEADER.size + length])
            del self._incoming[: HEADER.size + length]
            yield kind, flag, call_id, payload

    def _first_frame(self) -> tuple[int, int, int, bytes]:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            readable, _, _ = select.select([self._stdout], [], [], 1)
            if not readable:
                continue
            data = os.read(self._stdout, 1 << 16)
            if not data:
                raise GuestGoneError(self._status(), None)
            self._incoming += data
            for found in self._frames():
                if found[0] == FATAL:
                    raise GuestGoneError(self._status(), found[3].decode())
                return found
        raise AssertionError("the guest says nothing")

    def _take(self, kind: int, flag: int, call_id: int, payload: bytes) -> None:
        match kind:
            case 20:
                self.pongs.append(payload)
            case 21:
                self.resets += 1
            case 22:
                self.fatal = payload.decode()
            case _:
                call = self.calls[call_id]
                assert call.report is None, f"call {call_id} was answered and goes on with a frame of type {kind}"
                self._take_of(call, kind, flag, payload)

    def _take_of(self, call: Call, kind: int, flag: int, payload: bytes) -> None:
        match kind:
            case 3:
                (amount,) = struct.unpack("<I", payload)
                call.window += amount
                assert call.window <= WINDOW, "more credit was given than input was taken"
                self._send_input(call)
            case 17:
                call.taken += len(payload)
                assert flag in (OUT, ERR) and call.taken <= call.granted, "the output's window was overstepped"
                call.live[flag] += payload
                call.live_order.append((flag, payload))
                if call.auto_credit and payload:
                    self.grant(call, len(payload))
            case 18:
                assert call.kind == RUN and flag in call.kept
                assert flag & TAIL or not call.kept[flag | TAIL], "a head after its tail"
                call.kept[flag] += payload
                assert len(call.kept[flag & 3]) + len(call.kept[(flag & 3) | TAIL]) <= call.limit
            case 19:
                call.report = Report(*REPORT.unpack(payload))
                assert call.report.zero == 0
            case _:
                raise AssertionError(f"a frame of type {kind}")


def entry(kind: str, path: bytes = b"", mode: int = 0o644, mtime: int = 0) -> bytes:
    return ENTRY.pack(ord(kind), 0, mode, len(path), mtime) + path


def chunks(data: bytes, size: int = FRAME_MAX) -> bytes:
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    return b"".join(struct.pack("<I", len(part)) + part for part in parts) + struct.pack("<I", 0)


def file_tree(data: bytes, mode: int = MODE_KEEP, path: bytes = b"", mtime: int = 0) -> bytes:
    """A tree of one file."""
    return entry("F", path, mode, mtime) + chunks(data) + entry("E", mode=0)


@dataclass
class Member:
    kind: str
    mode: int
    mtime: int
    data: bytes


def parse_tree(data: bytes) -> dict[bytes, Member]:
    """A GET's bytes, judged to the last one."""
    at = 0
    found: dict[bytes, Member] = {}
    while True:
        kind, zero, mode, path_len, mtime = ENTRY.unpack_from(data, at)
        at += ENTRY.size
        path = data[at : at + path_len]
        at += path_len
        assert zero == 0 and len(path) == path_len
        if chr(kind) == "E":
            assert at == len(data) and not path
            return found
        content = bytearray()
        if chr(kind) in "FL":
            while True:
                (length,) = struct.unpack_from("<I", data, at)
                at += 4
                if not length:
                    break
                assert length <= FRAME_MAX
                content += data[at : at + length]
                at += length
        else:
            assert chr(kind) == "D"
        assert path not in found
        found[path] = Member(chr(kind), mode, mtime, bytes(content))


def missing_tools() -> str | None:
    """Why the guest can't be run here, if it can't."""
    if os.geteuid() != 0:
        return "a PID namespace of its own needs root"
    for tool in ("unshare", "setpriv", "mount"):
        if not shutil.which(tool):
            return f"there is no {tool} (util-linux)"
    trial = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "--ipc", "--net", "true"], capture_output=True
    )
    return None if trial.returncode == 0 else f"no namespaces can be made here: {trial.stderr.decode().strip()}"
