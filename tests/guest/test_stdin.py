"""A command's stdin: streamed, bounded, closed at its end."""

from __future__ import annotations

import pytest

from tests.guest import driver as d


class TestStdin:
    @pytest.mark.parametrize("size", [0, 1, 65536, 262144, 262145, 3_000_000])
    def test_every_byte_and_then_the_end(self, guest, size):
        data = bytes(range(256)) * (size // 256 + 1)
        assert guest.do(["cat"], stdin=data[:size], limit=1 << 24).out == data[:size]

    def test_it_comes_while_the_command_runs(self, guest):
        call = guest.open(["cat"], more=True, flags=d.WATCH)
        for piece in (b"one ", b"two ", b"three"):
            guest.feed(call, piece)
            guest.until(lambda piece=piece: call.data.endswith(piece))
        guest.feed(call, b"", last=True)
        assert guest.wait(call).out == b"one two three"

    def test_a_command_that_does_not_read_it(self, guest):
        assert guest.run("exit 4", stdin=bytes(2_000_000)).end.outcome == (d.EXITED, 0, 4)

    def test_a_command_that_does_not_read_it_holds_no_more_than_a_window(self, guest):
        call = guest.sh("sleep 0.7; wc -c", more=True)
        guest.feed(call, bytes(2_000_000))
        guest.idle(0.4)
        assert call.window == 0 and 2_000_000 - len(call.pending) < 2 * d.WINDOW
        guest.feed(call, b"", last=True)
        assert guest.wait(call).out.strip() == b"2000000"

    def test_a_command_that_closes_it_takes_the_rest_as_read(self, guest):
        call = guest.sh("exec <&-; sleep 0.3; echo done", stdin=bytes(1_500_000))
        assert guest.wait(call).out == b"done\n"

    def test_a_background_child_sees_its_end(self, guest):
        call = guest.run("exec 3<&0; (cat <&3 >/dev/null; echo ended >/tmp/ended) & exit 0", more=True)
        assert call.end.flags & d.BACKGROUND
        guest.idle(0.3)
        assert guest.run("cat /tmp/ended").out == b"ended\n"

    def test_input_for_a_call_that_has_ended_is_dropped(self, guest):
        call = guest.run("exit 0", more=True)
        guest.send(d.frame(d.INPUT, call.id, b"late"))
        guest.send(d.frame(d.INPUT, call.id, b"", d.LAST))
        guest.send(d.frame(d.CREDIT, call.id, b"\1\0\0\0"))
        guest.send(d.frame(d.CANCEL, call.id))
        guest.ping()

    def test_input_after_the_last_is_dropped(self, guest):
        call = guest.open(["cat"], stdin=b"all")
        guest.send(d.frame(d.INPUT, call.id, b"more"))
        guest.send(d.frame(d.INPUT, call.id, b"", d.LAST))
        assert guest.wait(call).out == b"all"

    def test_a_whole_window_both_ways_with_a_slow_watcher(self, guest):
        """Credit for input that finds its packets' pair full must be given later, not forgotten."""
        data = bytes(range(251)) * 12_000
        call = guest.open(["cat"], more=True, flags=d.WATCH, credit=False, limit=10)
        guest.feed(call, data, last=True)
        while not call.report:
            guest.idle(0.005)
            guest.grant(call, 150_000)
        assert call.data == data

    def test_tiny_pieces_do_not_make_pid_one_grow(self, guest):
        """A packet in PID 1's queue costs more than its bytes: ten thousand of one byte each must not."""
        call = guest.sh("sleep 1; wc -c", more=True)
        guest.ping()
        before = guest.memory()
        for _ in range(10_000):
            guest.send_input(call, b"x")
        for _ in range(100_000):
            guest.send_input(call, b"")
        guest.ping()
        assert guest.memory() - before < 600
        guest.feed(call, b"", last=True)
        assert guest.wait(call).out.strip() == b"10000"
