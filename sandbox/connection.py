"""The state of one stream and of its calls, sans-IO: bytes in, events out; what is to be sent is returned as bytes.

The rules stand at the head of :mod:`sandbox.wire`. :mod:`sandbox.channel` does the input and output.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sandbox.wire import (
    CREDIT,
    LAST,
    MAX_FRAME,
    STDERR,
    STDOUT,
    TAIL,
    TO_CONTROLLER,
    U32_MAX,
    WINDOW,
    CallFlag,
    Decoder,
    Exit,
    Frame,
    Hello,
    Kind,
    ProtocolError,
    Request,
    Status,
    Type,
    encode,
)

_GRANT = WINDOW // 4
"""Credit is given back in quarters of the window: few frames, and the other side never runs dry while we keep up."""


class Kept:
    """What was kept of one stream of a run; never more than the limit that was asked for."""

    __slots__ = ("_head_limit", "_limit", "head", "tail")

    def __init__(self, limit: int) -> None:
        self.head = bytearray()
        self.tail = bytearray()
        self._limit = limit
        self._head_limit = limit * 2 // 5

    def __len__(self) -> int:
        return len(self.head) + len(self.tail)

    def add(self, payload: bytes, *, to_tail: bool) -> None:
        """Take one KEPT frame, in its place or not at all."""
        if to_tail:
            if len(self.head) != self._head_limit or len(self) + len(payload) > self._limit:
                raise ProtocolError("the guest kept more of the end of a stream than it was asked to")
            self.tail += payload
        else:
            if self.tail or len(self) + len(payload) > self._limit:
                raise ProtocolError("the guest kept more of the beginning of a stream than it was asked to")
            self.head += payload


class Call:
    """One call as the controller sees it."""

    def __init__(self, call_id: int, request: Request, more_input: bool) -> None:
        self.id = call_id
        self.request = request
        self.exit: Exit | None = None
        self.cancelled = False
        self.stdout = Kept(request.output_limit)
        self.stderr = Kept(request.output_limit)
        self._output_window = WINDOW
        self._output_taken = 0
        self._output_total = 0
        self._input_credit = WINDOW
        self._input: deque[bytes | memoryview] = deque()
        self._source: Iterator[bytes | memoryview] | None = None
        self._input_closed = not more_input
        self._input_sent = False

    @property
    def wants_input(self) -> bool:
        """Whether all input that was given has been sent, and there may be more."""
        return not self._input and self._source is None and not self._input_closed

    def feed(self, data: bytes | memoryview) -> None:
        """Add input; ``sendable`` says when it goes out."""
        if data:
            self._input.append(data)

    def feed_from(self, source: Iterable[bytes | memoryview]) -> None:
        """Add input that is made when there is credit for it."""
        self._source = iter(source)

    def close_input(self) -> None:
        """Say that no more input comes."""
        self._input_closed = True

    def drop_input(self) -> None:
        """Send nothing more: the call has ended, or is about to."""
        self._input.clear()
        self._source = None
        self._input_closed = self._input_sent = True

    def sendable(self) -> bytes:
        """The INPUT frames that may be sent now."""
        frames = []
        while not self._input_sent:
            piece = self._slice(min(self._input_credit, MAX_FRAME))
            self._input_credit -= len(piece)
            self._input_sent = self._input_closed and not self._input and self._source is None
            if not piece and not self._input_sent:
                break
            frames.append(encode(Type.INPUT, self.id, piece, LAST if self._input_sent else 0))
        return b"".join(frames)

    def _slice(self, room: int) -> bytes | memoryview:
        """Up to ``room`` bytes of input; small pieces share a frame."""
        pieces: list[bytes | memoryview] = []
        while room and self._refill():
            piece = self._input.popleft()
            if len(piece) > room:
                view = memoryview(piece)
                self._input.appendleft(view[room:])
                piece = view[:room]
            room -= len(piece)
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _refill(self) -> bool:
        while not self._input and self._source is not None:
            piece = next(self._source, None)
            if piece is None:
                self._source = None
            elif piece:
                self._input.append(piece)
        return bool(self._input)

    def taken(self, count: int) -> bytes:
        """Note that ``count`` bytes of OUTPUT were consumed; the CREDIT that is due, if one is."""
        self._output_taken += count
        if self._output_taken < _GRANT or self.exit is not None:
            return b""
        grant, self._output_taken = self._output_taken, 0
        self._output_window += grant
        return encode(Type.CREDIT, self.id, CREDIT.pack(grant))

    def take_output(self, flag: int, payload: bytes) -> None:
        """Judge one OUTPUT frame."""
        request = self.request
        if request.kind is Kind.RUN:
            allowed = bool(request.flags & CallFlag.WATCH)
        else:
            allowed = request.kind in (Kind.READ, Kind.GET) and flag == STDOUT
        if not allowed:
            raise ProtocolError(f"a {request.kind.name} call has sent OUTPUT that it was not asked for")
        self._output_window -= len(payload)
        self._output_total += len(payload)
        if self._output_window < 0:
            raise ProtocolError("the guest has sent more output than it had credit for")
        if request.kind is Kind.READ and self._output_total > request.max_bytes:
            raise ProtocolError("the guest has sent more of a file than it was asked for")

    def take_kept(self, flag: int, payload: bytes) -> None:
        """Judge and keep one KEPT frame."""
        if self.request.kind is not Kind.RUN:
            raise ProtocolError(f"a {self.request.kind.name} call has sent KEPT")
        (self.stdout if flag & ~TAIL == STDOUT else self.stderr).add(payload, to_tail=bool(flag & TAIL))

    def take_credit(self, payload: bytes) -> None:
        """Add to the input's credit, which is never more than a window."""
        self._input_credit += CREDIT.unpack(payload)[0]
        if self._input_credit > WINDOW:
            raise ProtocolError("the guest gave more credit than a window")

    def end(self, report: Exit) -> None:
        """Take the call's last frame."""
        if report.status in (Status.EXITED, Status.SIGNALED) and (
            len(self.stdout) > report.total_out or len(self.stderr) > report.total_err
        ):
            raise ProtocolError("the guest kept more output than the command wrote")
        self.exit = report
        self.drop_input()


class HelloReceived(NamedTuple):
    """The guest is up."""

    hello: Hello


class OutputReceived(NamedTuple):
    """Live bytes of a call: to be consumed, then ``Call.taken``."""

    call: Call
    stream: int
    data: bytes


class InputWanted(NamedTuple):
    """Credit came: ``Call.sendable`` may have more."""

    call: Call


class CallEnded(NamedTuple):
    """The call's ``exit`` is there."""

    call: Call


class ResetDone(NamedTuple):
    """The oldest reset that was asked for is done."""


class GuestDies(NamedTuple):
    """The guest says why it exits now."""

    reason: str


Event = HelloReceived | OutputReceived | InputWanted | CallEnded | ResetDone | GuestDies


class Connection:
    """Both directions of one stream."""

    def __init__(self) -> None:
        self.hello: Hello | None = None
        self.unanswered_pings = 0
        self._decoder = Decoder(TO_CONTROLLER)
        self._calls: dict[int, Call] = {}
        self._last_id = 0
        self._resets = 0

    def open(self, request: Request, *, more_input: bool = False) -> tuple[Call, bytes]:
        """Begin a call: its state, and the OPEN frame with as much of body and script as the window takes."""
        fixed, body = request.encode()
        call = Call(self._new_id(), request, more_input)
        call.feed(body)
        call.feed(request.script)
        self._calls[call.id] = call
        return call, encode(Type.OPEN, call.id, fixed) + call.sendable()

    def cancel(self, call: Call) -> bytes:
        """End a call early, once; its EXIT comes nonetheless."""
        if call.exit is not None or call.cancelled:
            return b""
        call.cancelled = True
        call.drop_input()
        return encode(Type.CANCEL, call.id)

    def ping(self) -> bytes:
        """Renew the lease."""
        self.unanswered_pings += 1
        return encode(Type.PING)

    def reset(self) -> bytes:
        """Kill every process in the sandbox."""
        self._resets += 1
        return encode(Type.RESET)

    def receive(self, data: bytes) -> Iterator[Event]:
        """Yield what ``data`` completes. An event's consequences must be carried out before the next is asked for."""
        for frame in self._decoder.feed(data):
            event = self._take(frame)
            if event is not None:
                yield event

    def _new_id(self) -> int:
        while True:
            self._last_id = self._last_id % U32_MAX + 1
            if self._last_id not in self._calls:
                return self._last_id

    def _take(self, frame: Frame) -> Event | None:
        if self.hello is None and frame.type not in (Type.HELLO, Type.FATAL):
            raise ProtocolError("the stream does not begin with the guest's HELLO")
        if frame.id:
            return self._take_of_call(frame)
        if frame.type == Type.PONG:
            if not self.unanswered_pings:
                raise ProtocolError("a PONG answers no PING")
            self.unanswered_pings -= 1
            return None
        if frame.type == Type.HELLO:
            if self.hello is not None:
                raise ProtocolError("a second HELLO came")
            self.hello = Hello.decode(frame.payload)
            return HelloReceived(self.hello)
        if frame.type == Type.RESET_DONE:
            if not self._resets:
                raise ProtocolError("a RESET_DONE answers no RESET")
            self._resets -= 1
            return ResetDone()
        return GuestDies(_printable(frame.payload))

    def _take_of_call(self, frame: Frame) -> Event | None:
        call = self._calls.get(frame.id)
        if call is None:
            raise ProtocolError(f"a {Type(frame.type).name} frame came for a call that isn't open")
        if frame.type == Type.KEPT:
            call.take_kept(frame.flag, frame.payload)
            return None
        if frame.type == Type.OUTPUT:
            call.take_output(frame.flag, frame.payload)
            return OutputReceived(call, STDERR if frame.flag == STDERR else STDOUT, frame.payload)
        if frame.type == Type.CREDIT:
            call.take_credit(frame.payload)
            return InputWanted(call)
        call.end(Exit.decode(frame.payload))
        del self._calls[call.id]
        return CallEnded(call)


def _printable(text: bytes) -> str:
    """On one line and without control characters, since it ends up in errors, and they in terminals."""
    return " ".join("".join(each if each.isprintable() else " " for each in text.decode("utf-8", "replace")).split())
