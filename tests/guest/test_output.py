"""What is kept of a command's output, what is sent while it runs, and how the two are bounded."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.guest import driver as d

LIMITS = (0, 1, 2, 5, 1000)


def numbered(size: int) -> bytes:
    """Bytes whose place can be told from themselves."""
    return (b"".join(b"%07d " % n for n in range(size // 8 + 1)))[:size]


def split(data: bytes, limit: int) -> tuple[bytes, bytes]:
    """The rule of docs/protocol.md."""
    if len(data) <= limit:
        return data, b""
    head = limit * 2 // 5
    return data[:head], data[len(data) - (limit - head) :]


def assert_kept(call: d.Call, stream: int, data: bytes) -> None:
    head, tail = split(data, call.limit)
    assert bytes(call.kept[stream]) == head
    assert bytes(call.kept[stream | d.TAIL]) == tail
    assert (call.end.total_out if stream == d.OUT else call.end.total_err) == len(data)


class TestKept:
    @pytest.mark.parametrize("limit", LIMITS)
    @pytest.mark.parametrize("over", [-1, 0, 1, 17])
    def test_just_around_the_limit(self, guest, limit, over):
        data = numbered(max(0, limit + over))
        call = guest.do(["cat"], stdin=data, limit=limit)
        assert_kept(call, d.OUT, data)

    @pytest.mark.parametrize("limit", [*LIMITS, 65536, 300_000])
    def test_far_over_the_limit(self, guest, limit):
        data = numbered(1_000_003)
        call = guest.do(["cat"], stdin=data, limit=limit)
        assert_kept(call, d.OUT, data)

    def test_each_stream_has_its_own_limit(self, guest):
        call = guest.run("cat; head -c 5000 /dev/zero >&2", stdin=numbered(300), limit=1000)
        assert_kept(call, d.OUT, numbered(300))
        assert_kept(call, d.ERR, bytes(5000))

    def test_a_flood_is_counted_exactly(self, guest):
        call = guest.run("head -c 300000000 /dev/zero", limit=100)
        assert call.end.total_out == 300_000_000 and len(call.out) == 100

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        limit=st.one_of(st.sampled_from(LIMITS), st.integers(0, 200_000)),
        pieces=st.lists(st.integers(0, 70_000), max_size=6),
    )
    @example(limit=5, pieces=[3, 3])
    def test_any_size_in_any_pieces(self, guest, limit, pieces):
        data = numbered(sum(pieces))
        call = guest.open(["cat"], more=True, limit=limit)
        at = 0
        for size in pieces:
            guest.feed(call, data[at : at + size])
            at += size
            if size % 3 == 0:
                guest.ping()
        guest.feed(call, b"", last=True)
        assert_kept(guest.wait(call), d.OUT, data)

    def test_what_a_packet_pipe_gives(self, guest):
        call = guest.do(["/mnt/probe", "packets"])
        assert (call.out, call.end.total_out) == (b"p" * 1000, 1000)


class TestMerged:
    def test_order_is_that_of_the_writes(self, guest):
        script = "; ".join(f"echo {i}{' >&2' if i % 3 else ''}" for i in range(200))
        call = guest.run(script, flags=d.MERGE)
        assert call.out == b"".join(b"%d\n" % i for i in range(200))
        assert call.err == b"" and call.end.total_err == 0

    def test_one_limit_for_both(self, guest):
        call = guest.run("echo 1234; echo 5678 >&2", flags=d.MERGE, limit=5)
        assert_kept(call, d.OUT, b"1234\n5678\n")


class TestWatched:
    def test_output_comes_while_the_command_runs(self, guest):
        call = guest.sh("echo first; read x; echo $x", more=True, flags=d.WATCH)
        guest.until(lambda: call.data == b"first\n")
        guest.feed(call, b"second\n", last=True)
        assert guest.wait(call).data == b"first\nsecond\n" == call.out

    def test_every_byte_of_both_streams(self, guest):
        call = guest.run("head -c 700000 /dev/zero | tee /dev/stderr", flags=d.WATCH, limit=10)
        assert len(call.data) == len(call.live[d.ERR]) == 700_000
        assert (call.end.total_out, call.end.total_err) == (700_000, 700_000)

    def test_nothing_is_sent_unless_it_is_watched(self, guest):
        assert guest.run("echo x").data == b""

    def test_a_watcher_that_stops_stops_its_command_and_nobody_else(self, guest):
        stalled = guest.sh("head -c 3000000 /dev/zero; echo end >&2", flags=d.WATCH, credit=False)
        guest.until(lambda: stalled.taken == d.WINDOW)
        for _ in range(3):
            assert guest.run("echo other").out == b"other\n"
        lively = guest.run("head -c 2000000 /dev/zero", flags=d.WATCH)
        assert len(lively.data) == 2_000_000
        assert stalled.report is None and stalled.taken == d.WINDOW
        stalled.auto_credit = True
        guest.grant(stalled, d.WINDOW)
        assert guest.wait(stalled).end.total_out == 3_000_000 == len(stalled.data)

    def test_credit_in_small_pieces(self, guest):
        call = guest.sh("head -c 263000 /dev/zero", flags=d.WATCH, credit=False)
        guest.until(lambda: call.taken == d.WINDOW)
        while not call.report:
            guest.grant(call, 100)
            guest.until(lambda: call.taken == call.granted or call.report)
        assert len(call.data) == 263_000

    def test_a_watcher_that_stops_does_not_stop_the_clock(self, guest):
        call = guest.sh("head -c 3000000 /dev/zero; sleep 60", flags=d.WATCH, credit=False, timeout=0.5)
        assert guest.wait(call).end.status == d.TIMED_OUT

    def test_a_command_that_ended_in_time_is_not_timed_out_by_its_watcher(self, guest):
        """The backstop of PID 1 is for commands that run on, not for callers that read slowly."""
        call = guest.sh("head -c 300000 /dev/zero; exit 7", flags=d.WATCH, credit=False, timeout=0.5, grace=0)
        guest.idle(4.5)
        assert call.report is None
        guest.grant(call, d.WINDOW)
        assert guest.wait(call).end.outcome == (d.EXITED, 0, 7)
        assert len(call.data) == 300_000

    def test_a_cancel_ends_a_call_whose_watcher_stalls(self, guest):
        call = guest.sh("head -c 300000 /dev/zero", flags=d.WATCH, credit=False)
        guest.until(lambda: call.taken == d.WINDOW)
        guest.idle(0.2)
        guest.cancel(call)
        assert guest.wait(call).end.status in (d.CANCELLED, d.EXITED)


class TestShellGone:
    def test_a_call_ends_with_its_shell_and_not_with_its_pipe(self, guest):
        call = guest.run("sleep 60 & echo started")
        assert call.out == b"started\n" and call.end.flags & d.BACKGROUND
        assert call.end.wall_us < 5_000_000

    def test_what_was_written_before_the_end_is_there(self, guest):
        for _ in range(20):
            assert len(guest.run("head -c 60000 /dev/zero & wait; exit 1").out) == 60_000

    def test_background_writers_get_no_sigpipe(self, guest):
        call = guest.run(
            "(trap 'echo gone >/tmp/sigpipe' PIPE; sleep 0.3; head -c 200000 /dev/zero && echo wrote >/tmp/wrote) &"
            "echo on"
        )
        assert call.out == b"on\n" and call.end.flags & d.BACKGROUND
        guest.idle(0.8)
        assert guest.run("cat /tmp/wrote; cat /tmp/sigpipe").out == b"wrote\n"

    def test_no_background_where_there_is_none(self, guest):
        for command in ("true", "(true)", "true | true", "(sleep 0.01 &); sleep 0.1"):
            assert guest.run(command).end.flags & d.BACKGROUND == 0

    def test_output_that_a_child_steals_from_the_pipe_hangs_nothing(self, guest):
        """The pipe belongs to the call's user, so a child may open its read end too; what the shell left in it is then
        gone before the supervisor comes to it."""
        call = guest.sh(
            "head -c 200000 /dev/zero; (sleep 0.4; exec /mnt/probe steal) & head -c 100000 /dev/zero; exit 5",
            flags=d.WATCH,
            credit=False,
            user="agent",
        )
        guest.idle(1.0)
        guest.grant(call, 10 * d.WINDOW)
        assert guest.wait(call, timeout=5).end.outcome == (d.EXITED, 0, 5)
