"""A controller that breaks the rules is told so, and nothing else happens: no crash, no hang, no memory taken."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.guest import driver as d

BODY = b"\0/\0/bin/true\0"


def breaks(guest: d.Guest, data: bytes) -> str:
    """The guest takes ``data`` for a broken rule; what it says."""
    guest.send(data)
    assert guest.wait_gone() == 70
    assert guest.fatal
    return guest.fatal


def header(length: int, kind: int, flag: int = 0, zero: int = 0, call_id: int = 0) -> bytes:
    return d.HEADER.pack(length, kind, flag, zero, call_id)


class TestFrames:
    @pytest.mark.parametrize("kind", [0, 7, 15, 16, 17, 18, 19, 20, 21, 22, 64, 65, 66, 255])
    def test_unknown_type(self, guest, kind):
        assert f"type {kind}" in breaks(guest, header(0, kind))

    @pytest.mark.parametrize("length", [65537, 1 << 20, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
    def test_too_long(self, guest, length):
        assert str(length) in breaks(guest, header(length, d.INPUT, call_id=1))

    def test_zero_is_zero(self, guest):
        breaks(guest, header(0, d.PING, zero=1))

    def test_garbage(self, guest):
        breaks(guest, bytes(range(7, 207)))

    def test_the_other_protocol(self, guest):
        breaks(guest, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")

    @pytest.mark.parametrize("size", [0, 3, 5, 65536])
    def test_credit_of_another_size(self, guest, size):
        breaks(guest, d.frame(d.CREDIT, 1, bytes(size)))

    def test_long_ping(self, guest):
        breaks(guest, d.frame(d.PING, 0, bytes(65)))

    @pytest.mark.parametrize("kind", [d.CANCEL, d.RESET])
    def test_payload_where_none_is(self, guest, kind):
        breaks(guest, d.frame(kind, 0, b"x"))

    def test_a_frame_in_the_smallest_pieces(self, guest):
        for byte in d.frame(d.PING, 0, b"payload"):
            guest.send(bytes([byte]))
        guest.until(lambda: guest.pongs == [b"payload"])

    def test_half_a_frame_at_the_end(self, guest):
        guest.send(d.frame(d.PING, 0, b"payload")[:-1])
        assert guest.close() == 0

    def test_many_frames_at_once(self, guest):
        guest.send(d.frame(d.PING, 0, b"p" * 64) * 20_000)
        guest.until(lambda: len(guest.pongs) == 20_000)


class TestOpen:
    @pytest.mark.parametrize("size", [0, 39, 41, 65536])
    def test_of_another_size(self, guest, size):
        breaks(guest, d.frame(d.OPEN, 1, bytes(size)))

    @pytest.mark.parametrize(
        "fields",
        [
            {"kind": 0},
            {"kind": 6},
            {"kind": 255},
            {"body": 2 * 1024 * 1024 + 1},
            {"body": 0xFFFFFFFF},
            {"flags": 8, "script": 16 * 1024 * 1024 + 1},
            {"flags": 8, "script": 0xFFFFFFFF},
            {"script": 1},
            {"limit": 64 * 1024 * 1024 + 1},
            {"limit": 0xFFFFFFFF},
            {"argc": 99},
            {"argc": 0xFFFFFFFF},
            {"argc": 0x80000000},
            {"envc": 98, "argc": 1},
            {"envc": 0xFFFFFFFF},
            {"argc": 60, "envc": 60},
            {"argc": 0xFFFFFFFF, "envc": 2},
            {"argc": 0},
            {"kind": 2, "argc": 0},
            {"kind": 2, "argc": 2},
            {"kind": 4, "argc": 0},
            {"body": 0},
            {"body": 2},
            {"flags": 16},
            {"flags": 255},
            {"kind": 2, "flags": 8, "script": 5},
        ],
    )
    def test_that_is_impossible(self, guest, fields):
        breaks(guest, d.frame(d.OPEN, 1, d.fixed(**{"body": 100, **fields})))

    def test_of_an_id_that_is_open(self, guest):
        call = guest.sh("sleep 60")
        assert "twice" in breaks(guest, d.frame(d.OPEN, call.id, d.fixed(body=len(BODY))))

    def test_of_an_id_that_is_closed(self, guest):
        call = guest.run("echo first; sleep 60 & exit")
        guest._next_id = call.id - 1
        assert guest.run("echo second").out == b"second\n"

    def test_without_an_id(self, guest):
        breaks(guest, d.frame(d.OPEN, 0, d.fixed(body=len(BODY))))

    @pytest.mark.parametrize("body", [b"x" * 11, b"\0" * 10 + b"x", b"\0/\0true\0more\0", b"\0" * 11, b"\0/\0", b""])
    @pytest.mark.parametrize("kind", [d.RUN, d.READ, d.PUT])
    def test_whose_body_is_not_what_it_says(self, guest, body, kind):
        call = guest.raw_call(kind, d.fixed(kind, body=max(len(body), 11)))
        guest.send_input(call, body, d.LAST)
        assert (guest.wait(call).end.status, call.end.stage) == (d.REFUSED, d.BAD_INPUT)

    def test_whose_script_ends_early(self, guest):
        call = guest.raw_call(d.RUN, d.fixed(d.RUN, d.SCRIPT, body=len(BODY), script=100))
        guest.send_input(call, BODY + b"echo", d.LAST)
        assert (guest.wait(call).end.status, call.end.stage) == (d.REFUSED, d.BAD_INPUT)

    def test_whose_timeouts_are_the_largest(self, guest):
        call = guest.raw_call(d.RUN, d.fixed(body=len(BODY), timeout_ms=0xFFFFFFFF, grace_ms=0xFFFFFFFF, limit=5))
        guest.send_input(call, BODY, d.LAST)
        assert guest.wait(call).end.outcome == (d.EXITED, 0, 0)


class TestWindow:
    def test_input_beyond_it(self, guest):
        call = guest.sh("sleep 60", more=True)
        guest.idle(0.1)
        for _ in range(6):
            guest.send_input(call, bytes(65536))
        assert "window" in breaks(guest, b"")

    def test_credit_without_measure(self, guest):
        call = guest.sh("head -c 1000000 /dev/zero", flags=d.WATCH, credit=False)
        call.granted = 1 << 60
        for _ in range(200_000):
            guest.send(d.frame(d.CREDIT, call.id, b"\xff\xff\xff\xff"))
        guest.wait(call)
        assert len(call.data) == 1_000_000

    def test_frames_for_no_call(self, guest):
        for kind, payload in ((d.INPUT, b"x"), (d.CREDIT, b"\1\0\0\0"), (d.CANCEL, b"")):
            for call_id in (1, 77, 0xFFFFFFFF):
                guest.send(d.frame(kind, call_id, payload))
        guest.ping()

    @pytest.mark.parametrize("kind", [d.INPUT, d.CANCEL])
    def test_frames_without_an_id(self, guest, kind):
        breaks(guest, d.frame(kind, 0))

    def test_cancels_without_measure(self, guest):
        call = guest.sh("trap '' TERM; sleep 60; sleep 60", grace=0.3)
        for _ in range(100_000):
            guest.send(d.frame(d.CANCEL, call.id))
        assert guest.wait(call).end.status == d.CANCELLED


SMALL = st.integers(0, 5)
OPENS = st.builds(
    d.fixed,
    kind=st.integers(0, 6),
    flags=st.integers(0, 17),
    argc=SMALL,
    envc=SMALL,
    body=st.sampled_from([0, 4, 13, 40, 70_000]),
    script=st.sampled_from([0, 0, 7, 100_000]),
    timeout_ms=st.sampled_from([0, 1, 50]),
    grace_ms=st.sampled_from([0, 20]),
    limit=st.sampled_from([0, 1, 1000]),
    max_bytes=st.integers(0, 1000),
)
PAYLOADS = st.one_of(
    st.binary(max_size=80),
    OPENS,
    st.just(BODY),
    st.just(b"\0/\0/bin/cat\0"),
    st.binary(max_size=300).map(lambda b: b * 200),
    st.builds(struct.Struct("<I").pack, st.integers(0, 2**32 - 1)),
)
FRAMES = st.builds(
    d.frame,
    st.one_of(st.integers(1, 6), st.sampled_from([1, 2, 2, 2, 3, 4])),
    st.integers(0, 3),
    PAYLOADS,
    st.integers(0, 1),
)
WELL_FORMED = st.one_of(
    st.builds(lambda i, o: d.frame(d.OPEN, i, o), st.integers(1, 3), OPENS),
    st.builds(lambda i, p, f: d.frame(d.INPUT, i, p, f), st.integers(1, 3), PAYLOADS, st.integers(0, 1)),
    st.builds(lambda i: d.frame(d.CREDIT, i, b"\0\0\1\0"), st.integers(1, 3)),
    st.builds(lambda i: d.frame(d.CANCEL, i), st.integers(1, 3)),
    st.just(d.frame(d.PING, 0, b"?")),
    st.just(d.frame(d.RESET)),
)


class TestAnything:
    """The sanitized build is what this is for: a report fails the test."""

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(frames=st.lists(st.one_of(WELL_FORMED, FRAMES), max_size=25), junk=st.binary(max_size=30))
    def test_any_frames_in_any_order(self, stage, reports, frames, junk):
        guest = d.Guest(stage)
        try:
            assert guest.feed_to_the_end(b"".join(frames) + junk) in (0, 70)
        finally:
            guest.kill()
