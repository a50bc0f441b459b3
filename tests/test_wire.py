"""The protocol's rules on the controller's side: whatever comes, in whatever pieces, nothing crashes or grows."""

from __future__ import annotations

import itertools
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import wire
from sandbox.connection import (
    CallEnded,
    Connection,
    GuestDies,
    HelloReceived,
    InputWanted,
    OutputReceived,
    ResetDone,
)
from sandbox.testing.calls import Keep, encode_exit
from sandbox.wire import (
    CREDIT,
    EXIT,
    HEADER,
    HELLO,
    LAST,
    MAGIC,
    MAX_FRAME,
    TO_CONTROLLER,
    TO_GUEST,
    VERSION,
    WINDOW,
    CallFlag,
    Decoder,
    Exit,
    ExitFlag,
    Feature,
    Hello,
    Kind,
    ProtocolError,
    Request,
    Stage,
    Status,
    Type,
    encode,
)

GREETING = encode(Type.HELLO, 0, HELLO.pack(MAGIC, VERSION, Feature.SH, 1, WINDOW, MAX_FRAME) + b"lo\0")
TRUE = Request(Kind.RUN, args=(b"/bin/sh", b"-c", b"true"))
ENDED = encode_exit(Exit(Status.EXITED))


def pieces(data, cuts):
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


def connected():
    connection = Connection()
    assert [type(event) for event in connection.receive(GREETING)] == [HelloReceived]
    return connection


def opened(request=TRUE, **options):
    connection = connected()
    call, sent = connection.open(request, **options)
    return connection, call, sent


def frames_for(bounds):
    def frame(kind):
        bound = bounds[kind]
        return st.tuples(
            st.just(int(kind)),
            st.sampled_from(sorted(bound.flags)),
            st.integers(1, wire.U32_MAX) if bound.has_call else st.just(0),
            st.binary(min_size=bound.least, max_size=min(bound.most, bound.least + 300)),
        )

    return st.lists(st.sampled_from(sorted(bounds)).flatmap(frame), max_size=8)


@pytest.mark.parametrize("bounds", [TO_CONTROLLER, TO_GUEST], ids=["to controller", "to guest"])
@given(data=st.data())
def test_frames_come_out_as_they_went_in_however_they_are_cut(bounds, data):
    frames = data.draw(frames_for(bounds))
    stream = b"".join(encode(kind, call_id, payload, flag) for kind, flag, call_id, payload in frames)
    decoder = Decoder(bounds)
    got = [
        frame for piece in pieces(stream, data.draw(st.lists(st.integers(0, 2000)))) for frame in decoder.feed(piece)
    ]
    assert [tuple(frame) for frame in got] == frames


@pytest.mark.parametrize("bounds", [TO_CONTROLLER, TO_GUEST], ids=["to controller", "to guest"])
@given(stream=st.binary(max_size=4000), cuts=st.lists(st.integers(0, 4000)))
def test_any_bytes_are_frames_or_a_protocol_error(bounds, stream, cuts):
    decoder = Decoder(bounds)
    try:
        for piece in pieces(stream, cuts):
            for frame in decoder.feed(piece):
                assert len(frame.payload) <= bounds[frame.type].most
    except ProtocolError:
        with pytest.raises(ProtocolError):
            list(decoder.feed(GREETING))
    assert len(decoder._buffer) <= HEADER.size + MAX_FRAME


@pytest.mark.parametrize("kind", list(TO_CONTROLLER))
@pytest.mark.parametrize("excess", [1, 65536, 0x7FFFFFFF])
def test_a_length_is_judged_before_its_payload_is_awaited(kind, excess):
    bound = TO_CONTROLLER[kind]
    header = HEADER.pack(bound.most + excess, kind, min(bound.flags), 0, 7 if bound.has_call else 0)
    with pytest.raises(ProtocolError, match="bytes"):
        list(Decoder(TO_CONTROLLER).feed(header))


@pytest.mark.parametrize("kind", [kind for kind, bound in TO_CONTROLLER.items() if bound.least])
def test_a_length_below_its_least_is_refused(kind):
    bound = TO_CONTROLLER[kind]
    header = HEADER.pack(bound.least - 1, kind, min(bound.flags), 0, 7 if bound.has_call else 0)
    with pytest.raises(ProtocolError, match="bytes"):
        list(Decoder(TO_CONTROLLER).feed(header))


@given(
    kind=st.integers(0, 255).filter(lambda kind: kind not in TO_CONTROLLER), rest=st.binary(min_size=11, max_size=11)
)
def test_an_unknown_type_is_refused(kind, rest):
    with pytest.raises(ProtocolError, match="unknown type"):
        list(Decoder(TO_CONTROLLER).feed(rest[:4] + bytes([kind]) + rest[4:]))


@pytest.mark.parametrize("kind", list(TO_CONTROLLER))
@pytest.mark.parametrize("flag, zero", [(8, 0), (255, 0), (None, 1)])
def test_flags_and_zeros_are_judged(kind, flag, zero):
    bound = TO_CONTROLLER[kind]
    header = HEADER.pack(
        bound.least, kind, min(bound.flags) if flag is None else flag, zero, 7 if bound.has_call else 0
    )
    with pytest.raises(ProtocolError, match="flag"):
        list(Decoder(TO_CONTROLLER).feed(header))


@pytest.mark.parametrize("kind", list(TO_CONTROLLER))
def test_an_id_stands_where_a_call_is_meant_and_nowhere_else(kind):
    bound = TO_CONTROLLER[kind]
    header = HEADER.pack(bound.least, kind, min(bound.flags), 0, 0 if bound.has_call else 7)
    with pytest.raises(ProtocolError, match="id"):
        list(Decoder(TO_CONTROLLER).feed(header))


def test_frames_before_a_broken_one_are_still_delivered():
    connection = Connection()
    events = connection.receive(GREETING + encode(Type.FATAL, 0, b"no memory") + b"\xff" * 40)
    assert isinstance(next(events), HelloReceived)
    assert next(events) == GuestDies("no memory")
    with pytest.raises(ProtocolError):
        next(events)


class TestHello:
    def test_names_its_interfaces_and_features(self):
        payload = HELLO.pack(MAGIC, VERSION, Feature.SH | Feature.OOM, 1, WINDOW, MAX_FRAME) + b"lo\0eth0\0"
        assert Hello.decode(payload) == Hello(Feature.SH | Feature.OOM, 1, ("lo", "eth0"))

    @pytest.mark.parametrize(
        "payload",
        [
            HELLO.pack(MAGIC + 1, VERSION, 1, 1, WINDOW, MAX_FRAME),
            HELLO.pack(MAGIC, VERSION + 1, 1, 1, WINDOW, MAX_FRAME),
            HELLO.pack(MAGIC, VERSION, 1, 1, WINDOW + 1, MAX_FRAME),
            HELLO.pack(MAGIC, VERSION, 1, 1, WINDOW, MAX_FRAME * 2),
            HELLO.pack(MAGIC, VERSION, 1, 1, WINDOW, MAX_FRAME) + b"lo",
        ],
        ids=["magic", "version", "window", "frame", "name"],
    )
    def test_of_another_protocol_is_refused(self, payload):
        with pytest.raises(ProtocolError):
            Hello.decode(payload)

    @given(st.binary(min_size=HELLO.size, max_size=200))
    def test_of_any_bytes_is_one_or_a_protocol_error(self, payload):
        try:
            Hello.decode(payload)
        except ProtocolError:
            pass


class TestExit:
    @given(st.binary(min_size=EXIT.size, max_size=EXIT.size))
    def test_of_any_bytes_is_within_its_ranges_or_a_protocol_error(self, payload):
        try:
            report = Exit.decode(payload)
        except ProtocolError:
            return
        assert report.status in Status
        assert (report.stage is not None) == (report.status in (Status.REFUSED, Status.FAILED))
        assert 0 <= report.exit_code <= 255
        assert 0 <= report.error <= wire.MAX_ERRNO
        assert 0 <= report.signal <= wire.MAX_SIGNAL

    @given(
        st.builds(
            Exit,
            status=st.sampled_from(Status),
            stage=st.sampled_from(Stage),
            flags=st.integers(0, 31).map(ExitFlag),
            signal=st.integers(1, 64),
            exit_code=st.integers(0, 255),
            error=st.integers(0, 4095),
            survivors=st.integers(0, 2**32 - 1),
            **dict.fromkeys(
                ("total_out", "total_err", "wall_us", "user_us", "sys_us", "maxrss_kib"), st.integers(0, 2**64 - 1)
            ),
            mode=st.integers(0, 2**32 - 1),
        )
    )
    def test_comes_out_as_it_went_in(self, report):
        if report.status not in (Status.REFUSED, Status.FAILED):
            report = report._replace(stage=None)
        assert Exit.decode(encode_exit(report)) == report

    @pytest.mark.parametrize(
        "change",
        [
            {"status": 0},
            {"status": 8},
            {"status": Status.FAILED, "stage": None},
            {"status": Status.REFUSED, "stage": 8},
            {"status": Status.SIGNALED, "signal": 0},
            {"signal": 65},
            {"flags": 32},
            {"exit_code": -1},
            {"exit_code": 256},
            {"error": -1},
            {"error": 4096},
        ],
        ids=str,
    )
    def test_out_of_range_is_refused(self, change):
        with pytest.raises(ProtocolError):
            Exit.decode(encode_exit(Exit(Status.EXITED)._replace(**change)))


class TestConnection:
    @pytest.mark.parametrize("frame", [encode(Type.PONG), encode(Type.EXIT, 1, ENDED), encode(Type.RESET_DONE)])
    def test_begins_with_a_hello(self, frame):
        with pytest.raises(ProtocolError, match="HELLO"):
            list(Connection().receive(frame))

    def test_may_end_before_it_began(self):
        assert list(Connection().receive(encode(Type.FATAL, 0, "öh".encode()))) == [GuestDies("öh")]

    def test_has_one_hello(self):
        with pytest.raises(ProtocolError, match="second"):
            list(connected().receive(GREETING))

    @pytest.mark.parametrize("kind", [kind for kind, bound in TO_CONTROLLER.items() if bound.has_call])
    def test_knows_its_calls(self, kind):
        bound = TO_CONTROLLER[kind]
        with pytest.raises(ProtocolError, match="isn't open"):
            list(connected().receive(encode(kind, 5, bytes(bound.least), min(bound.flags))))

    def test_takes_no_frame_after_an_exit(self):
        connection, call, _ = opened()
        list(connection.receive(encode(Type.EXIT, call.id, ENDED)))
        with pytest.raises(ProtocolError, match="isn't open"):
            list(connection.receive(encode(Type.EXIT, call.id, ENDED)))

    def test_takes_no_answer_to_what_it_did_not_ask(self):
        for frame in (encode(Type.PONG), encode(Type.RESET_DONE)):
            with pytest.raises(ProtocolError, match="answers no"):
                list(connected().receive(frame))

    def test_counts_the_answers_to_its_pings_and_resets(self):
        connection = connected()
        assert connection.ping() == encode(Type.PING)
        assert connection.unanswered_pings == 1
        assert list(connection.receive(encode(Type.PONG))) == []
        assert connection.unanswered_pings == 0
        assert connection.reset() == encode(Type.RESET)
        assert list(connection.receive(encode(Type.RESET_DONE))) == [ResetDone()]

    def test_never_reuses_an_open_calls_id(self):
        connection = connected()
        first, _ = connection.open(TRUE)
        connection._last_id = wire.U32_MAX - 1
        ids = [connection.open(TRUE)[0].id for _ in range(3)]
        assert ids == [wire.U32_MAX, 2, 3]
        assert first.id == 1

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(sorted(TO_CONTROLLER)), st.integers(0, 5), st.integers(0, 3), st.binary(max_size=90)
            ),
            max_size=30,
        )
    )
    def test_survives_any_frames_and_keeps_no_more_than_it_asked_for(self, frames):
        connection = connected()
        calls = [
            connection.open(Request(Kind.RUN, args=(b"a",), flags=flags, output_limit=limit))[0]
            for flags, limit in ((CallFlag(0), 0), (CallFlag.WATCH, 10), (CallFlag(0), 100))
        ]
        calls.append(connection.open(Request(Kind.READ, args=(b"a",), max_bytes=50))[0])
        outputs = 0
        try:
            for kind, flag, call_id, payload in frames:
                for event in connection.receive(encode(kind, call_id, payload, flag)):
                    outputs += isinstance(event, OutputReceived)
        except ProtocolError:
            pass
        for call in calls:
            assert len(call.stdout) <= call.request.output_limit
            assert len(call.stderr) <= call.request.output_limit
        assert len(connection._decoder._buffer) <= HEADER.size + MAX_FRAME


class TestOutput:
    def test_must_be_asked_for(self):
        for request in (TRUE, Request(Kind.PUT, args=(b"a",)), Request(Kind.CHECK, args=(b".",))):
            connection, call, _ = opened(request)
            with pytest.raises(ProtocolError, match="not asked for"):
                list(connection.receive(encode(Type.OUTPUT, call.id, b"x", 1)))

    def test_of_a_file_has_one_stream(self):
        connection, call, _ = opened(Request(Kind.READ, args=(b"a",), max_bytes=10))
        with pytest.raises(ProtocolError, match="not asked for"):
            list(connection.receive(encode(Type.OUTPUT, call.id, b"x", 2)))

    def test_of_a_file_is_no_more_than_was_asked_for(self):
        connection, call, _ = opened(Request(Kind.READ, args=(b"a",), max_bytes=10))
        list(connection.receive(encode(Type.OUTPUT, call.id, b"0123456789", 1)))
        with pytest.raises(ProtocolError, match="more of a file"):
            list(connection.receive(encode(Type.OUTPUT, call.id, b"x", 1)))

    def test_stays_within_its_window(self):
        connection, call, _ = opened(Request(Kind.RUN, args=(b"a",), flags=CallFlag.WATCH))
        full = encode(Type.OUTPUT, call.id, bytes(MAX_FRAME), 1)
        for _ in range(WINDOW // MAX_FRAME):
            assert len(list(connection.receive(full))) == 1
        with pytest.raises(ProtocolError, match="credit"):
            list(connection.receive(encode(Type.OUTPUT, call.id, b"x", 1)))

    @given(st.lists(st.integers(1, MAX_FRAME), max_size=40))
    def test_gets_back_the_credit_of_what_was_taken(self, sizes):
        connection, call, _ = opened(Request(Kind.RUN, args=(b"a",), flags=CallFlag.WATCH))
        granted = taken = 0
        for size in sizes:
            list(connection.receive(encode(Type.OUTPUT, call.id, bytes(size), 1)))
            taken += size
            for frame in Decoder(TO_GUEST).feed(call.taken(size)):
                granted += CREDIT.unpack(frame.payload)[0]
            assert granted <= taken < granted + WINDOW // 4
        list(connection.receive(encode(Type.EXIT, call.id, ENDED)))
        assert call.taken(WINDOW) == b""


class TestKept:
    @given(st.binary(max_size=300), st.integers(0, 200), st.integers(1, 50))
    def test_is_the_head_and_the_tail_of_what_was_written(self, written, limit, piece):
        connection, call, _ = opened(Request(Kind.RUN, args=(b"a",), output_limit=limit))
        keep = Keep(limit)
        for start in range(0, len(written), piece):
            keep.add(written[start : start + piece])
        list(connection.receive(keep.frames(call.id, 1)))
        list(connection.receive(encode(Type.EXIT, call.id, encode_exit(Exit(Status.EXITED, total_out=len(written))))))
        if len(written) <= limit:
            assert (bytes(call.stdout.head), bytes(call.stdout.tail)) == (written, b"")
        else:
            head = limit * 2 // 5
            assert bytes(call.stdout.head) == written[:head]
            assert bytes(call.stdout.tail) == written[len(written) - (limit - head) :]

    @pytest.mark.parametrize(
        "frames",
        [
            [(1, 11)],
            [(1, 6), (1, 5)],
            [(1, 4), (5, 7)],
            [(5, 1)],
            [(1, 5), (5, 5)],
            [(1, 4), (5, 6), (1, 1)],
        ],
        ids=["too much", "too much in two", "tail too long", "no head", "head too long", "head after tail"],
    )
    def test_is_split_by_the_rule(self, frames):
        connection, call, _ = opened(Request(Kind.RUN, args=(b"a",), output_limit=10))
        stream = b"".join(encode(Type.KEPT, call.id, bytes(size), flag) for flag, size in frames)
        with pytest.raises(ProtocolError, match="kept more"):
            list(connection.receive(stream))

    def test_belongs_to_runs(self):
        connection, call, _ = opened(Request(Kind.READ, args=(b"a",), output_limit=10))
        with pytest.raises(ProtocolError, match="KEPT"):
            list(connection.receive(encode(Type.KEPT, call.id, b"x", 1)))

    def test_is_no_more_than_was_written(self):
        connection, call, _ = opened(Request(Kind.RUN, args=(b"a",), output_limit=10))
        list(connection.receive(encode(Type.KEPT, call.id, b"12", 1)))
        with pytest.raises(ProtocolError, match="more output than"):
            list(connection.receive(encode(Type.EXIT, call.id, encode_exit(Exit(Status.EXITED, total_out=1)))))

    def test_of_a_killed_supervisor_stands_without_totals(self):
        connection, call, _ = opened(Request(Kind.RUN, args=(b"a",), output_limit=10))
        list(connection.receive(encode(Type.KEPT, call.id, b"12", 1)))
        killed = encode(Type.EXIT, call.id, encode_exit(Exit(Status.KILLED)))
        assert list(connection.receive(killed)) == [CallEnded(call)]


class TestInput:
    def test_goes_out_with_the_open_in_one_piece(self):
        _, call, sent = opened()
        frames = list(Decoder(TO_GUEST).feed(sent))
        assert [(frame.type, frame.flag, frame.id) for frame in frames] == [
            (Type.OPEN, 0, call.id),
            (Type.INPUT, LAST, call.id),
        ]
        assert frames[1].payload == b"\0/\0/bin/sh\0-c\0true\0"
        assert call.sendable() == b""

    def test_of_a_script_follows_the_body(self):
        request = Request(Kind.RUN, args=(b"/bin/sh",), flags=CallFlag.SCRIPT, script=b"echo")
        _, _, sent = opened(request)
        assert b"".join(frame.payload for frame in Decoder(TO_GUEST).feed(sent)).endswith(b"\0/\0/bin/sh\0echo")

    @given(
        chunks=st.lists(st.binary(max_size=100_000), max_size=8),
        script=st.integers(0, 2 * WINDOW),
        grants=st.lists(st.integers(1, WINDOW), max_size=20),
        lazily=st.booleans(),
    )
    def test_keeps_to_its_credit_and_ends_once(self, chunks, script, grants, lazily):
        request = Request(Kind.RUN, args=(b"a",), flags=CallFlag.SCRIPT | CallFlag.STDIN, script=bytes(script))
        connection, call, sent = opened(request, more_input=True)
        if lazily:
            call.feed_from(iter(chunks))
        else:
            for chunk in chunks:
                call.feed(chunk)
        call.close_input()
        decoder = Decoder(TO_GUEST)
        got, allowed, ended = bytearray(), WINDOW, 0

        def take(data):
            nonlocal ended
            for frame in decoder.feed(data):
                if frame.type == Type.INPUT:
                    assert not ended
                    got.extend(frame.payload)
                    ended += frame.flag
                    assert len(got) <= allowed

        take(sent)
        take(call.sendable())
        while not ended:
            grant = min(grants.pop() if grants else WINDOW, len(got) - (allowed - WINDOW))
            assert grant > 0, "it stopped although it had credit"
            allowed += grant
            assert list(connection.receive(encode(Type.CREDIT, call.id, CREDIT.pack(grant)))) == [InputWanted(call)]
            take(call.sendable())
        assert bytes(got) == b"\0/\0a\0" + bytes(script) + b"".join(chunks)

    def test_is_not_credited_beyond_a_window(self):
        connection, call, _ = opened(TRUE, more_input=True)
        with pytest.raises(ProtocolError, match="window"):
            list(connection.receive(encode(Type.CREDIT, call.id, CREDIT.pack(WINDOW))))

    def test_stops_at_a_cancel(self):
        connection, call, _ = opened(TRUE, more_input=True)
        call.feed(b"more")
        assert connection.cancel(call) == encode(Type.CANCEL, call.id)
        assert connection.cancel(call) == b""
        assert call.sendable() == b""

    def test_with_nul_or_over_its_bound_is_refused(self):
        for request in (
            Request(Kind.RUN, args=(b"a\0b",)),
            Request(Kind.RUN, args=(bytes(wire.BODY_MAX).replace(b"\0", b"a"),)),
            Request(Kind.RUN, args=(b"a",), script=bytes(wire.SCRIPT_MAX + 1)),
            Request(Kind.RUN, args=(b"a",), output_limit=wire.OUTPUT_LIMIT_MAX + 1),
        ):
            connection = connected()
            with pytest.raises(ValueError, match="request"):
                connection.open(request)
            assert connection._calls == {}


TEXT = Path(wire.__file__).with_name("guest").joinpath("frames.h").read_text()
NAMES = {
    "FRAME_MAGIC": wire.MAGIC,
    "FRAME_VERSION": wire.VERSION,
    "FRAME_HEADER": HEADER.size,
    "FRAME_MAX": wire.MAX_FRAME,
    "FRAME_WINDOW": wire.WINDOW,
    "BODY_MAX": wire.BODY_MAX,
    "SCRIPT_MAX": wire.SCRIPT_MAX,
    "OUTPUT_LIMIT_MAX": wire.OUTPUT_LIMIT_MAX,
    "PATH_LEN_MAX": wire.PATH_LEN_MAX,
    "PING_MAX": wire.PING_MAX,
    "FATAL_MAX": wire.FATAL_MAX,
    "MODE_KEEP": wire.MODE_KEEP,
}
ENUMS = {
    "frame_type": ("F_", Type),
    "feature": ("FEATURE_", Feature),
    "call_kind": ("KIND_", Kind),
    "call_flag": ("CALL_", CallFlag),
    "exit_status": ("X_", Status),
    "exit_stage": ("STAGE_", Stage),
    "exit_flag": ("EXIT_", ExitFlag),
}
STRUCTS = {"frame_header": HEADER, "hello": HELLO, "open_request": wire.OPEN, "exit_report": EXIT}


class TestHeader:
    """``frames.h`` is the protocol's home in C; the two must never part."""

    def enum(self, name):
        body = re.search(rf"enum {name} {{(.*?)}};", TEXT, re.DOTALL)
        assert body, name
        return {key: int(value) for key, value in re.findall(r"(\w+) = (\d+)", body[1])}

    def test_has_the_same_constants(self):
        found = dict(re.findall(r"^#define (\w+) (.+)$", TEXT, re.MULTILINE))
        values = {name: eval(text.replace("u", ""), {}) for name, text in found.items()}  # plain arithmetic
        assert values == NAMES

    @pytest.mark.parametrize("name", ENUMS)
    def test_has_the_same_enumerations(self, name):
        prefix, ours = ENUMS[name]
        assert self.enum(name) == {prefix + member.name: member.value for member in ours}

    def test_has_the_same_flags_of_streams_and_input(self):
        assert self.enum("input_flag") == {"INPUT_LAST": LAST}
        assert self.enum("stream") == {"STREAM_OUT": wire.STDOUT, "STREAM_ERR": wire.STDERR, "STREAM_TAIL": wire.TAIL}

    @pytest.mark.parametrize("name", [*STRUCTS, "tree_entry"])
    def test_has_the_same_layouts(self, name):
        from sandbox.tree import ENTRY

        ours = ENTRY if name == "tree_entry" else STRUCTS[name]
        body = re.search(rf"struct {name} {{(.*?)}} __attribute__\(\(packed\)\);", TEXT, re.DOTALL)
        assert body, name
        codes = {"uint8_t": "B", "uint16_t": "H", "uint32_t": "I", "int32_t": "i", "uint64_t": "Q"}
        layout = "<" + "".join(codes[kind] for kind in re.findall(r"(\w+_t) \w+;", body[1]))
        assert layout == ours.format
        assert struct.calcsize(layout) == ours.size
