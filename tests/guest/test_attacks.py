"""What an agent can do to its own sandbox, as root and as a user: each is data of the right status, and the next call
works.

In a container a root command has no capability; what the kernel still lets it do to root's processes it must not be
able to do to the guest's.
"""

from __future__ import annotations

import time

import pytest

from tests.guest import driver as d
from tests.guest.test_ending import count, host_count

EVERYBODY = pytest.mark.parametrize("user", ["", "agent"])
SUPERVISOR = "$PPID"
KILL = "--caps=20"
SETUID = "--caps=e0"


def allowed(guest: d.Guest, command: str, **options) -> set[str]:
    """What the kernel answered with success."""
    return {
        line.split(":")[0] for line in guest.run(command, **options).out.decode().splitlines() if line.endswith(": ok")
    }


def assert_serves(guest: d.Guest) -> None:
    for user in ("", "agent"):
        assert guest.run("echo on", user=user).out == b"on\n"


class TestReach:
    @EVERYBODY
    @pytest.mark.parametrize("target", ["1", SUPERVISOR])
    def test_nothing_of_the_guest_is_open(self, guest, user, target):
        assert allowed(guest, f"/mnt/probe reach {target}", user=user) == set()
        assert_serves(guest)

    def test_capabilities_that_change_users_open_no_memory_and_no_limit(self, start):
        """Such a root can become the guest's own uid; it can make itself a nuisance, and forge nothing."""
        guest = start(SETUID)
        own = guest.own_uid
        for target in ("1", SUPERVISOR):
            found = allowed(guest, f"/mnt/probe become {own} reach {target}")
            assert found <= {
                "become",
                "fd",
                "write oom_score_adj",
                "write clear_refs",
                "write coredump_filter",
                "write autogroup",
                "setpriority",
                "sched_setscheduler",
                "sched_setaffinity",
                "ioprio_set",
                "kill",
            }
        assert_serves(guest)

    def test_where_its_uid_is_not_mapped_its_memory_and_limits_are_closed_too(self, start):
        guest = start(mapped_ids=60_000)
        assert guest.own_uid == 0
        for target in ("1", SUPERVISOR):
            found = allowed(guest, f"/mnt/probe reach {target}")
            assert not found & {
                "environ",
                "mem",
                "maps",
                "write mem",
                "vm_readv",
                "vm_writev",
                "seize",
                "pidfd_getfd",
                "prlimit",
            }
        assert allowed(guest, "/mnt/probe reach 1", user="agent") == set()

    @EVERYBODY
    def test_the_controllers_environment_is_not_inside(self, guest, user):
        call = guest.run("cat /proc/*/environ 2>/dev/null; env", user=user)
        assert b"SECRET" not in call.out and b"of the controller" not in call.out

    @EVERYBODY
    def test_no_frame_can_be_injected(self, guest, user):
        forged = "\\105\\0\\0\\0\\023"
        guest.run(
            f"for p in /proc/[0-9]*; do for f in $p/fd/*; do printf '{forged}' >$f; done; done 2>/dev/null;"
            f"printf '{forged}' >/dev/console; printf '{forged}' >/dev/tty",
            user=user,
        )
        assert_serves(guest)


class TestSupervisor:
    @EVERYBODY
    @pytest.mark.parametrize("act", ["kill -9", "kill -STOP", "kill -TERM"])
    def test_is_out_of_reach(self, guest, user, act):
        assert guest.run(f"{act} {SUPERVISOR}; echo $?; exit 3", user=user).end.outcome == (d.EXITED, 0, 3)

    def test_a_kill_by_a_root_that_may_is_told(self, start):
        guest = start(KILL)
        concurrent = [guest.sh("sleep 0.7; echo unharmed", user=user) for user in ("", "agent")]
        guest.run("sleep 815 &")
        call = guest.run(f"sleep 4711 & setsid sleep 4711 & kill -9 {SUPERVISOR}; sleep 4711")
        assert (call.end.status, call.end.survivors) == (d.KILLED, 0)
        assert count(guest, "sleep 4711") == 0 and count(guest, "sleep 815") == 1
        guest.wait(*concurrent)
        assert {other.out for other in concurrent} == {b"unharmed\n"}
        assert_serves(guest)

    def test_a_kill_by_a_descriptors_owner_is_told(self, guest):
        """Linux lets root's descriptors signal anybody (sigio_perm), whatever capabilities it has."""
        call = guest.run(f"/mnt/probe sigio {SUPERVISOR} 9; sleep 0.2; echo lives")
        assert call.end.status in (d.KILLED, d.EXITED)
        assert_serves(guest)

    def test_one_that_is_stopped_is_ended_by_pid_one(self, start):
        guest = start(KILL)
        concurrent = guest.sh("sleep 4; echo unharmed")
        call = guest.run(f"kill -STOP {SUPERVISOR}; setsid sleep 4711 & sleep 4711", timeout=0.5, grace=0.1)
        assert (call.end.status, call.end.survivors) == (d.TIMED_OUT, 0)
        assert 3_000_000 < call.end.wall_us < 6_000_000
        assert count(guest, "sleep 4711") == 0
        assert guest.wait(concurrent).out == b"unharmed\n"

    def test_one_that_is_stopped_can_be_cancelled(self, start):
        guest = start(KILL)
        call = guest.sh(f"kill -STOP {SUPERVISOR}; sleep 4711", grace=0.1)
        guest.idle(0.3)
        guest.cancel(call)
        assert guest.wait(call).end.status == d.CANCELLED
        assert count(guest, "sleep 4711") == 0

    def test_one_that_lingers_can_be_killed_and_its_children_go_on(self, start):
        guest = start(KILL)
        guest.run(f"sleep 815 & echo {SUPERVISOR} >/tmp/supervisor")
        guest.run("kill -9 $(cat /tmp/supervisor)")
        guest.idle(0.1)
        assert count(guest, "sleep 815") == 1
        guest.reset()
        assert count(guest, "sleep 815") == 0


class TestKillEverything:
    def test_as_root(self, guest):
        other = guest.sh("sleep 0.5; echo unharmed", user="agent")
        same = guest.sh("sleep 60")
        guest.idle(0.1)
        call = guest.run("kill -9 -1; echo still")
        assert call.end.status in (d.EXITED, d.SIGNALED)
        assert (guest.wait(same).end.status, same.end.signal) == (d.SIGNALED, 9)
        assert guest.wait(other).out == b"unharmed\n"
        assert_serves(guest)

    def test_as_a_root_that_may(self, start):
        guest = start(KILL)
        other = guest.sh("sleep 60", user="agent")
        guest.idle(0.1)
        call = guest.run("kill -9 -1; sleep 60", timeout=5)
        assert call.end.status == d.KILLED
        assert guest.wait(other).end.status == d.KILLED
        assert_serves(guest)

    def test_as_a_user(self, guest):
        call = guest.run("sleep 60 & kill -9 -1; echo still", user="agent")
        assert call.end.status in (d.EXITED, d.SIGNALED)
        assert_serves(guest)

    def test_who_was_killed_with_all_its_children_left_none(self, guest):
        """A child that the same kill took and that isn't reaped yet is no background child."""
        for _ in range(10):
            victim = guest.sh("for i in 1 2 3 4 5 6 7 8; do sleep 60 & done; wait", user="agent")
            guest.idle(0.05)
            guest.run("kill -9 -1", user="agent")
            assert guest.wait(victim).end.signal == 9
            assert victim.end.flags & d.BACKGROUND == 0


class TestLeaving:
    @EVERYBODY
    def test_a_zombie_maker(self, guest, user):
        call = guest.run("i=0; while [ $i -lt 50 ]; do (sleep 0 &) ; i=$((i+1)); done; exit 0", user=user)
        assert call.end.status == d.EXITED
        guest.idle(0.3)
        assert guest.run("cat /proc/[0-9]*/stat | grep -c ') Z'").out.strip() == b"0"

    def test_who_is_traced_by_another_call_ends_all_the_same(self, guest):
        """A traced process stays a zombie until its tracer lets go: that is no survivor, and no fork bomb."""
        tracer = guest.sh("read pid; exec /mnt/probe trace $pid", user="agent", more=True, flags=d.WATCH)
        call = guest.sh("echo $$; exec sleep 4711", user="agent", flags=d.WATCH, timeout=0.5, grace=0.1)
        guest.until(lambda: call.data.endswith(b"\n"))
        guest.feed(tracer, call.data, last=True)
        guest.until(lambda: tracer.data == b"seize: ok\n")
        assert (guest.wait(call).end.status, call.end.survivors) == (d.TIMED_OUT, 0)
        assert call.end.flags & (d.SWEPT | d.BACKGROUND) == 0 and tracer.report is None
        guest.cancel(tracer)
        assert guest.wait(tracer).end.flags & d.COLLATERAL == 0
        assert_serves(guest)

    def test_a_group_that_outlives_its_leader_is_found(self, guest):
        """The shell is gone, its number could be another's: only while somebody of ours is in the group it is ours."""
        for _ in range(5):
            call = guest.run(
                "trap 'exit 0' TERM; (trap '' TERM; sleep 4711; sleep 4711) & wait", timeout=0.2, grace=0.2
            )
            assert call.end.status == d.TIMED_OUT
        assert count(guest, "sleep 4711") == 0

    def test_hidden_processes_are_ended_all_the_same(self, start):
        """With hidepid the sweep sees nothing; the group and the uid are killed instead."""
        guest = start(mounts="mount -o remount,hidepid=2 /proc")
        for user in ("", "agent"):
            began = time.monotonic()
            call = guest.run(
                "trap 'echo heard' TERM; setsid sleep 4711 & sleep 4711; sleep 4711", user=user, timeout=0.3
            )
            assert (call.end.status, call.end.survivors) == (d.TIMED_OUT, 0)
            assert b"heard" in call.out and time.monotonic() - began < 3
            assert host_count(guest, b"4711") == 0

    def test_hidden_orphans_of_a_killed_supervisor(self, start):
        guest = start(KILL, mounts="mount -o remount,hidepid=2 /proc")
        call = guest.run(f"setsid sleep 4711 & kill -9 {SUPERVISOR}; sleep 4711")
        assert call.end.status == d.KILLED
        guest.idle(0.1)
        assert host_count(guest, b"4711") == 0
