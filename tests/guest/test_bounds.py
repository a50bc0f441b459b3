"""Bounded places: a full process table, a full memory. Each test has a control group of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.guest import driver as d
from tests.guest.cgroups import Group, group
from tests.guest.test_attacks import assert_serves
from tests.guest.test_ending import count, host_count

MIB = 1 << 20


@pytest.fixture
def bounded() -> Iterator[Callable[..., Group]]:
    """Makes groups, which end with the test."""
    with ExitStack() as stack:

        def make(controller: str, **limits: int) -> Group:
            found = stack.enter_context(
                group(controller, {name.replace("__", "."): str(value) for name, value in limits.items()})
            )
            if isinstance(found, str):
                pytest.skip(found)
            return found

        yield make


@pytest.fixture
def crowded(bounded, start) -> Callable[..., d.Guest]:
    """Starts guests with few processes to be had."""

    def begin(most: int = 64, *args: str, **options) -> d.Guest:
        guest: d.Guest = start(*args, enter=bounded("pids", pids__max=most).enter, **options)
        return guest

    return begin


BOMBS = {
    "sessions": "/mnt/probe bomb",
    "behind a shell": "trap '' TERM; /mnt/probe bomb & while :; do :; done",
    "of shells": "printf '#!/bin/sh\\nwhile :; do setsid /tmp/b 2>/dev/null & done\\n' >/tmp/b; chmod 755 /tmp/b;"
    " trap '' TERM; /tmp/b & while :; do :; done",
}


class TestForkBomb:
    @pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
    @pytest.mark.parametrize("user", ["", "agent"])
    def test_ends_with_its_call(self, crowded, bomb, user):
        guest = crowded()
        other = "agent" if user == "" else ""
        innocent = guest.sh("echo ready; read x; echo unharmed", user=other, more=True, flags=d.WATCH)
        guest.until(lambda: innocent.data == b"ready\n")
        call = guest.run(bomb, user=user, timeout=0.5, grace=0.1)
        assert (call.end.status, call.end.survivors) == (d.TIMED_OUT, 0)
        assert call.end.wall_us < 8_000_000
        guest.feed(innocent, b"\n", last=True)
        assert guest.wait(innocent).out == b"ready\nunharmed\n"
        assert innocent.end.flags & d.COLLATERAL == 0, "another user's call was out of the kill's reach"
        assert_serves(guest)
        assert count(guest, "probe bomb") == 0

    def test_takes_its_users_other_calls_along_and_says_so(self, crowded):
        guest = crowded()
        same = guest.sh("sleep 60", user="agent")
        guest.idle(0.1)
        call = guest.run("/mnt/probe bomb", user="agent", timeout=0.5, grace=0.1)
        assert call.end.status == d.TIMED_OUT
        if call.end.flags & d.SWEPT:
            assert guest.wait(same).end.flags & d.COLLATERAL

    def test_a_controller_that_does_not_read_delays_its_end_by_the_backstop_at_most(self, crowded):
        """PID 1 takes no packet for which it has no room, the supervisor's plea for a wider kill among them."""
        guest = crowded(200)
        flood = guest.sh("head -c 3000000 /dev/zero", flags=d.WATCH)
        guest.send(d.frame(d.CREDIT, flood.id, b"\0\0\0\1"))
        flood.granted += 1 << 24
        call = guest.sh("/mnt/probe bomb", user="agent", timeout=0.5, grace=0.1)
        time.sleep(1)
        deadline = time.monotonic() + 8
        while host_count(guest, b"probe\0bomb") and time.monotonic() < deadline:
            time.sleep(0.1)
        assert host_count(guest, b"probe\0bomb") == 0
        guest.wait(call, flood)
        assert (call.end.status, flood.end.status) == (d.TIMED_OUT, d.EXITED)

    def test_where_the_guest_is_root_everything_goes_and_is_answered(self, crowded):
        guest = crowded(mapped_ids=60_000)
        other = guest.sh("sleep 60", user="agent")
        guest.idle(0.1)
        call = guest.run(BOMBS["sessions"], timeout=0.5, grace=0.1)
        assert (call.end.status, call.end.survivors) == (d.TIMED_OUT, 0)
        if call.end.flags & d.SWEPT:
            assert guest.wait(other).end.flags & d.COLLATERAL
        assert guest.run("echo on").out == b"on\n"

    def test_a_reset_ends_one_whose_shell_is_gone(self, crowded):
        """Its processes are background children then, by policy; calls say how many there are."""
        guest = crowded()
        guest.run("/mnt/probe bomb & sleep 0.3", user="agent")
        refused = guest.run("echo ran")
        if refused.end.status == d.REFUSED:
            assert (refused.end.stage, refused.end.error) == (d.PROCESS, 11)
            assert 40 < refused.end.exit_code <= 64
        guest.reset()
        assert_serves(guest)

    def test_sixteen_processes_are_enough(self, crowded):
        guest = crowded(16)
        assert guest.run("echo a | cat | cat").out == b"a\n"
        assert guest.run("/mnt/probe bomb", timeout=0.3, grace=0.1).end.status == d.TIMED_OUT
        assert_serves(guest)


class TestFullTable:
    def test_calls_are_refused_and_say_how_many_are_there(self, crowded):
        guest = crowded(32)
        guest.run("i=0; while [ $i -lt 40 ]; do sleep 815 & i=$((i+1)); done", user="agent")
        for _ in range(3):
            call = guest.do(["/bin/true"])
            assert (call.end.status, call.end.stage, call.end.error) == (d.REFUSED, d.PROCESS, 11)
            assert 20 < call.end.exit_code <= 32
        guest.ping()
        guest.reset()
        assert_serves(guest)

    def test_a_call_that_finds_room_for_its_supervisor_only(self, crowded):
        guest = crowded(8)
        guest.run("i=0; while [ $i -lt 4 ]; do sleep 815 & i=$((i+1)); done", user="agent")
        seen = set()
        for _ in range(3):
            seen.add(guest.run("echo on").end.status)
        assert seen <= {d.REFUSED, d.EXITED}
        guest.reset()
        assert_serves(guest)


@pytest.fixture
def small(bounded, start, stage) -> Callable[..., d.Guest]:
    """Starts guests with little memory; a sanitized one needs some for itself."""

    def begin(mebibytes: int = 64, *args: str, **options) -> d.Guest:
        size = (mebibytes + (100 if stage.sanitized else 0)) * MIB
        place = bounded("memory", memory__limit_in_bytes=size, memory__memsw__limit_in_bytes=size)
        if place.unified:
            (place.path / "memory.swap.max").write_text("0")
        guest: d.Guest = start(*args, enter=place.enter, mounts=place.mounts, **options)
        return guest

    return begin


class TestFullMemory:
    def test_a_hog_is_told_and_the_next_call_works(self, small):
        guest = small()
        assert guest.features & 2
        call = guest.do(["/mnt/probe", "hog", "500"])
        assert (call.end.status, call.end.signal) == (d.SIGNALED, 9) and call.end.flags & d.OOM
        assert guest.run("echo on").end.flags & d.OOM == 0

    @pytest.mark.parametrize("user", ["", "agent"])
    def test_a_hog_behind_a_shell(self, small, user):
        guest = small()
        for command in (
            "/mnt/probe hog 500; echo $?",
            "/mnt/probe hog 500",
            "exec /mnt/probe hog 500",
            "(/mnt/probe hog 500) ; exit 0",
        ):
            call = guest.run(command, user=user)
            assert call.end.flags & d.OOM, command
        assert_serves(guest)

    def test_only_the_hogs_call_is_blamed(self, small):
        guest = small()
        innocent = guest.sh("sleep 1; echo unharmed", user="agent")
        call = guest.run("exec /mnt/probe hog 500")
        assert call.end.flags & d.OOM
        assert guest.wait(innocent).end.flags & d.OOM == 0

    def test_a_kill_by_hand_is_no_lack_of_memory(self, small):
        guest = small()
        assert guest.run("kill -9 $$").end.flags & d.OOM == 0
        assert guest.run("exit 137").end.flags & d.OOM == 0

    def test_a_background_hog_marks_no_other_call(self, small):
        guest = small()
        guest.run("(sleep 0.3; exec /mnt/probe hog 500) & exit")
        call = guest.run("sleep 1.2; echo unharmed")
        assert call.out == b"unharmed\n" and call.end.flags & d.OOM == 0

    def test_background_children_that_were_killed_by_hand_hide_no_hog(self, small):
        guest = small()
        guest.run("sleep 60 & echo $! >/tmp/pid")
        call = guest.run("kill -9 $(cat /tmp/pid); sleep 0.2; exec /mnt/probe hog 500")
        assert call.end.flags & d.OOM

    def test_two_hogs_are_both_blamed(self, small):
        guest = small()
        calls = [guest.sh("exec /mnt/probe hog 500"), guest.sh("exec /mnt/probe hog 500")]
        guest.wait(*calls)
        assert all(call.end.flags & d.OOM for call in calls if call.end.signal == 9)

    def test_sixteen_mebibytes_are_enough(self, small, stage):
        guest = small(16)
        assert guest.run("echo on").out == b"on\n"
        assert guest.run("exec /mnt/probe hog 300").end.flags & d.OOM
        assert guest.run("head -c 3000000 /dev/zero", limit=1 << 20).end.total_out == 3_000_000
        assert_serves(guest)

    def test_answers_are_not_lost_at_the_limit(self, small):
        guest = small(32)
        calls = [guest.sh(f"/mnt/probe hog {n}; head -c 200000 /dev/zero", limit=1 << 20) for n in (20, 30, 40, 500)]
        guest.wait(*calls)
        assert {call.end.status for call in calls} <= {d.EXITED, d.SIGNALED, d.KILLED}
        assert_serves(guest)

    def test_a_hog_that_would_have_pid_one_taken_first(self, small):
        guest = small()
        guest.run("echo 1000 >/proc/1/oom_score_adj; echo 1000 >/proc/$PPID/oom_score_adj; exec /mnt/probe hog 500")
        assert_serves(guest)

    def test_no_counter_is_told(self, start):
        guest = start(mounts="mount -t tmpfs none /sys/fs/cgroup")
        assert guest.features & 2 == 0
        assert guest.run("kill -9 $$").end.flags & (d.OOM | d.OOM_UNKNOWN) == d.OOM_UNKNOWN


class TestTime:
    def test_pid_one_is_not_starved(self, crowded):
        guest = crowded(200)
        calls = [guest.sh("while :; do :; done", user="agent", timeout=1.5) for _ in range(20)]
        slowest = 0.0
        for _ in range(10):
            began = time.monotonic()
            guest.ping()
            slowest = max(slowest, time.monotonic() - began)
        guest.wait(*calls, timeout=30)
        assert slowest < 1.0
        assert {call.end.status for call in calls} == {d.TIMED_OUT}
