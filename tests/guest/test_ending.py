"""Timeouts, cancels and resets: nothing of the call survives, and nothing else is touched."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.guest import driver as d

CLINGING = {
    "plain": "sleep 4711",
    "session": "setsid sleep 4711 & sleep 4711",
    "double fork": "/mnt/probe leave 4711; sleep 4711",
    "ignores SIGTERM": "trap '' TERM; sleep 4711; sleep 4711",
    "stopped": "sleep 4711 & kill -STOP $!; kill -STOP $$",
    "stopped, deaf": "trap '' TERM; (sleep 4711; sleep 4711) & kill -STOP $!; kill -STOP $$; sleep 4711",
    "all of it": "setsid sleep 4711 & (setsid sh -c 'trap \"\" TERM; sleep 4711; sleep 4711' &) ;"
    " /mnt/probe leave 4711; trap '' TERM; sleep 4711; sleep 4711",
    "a subreaper of its own": "/mnt/probe adopt 4711",
}


def count(guest: d.Guest, text: str) -> int:
    """Processes inside with this in their command line, counted from the host."""
    call = guest.run(
        f"cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | tr -d '\\n' | grep -o '[{text[0]}]{text[1:]}' | wc -l"
    )
    return int(call.out)


@pytest.mark.parametrize("command", CLINGING.values(), ids=CLINGING.keys())
@pytest.mark.parametrize("user", ["", "agent"])
class TestNothingSurvives:
    def test_a_timeout(self, guest, command, user):
        guest.run("sleep 815 & exit", user=user)
        innocent = guest.sh("sleep 0.7; echo unharmed", user=user)
        call = guest.run(command, user=user, timeout=0.3)
        assert call.end.status == d.TIMED_OUT and call.end.survivors == 0
        assert call.end.flags & ~d.OOM_UNKNOWN == 0, "a gentler step would have done"
        assert count(guest, "sleep 4711") == 0
        assert count(guest, "sleep 815") == 1
        assert guest.wait(innocent).out == b"unharmed\n"
        assert innocent.end.flags & ~d.OOM_UNKNOWN == 0

    def test_a_cancel(self, guest, command, user):
        call = guest.sh(command, user=user)
        guest.idle(0.2)
        guest.cancel(call)
        assert guest.wait(call).end.status == d.CANCELLED
        assert count(guest, "sleep 4711") == 0


class TestTimeout:
    def test_what_was_written_is_kept(self, guest):
        call = guest.run("echo before; echo x >&2; sleep 60", timeout=0.2)
        assert (call.end.status, call.out, call.err) == (d.TIMED_OUT, b"before\n", b"x\n")

    def test_sigterm_comes_first_and_the_grace_after_it(self, guest):
        call = guest.run("trap 'echo cleaned; exit 5' TERM; while :; do sleep 0.02; done", timeout=0.2, grace=5)
        assert (call.end.status, call.out, call.end.exit_code) == (d.TIMED_OUT, b"cleaned\n", 5)
        assert call.end.wall_us < 2_000_000

    def test_no_longer_than_timeout_and_grace(self, guest):
        began = time.monotonic()
        call = guest.run("trap '' TERM; while :; do :; done", timeout=0.3, grace=0.4)
        assert call.end.status == d.TIMED_OUT and call.end.signal == 9
        assert 0.65 < time.monotonic() - began < 1.5

    def test_a_command_that_obeys_needs_no_grace(self, guest):
        began = time.monotonic()
        guest.run("sleep 60", timeout=0.2, grace=30)
        assert time.monotonic() - began < 2

    def test_background_children_of_the_timed_out_call_end_too(self, guest):
        guest.run("sleep 4711 & sleep 4711", timeout=0.2)
        assert count(guest, "sleep 4711") == 0

    def test_children_of_a_call_that_ended_are_not_the_timeouts(self, guest):
        guest.run("sleep 815 &", timeout=0.4)
        guest.idle(1.0)
        assert count(guest, "sleep 815") == 1

    def test_of_the_shortest(self, guest):
        for _ in range(20):
            assert guest.run("sleep 60", timeout=0.001, grace=0).end.status == d.TIMED_OUT

    def test_while_output_floods(self, guest):
        call = guest.run("trap '' TERM; cat /dev/zero", timeout=0.5, limit=100)
        assert call.end.status == d.TIMED_OUT and call.end.total_out > 100

    def test_many_at_once(self, guest):
        calls = [
            guest.sh("trap '' TERM; setsid sleep 4711 & sleep 4711; sleep 4711", timeout=0.3, grace=0.1)
            for _ in range(20)
        ]
        guest.wait(*calls)
        assert {call.end.status for call in calls} == {d.TIMED_OUT}
        assert {call.end.survivors for call in calls} == {0}
        assert count(guest, "sleep 4711") == 0

    def test_a_controller_that_does_not_read_delays_no_kill(self, guest):
        """The supervisor needs nobody's leave to kill, whatever PID 1 has no room for."""
        flood = guest.sh("head -c 5000000 /dev/zero", flags=d.WATCH, limit=1 << 20)
        call = guest.sh("trap '' TERM; sleep 4711; sleep 4711", timeout=0.3, grace=0.1)
        guest.send(d.frame(d.CREDIT, flood.id, b"\0\0\0\x10"))
        flood.granted += 1 << 28
        time.sleep(0.2)
        assert host_count(guest, b"4711") > 0
        deadline = time.monotonic() + 2
        while host_count(guest, b"4711") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert host_count(guest, b"4711") == 0
        guest.wait(call, flood)
        assert (call.end.status, flood.end.status) == (d.TIMED_OUT, d.EXITED)

    def test_an_end_that_a_slow_controller_reads_late_is_no_timeout(self, guest):
        """All was done in time; that what was kept waits in the pipes for a blocked controller is nobody's timeout."""
        call = guest.sh("head -c 3000000 /dev/zero; exit 3", timeout=0.6, grace=0, limit=1 << 22)
        time.sleep(5)
        assert guest.wait(call).end.outcome == (d.EXITED, 0, 3)
        assert len(call.out) == 3_000_000


def host_count(guest: d.Guest, text: bytes) -> int:
    """The same, without asking the guest."""
    namespace = Path(f"/proc/{guest.pid}/ns/pid").readlink()
    found = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found += (process / "ns/pid").readlink() == namespace and text in (process / "cmdline").read_bytes()
        except OSError:
            continue
    return found


class TestCancel:
    def test_before_the_body(self, guest):
        call = guest.raw_call(d.RUN, d.fixed(body=100))
        guest.idle(0.05)
        guest.cancel(call)
        assert guest.wait(call).end.status == d.CANCELLED

    @pytest.mark.parametrize("kind", [d.RUN, d.READ, d.GET, d.PUT, d.CHECK])
    def test_in_the_same_breath(self, guest, kind):
        for _ in range(10):
            call = guest.raw_call(kind, d.fixed(kind, body=100))
            guest.cancel(call)
            assert guest.wait(call).end.status == d.CANCELLED
        assert guest.run("echo on").out == b"on\n"

    def test_in_the_midst_of_a_script(self, guest):
        body = b"\0/\0/bin/sh\0"
        call = guest.raw_call(d.RUN, d.fixed(d.RUN, d.SCRIPT, body=len(body), script=1_000_000))
        guest.send_input(call, body + bytes(60_000))
        guest.idle(0.1)
        guest.cancel(call)
        assert guest.wait(call).end.status == d.CANCELLED

    def test_while_stdin_waits_behind_it(self, guest):
        call = guest.sh("sleep 4711", more=True)
        guest.feed(call, bytes(1_000_000))
        guest.idle(0.2)
        guest.cancel(call)
        assert guest.wait(call).end.status == d.CANCELLED
        assert count(guest, "sleep 4711") == 0

    def test_twice_and_late(self, guest):
        call = guest.sh("trap '' TERM; sleep 4711; sleep 4711", grace=0.3)
        guest.idle(0.1)
        for _ in range(5):
            guest.cancel(call)
        assert guest.wait(call).end.status == d.CANCELLED
        guest.cancel(call)
        guest.ping()

    def test_after_the_shell_and_its_watcher_ends_its_children_too(self, guest):
        call = guest.sh("sleep 4711 & head -c 300000 /dev/zero", flags=d.WATCH, credit=False)
        guest.until(lambda: call.taken == d.WINDOW)
        guest.idle(0.3)
        guest.cancel(call)
        guest.wait(call)
        assert count(guest, "sleep 4711") == 0


class TestReset:
    def test_everything_dies_and_open_calls_are_answered(self, guest):
        guest.run("sleep 815 & /mnt/probe leave 815", user="agent")
        calls = [guest.sh("trap '' TERM; sleep 4711; sleep 4711", user=user) for user in ("", "agent", "other")]
        reading = guest.open(["/dev/zero"], kind=d.READ)
        guest.reset()
        assert {call.end.status for call in calls} == {d.CANCELLED}
        assert reading.report
        assert guest.run("ls -d /proc/[0-9]* | wc -l").out.strip() in (b"4", b"5")
        assert count(guest, "sleep") == 0

    def test_of_nothing(self, guest):
        guest.reset()
        guest.reset()
        assert guest.run("echo on").out == b"on\n"

    def test_no_zombie_is_left(self, guest):
        for _ in range(10):
            guest.run("(sleep 0.01 &); true & sleep 815 &", user="agent")
        guest.reset()
        states = guest.run("cat /proc/[0-9]*/stat | cut -d' ' -f3 | sort | uniq -c | grep -c Z").out
        assert states.strip() == b"0"


class TestManyCalls:
    def test_more_than_the_table_holds_are_refused(self, guest):
        calls = [guest.open(["sleep", "4"]) for _ in range(530)]
        guest.wait(*calls, timeout=60)
        refused = [call for call in calls if call.end.status == d.REFUSED]
        assert len(refused) == 18 and {(call.end.stage, call.end.error) for call in refused} == {(d.PROCESS, 11)}
        assert {call.end.status for call in calls} == {d.EXITED, d.REFUSED}
        assert guest.run("echo on").out == b"on\n"

    def test_lingering_calls_give_their_places_back(self, guest):
        for _ in range(3):
            calls = [guest.sh("sleep 0.3 & exit") for _ in range(200)]
            guest.wait(*calls)
            guest.idle(0.6)
        assert guest.run("echo on").out == b"on\n"
