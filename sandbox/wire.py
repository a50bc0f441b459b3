"""The protocol's frames, sans-IO: bytes in, values out. docs/protocol.md explains them; guest/frames.h is the C home.

The rules, which this file and :mod:`sandbox.connection` keep for the controller's side:

* A frame is a 12-byte header and at most ``MAX_FRAME`` bytes. Type and length are judged from the header alone,
  before the payload is waited for, so nothing from the stream decides how much memory is taken.
* ``HELLO`` comes first and once; only ``FATAL`` may come in its place. ``HELLO``, ``PONG``, ``RESET_DONE`` and
  ``FATAL`` have id 0; all others name a call that is open. ``PONG`` and ``RESET_DONE`` answer, they are never alone.
* A call is ``OPEN``, then any of ``OUTPUT``, ``KEPT``, ``CREDIT``, then ``EXIT``, which ends it. ``KEPT`` belongs to
  RUN, ``OUTPUT`` to a watched RUN, to READ and to GET.
* Neither side sends more on a call's stream than ``WINDOW`` plus the credit it was given. ``KEPT`` is bounded by the
  call's ``output_limit``: of each stream the head in order, then the tail in order, split by the rule.
* Whatever breaks a rule is a ``ProtocolError``. After one, nothing else is read from the stream.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import NamedTuple

MAGIC = 0x31584253
VERSION = 1
MAX_FRAME = 65536
WINDOW = 262144
BODY_MAX = 2 * 1024 * 1024
SCRIPT_MAX = 16 * 1024 * 1024
OUTPUT_LIMIT_MAX = 64 * 1024 * 1024
PATH_LEN_MAX = 4096
PING_MAX = 64
FATAL_MAX = 1024
MODE_KEEP = 0xFFFF
MAX_ERRNO = 4095
MAX_SIGNAL = 64
U32_MAX = 0xFFFFFFFF

HEADER = struct.Struct("<IBBHI")
HELLO = struct.Struct("<IHHIII")
OPEN = struct.Struct("<BBHIIIIIIIQ")
EXIT = struct.Struct("<BBBBiiIQQQQQQII")
CREDIT = struct.Struct("<I")


class ProtocolError(Exception):
    """The stream broke a rule. Private to the wire and the channel, which makes a ``SandboxLost`` of it."""


class Type(IntEnum):
    """What a frame is; below 16 it goes to the guest (CREDIT: both ways)."""

    OPEN = 1
    INPUT = 2
    CREDIT = 3
    CANCEL = 4
    PING = 5
    RESET = 6
    HELLO = 16
    OUTPUT = 17
    KEPT = 18
    EXIT = 19
    PONG = 20
    RESET_DONE = 21
    FATAL = 22


class Kind(IntEnum):
    """What a call does."""

    RUN = 1
    READ = 2
    GET = 3
    PUT = 4
    CHECK = 5


class CallFlag(IntFlag):
    """Options of an OPEN."""

    MERGE = 1
    WATCH = 2
    STDIN = 4
    SCRIPT = 8


class Feature(IntFlag):
    """What the guest found in its container."""

    SH = 1
    OOM = 2


class Status(IntEnum):
    """How a call ended."""

    EXITED = 1
    SIGNALED = 2
    TIMED_OUT = 3
    CANCELLED = 4
    REFUSED = 5
    KILLED = 6
    FAILED = 7


class Stage(IntEnum):
    """Where a refused or failed call stopped."""

    USER = 1
    CWD = 2
    PROCESS = 3
    EXEC = 4
    DISK = 5
    FILE = 6
    INPUT = 7


class ExitFlag(IntFlag):
    """What else is known of an ended call."""

    BACKGROUND = 1
    OOM = 2
    OOM_UNKNOWN = 4
    COLLATERAL = 8
    SWEPT = 16


LAST = 1
"""INPUT's flag: the call's input ends here."""
STDOUT, STDERR, TAIL = 1, 2, 4
"""OUTPUT's and KEPT's flags."""
_EXIT_FLAGS = 31
_NO_CALL_FLAG = CallFlag(0)
_NO_EXIT_FLAG = ExitFlag(0)


class Frame(NamedTuple):
    """One frame, its type and length judged, its payload not."""

    type: int
    flag: int
    id: int
    payload: bytes


class Bound(NamedTuple):
    """What a header of one type may say."""

    least: int
    most: int
    flags: frozenset[int]
    has_call: bool


def _bound(least: int, most: int, *, flags: tuple[int, ...] = (0,), has_call: bool) -> Bound:
    return Bound(least, most, frozenset(flags), has_call)


TO_CONTROLLER: Mapping[int, Bound] = {
    Type.CREDIT: _bound(4, 4, has_call=True),
    Type.HELLO: _bound(HELLO.size, MAX_FRAME, has_call=False),
    Type.OUTPUT: _bound(0, MAX_FRAME, flags=(STDOUT, STDERR), has_call=True),
    Type.KEPT: _bound(0, MAX_FRAME, flags=(STDOUT, STDERR, STDOUT | TAIL, STDERR | TAIL), has_call=True),
    Type.EXIT: _bound(EXIT.size, EXIT.size, has_call=True),
    Type.PONG: _bound(0, PING_MAX, has_call=False),
    Type.RESET_DONE: _bound(0, 0, has_call=False),
    Type.FATAL: _bound(0, FATAL_MAX, has_call=False),
}
TO_GUEST: Mapping[int, Bound] = {
    Type.OPEN: _bound(OPEN.size, OPEN.size, has_call=True),
    Type.INPUT: _bound(0, MAX_FRAME, flags=(0, LAST), has_call=True),
    Type.CREDIT: _bound(4, 4, has_call=True),
    Type.CANCEL: _bound(0, 0, has_call=True),
    Type.PING: _bound(0, PING_MAX, has_call=False),
    Type.RESET: _bound(0, 0, has_call=False),
}


def encode(kind: int, call_id: int = 0, payload: bytes | memoryview = b"", flag: int = 0) -> bytes:
    """One frame as bytes."""
    return b"".join((HEADER.pack(len(payload), kind, flag, 0, call_id), payload))


class Decoder:
    """Cuts a stream, arriving in any pieces, into frames. It holds at most one frame beside what it was given."""

    def __init__(self, bounds: Mapping[int, Bound]) -> None:
        self._bounds = bounds
        self._buffer = bytearray()
        self._broken: ProtocolError | None = None

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Frame]:
        """Yield the frames that ``data`` completes; take them all before feeding again."""
        if self._broken is not None:
            raise self._broken
        buffer = self._buffer
        buffer += data
        position = 0
        try:
            while len(buffer) - position >= HEADER.size:
                length, kind, flag, zero, call_id = HEADER.unpack_from(buffer, position)
                self._judge(length, kind, flag, zero, call_id)
                end = position + HEADER.size + length
                if len(buffer) < end:
                    break
                payload = bytes(memoryview(buffer)[position + HEADER.size : end]) if length else b""
                position = end
                yield Frame(kind, flag, call_id, payload)
        except ProtocolError as error:
            self._broken = error
            position = len(buffer)
            raise
        finally:
            del buffer[:position]

    def _judge(self, length: int, kind: int, flag: int, zero: int, call_id: int) -> None:
        bound = self._bounds.get(kind)
        if bound is None:
            raise ProtocolError(f"a frame has the unknown type {kind}")
        if not bound.least <= length <= bound.most:
            raise ProtocolError(f"a {Type(kind).name} frame has {length} bytes")
        if flag not in bound.flags or zero:
            raise ProtocolError(f"a {Type(kind).name} frame has the flag {flag} and {zero} for zero")
        if bound.has_call != (call_id != 0):
            raise ProtocolError(f"a {Type(kind).name} frame has the id {call_id}")


@dataclass(frozen=True, slots=True)
class Hello:
    """What the guest says of itself, first of all."""

    features: Feature
    pid: int
    interfaces: tuple[str, ...]

    @classmethod
    def decode(cls, payload: bytes) -> Hello:
        """Judge the fixed part; the version comes before everything that another version may mean differently."""
        magic, version, features, pid, window, max_frame = HELLO.unpack_from(payload)
        if magic != MAGIC:
            raise ProtocolError("the stream does not begin with the guest's HELLO")
        if version != VERSION:
            raise ProtocolError(f"the guest speaks version {version} of the protocol, this library {VERSION}")
        if (window, max_frame) != (WINDOW, MAX_FRAME):
            raise ProtocolError(f"the guest has a window of {window} bytes and frames of {max_frame}")
        names = payload[HELLO.size :].decode("utf-8", "replace")
        if names and not names.endswith("\0"):
            raise ProtocolError("the guest's HELLO ends in the midst of a name")
        return cls(Feature(features), pid, tuple(names.split("\0")[:-1]))


class Exit(NamedTuple):
    """A call's outcome as the guest reports it, every field within its range."""

    status: Status
    stage: Stage | None = None
    flags: ExitFlag = _NO_EXIT_FLAG
    signal: int = 0
    exit_code: int = 0
    error: int = 0
    survivors: int = 0
    total_out: int = 0
    total_err: int = 0
    wall_us: int = 0
    user_us: int = 0
    sys_us: int = 0
    maxrss_kib: int = 0
    mode: int = 0

    @classmethod
    def decode(cls, payload: bytes) -> Exit:
        """Judge a whole EXIT payload."""
        status, stage, flags, signal, exit_code, error, *counts, mode, zero = EXIT.unpack(payload)
        survivors, total_out, total_err, wall_us, user_us, sys_us, maxrss_kib = counts
        if not 1 <= status <= Status.FAILED:
            raise ProtocolError(f"an EXIT has the unknown status {status}")
        needs_stage = status in (Status.REFUSED, Status.FAILED)
        if needs_stage and not 1 <= stage <= Stage.INPUT:
            raise ProtocolError(f"an EXIT has the unknown stage {stage}")
        if flags & ~_EXIT_FLAGS or zero:
            raise ProtocolError(f"an EXIT has the flags {flags} and {zero} for zero")
        if not (status == Status.SIGNALED) <= signal <= MAX_SIGNAL:
            raise ProtocolError(f"an EXIT has the signal {signal}")
        if not 0 <= exit_code <= 255 or not 0 <= error <= MAX_ERRNO:
            raise ProtocolError(f"an EXIT has the exit code {exit_code} and the errno {error}")
        return cls(
            status=Status(status),
            stage=Stage(stage) if needs_stage else None,
            flags=ExitFlag(flags),
            signal=signal,
            exit_code=exit_code,
            error=error,
            survivors=survivors,
            total_out=total_out,
            total_err=total_err,
            wall_us=wall_us,
            user_us=user_us,
            sys_us=sys_us,
            maxrss_kib=maxrss_kib,
            mode=mode,
        )


@dataclass(frozen=True, slots=True)
class Request:
    """One OPEN with its body and script. Who makes one keeps the bounds; ``encode`` only refuses what can't be sent."""

    kind: Kind
    args: tuple[bytes, ...] = ()
    user: bytes = b""
    cwd: bytes = b"/"
    env: tuple[bytes, ...] = ()
    flags: CallFlag = _NO_CALL_FLAG
    script: bytes = b""
    timeout_ms: int = 0
    grace_ms: int = 0
    output_limit: int = 0
    max_bytes: int = 0

    def encode(self) -> tuple[bytes, bytes]:
        """The OPEN payload and the body; the script follows the body in the call's input."""
        body = b"\0".join((self.user, self.cwd, *self.args, *self.env, b""))
        if len(body) > BODY_MAX or len(self.script) > SCRIPT_MAX or self.output_limit > OUTPUT_LIMIT_MAX:
            raise ValueError("the request is larger than the protocol allows")
        if body.count(0) != 2 + len(self.args) + len(self.env):
            raise ValueError("a part of the request has a NUL byte")
        fixed = OPEN.pack(
            self.kind,
            self.flags,
            0,
            len(self.args),
            len(self.env),
            len(body),
            len(self.script),
            self.timeout_ms,
            self.grace_ms,
            self.output_limit,
            self.max_bytes,
        )
        return fixed, body
