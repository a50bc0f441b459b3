"""When PID 1 ends, and what must not end it."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.guest import driver as d


def ends(guest: d.Guest) -> int:
    return guest.wait_gone(10)


class TestItsEnd:
    def test_with_its_input(self, guest):
        guest.sh("trap '' TERM; sleep 60; sleep 60")
        began = time.monotonic()
        assert guest.close() == 0
        assert time.monotonic() - began < 2

    def test_with_its_output(self, guest):
        os.close(os.dup(guest._stdout))
        guest.process.stdout.close()
        guest.send(d.frame(d.PING, 0, b"x"))
        assert guest.process.wait(5) == 0

    def test_with_its_lease(self, start):
        guest = start("--lease-ms=600")
        began = time.monotonic()
        for _ in range(3):
            guest.idle(0.3)
            guest.ping()
        assert ends(guest) == 72 and "no word" in (guest.fatal or "")
        assert 1.3 < time.monotonic() - began < 4

    def test_a_lease_does_not_run_while_the_sandbox_is_paused(self, start):
        """Its pings wait in the pipe then, and are heard first."""
        guest = start("--lease-ms=500")
        os.kill(guest.pid, signal.SIGSTOP)
        time.sleep(0.3)
        guest.send(d.frame(d.PING, 0, b"x"))
        time.sleep(0.6)
        os.kill(guest.pid, signal.SIGCONT)
        guest.until(lambda: guest.pongs)
        guest.ping()

    def test_with_its_lifetime_whatever_comes(self, start):
        guest = start("--lifetime-ms=700")

        def ping_for_ever() -> None:
            while True:
                guest.ping()
                guest.idle(0.05)

        with pytest.raises(d.GuestGoneError) as gone:
            ping_for_ever()
        assert gone.value.status == 73 and "lifetime" in (gone.value.fatal or "")

    @pytest.mark.parametrize("option", ["--lease-ms=18446744073709551615", "--lifetime-ms=18446744073709551615"])
    def test_endless_is_endless(self, start, option):
        guest = start(option)
        guest.idle(0.2)
        guest.ping()

    @pytest.mark.parametrize(
        "option", ["--none", "--caps=xyz", "--nofile=", "x", "--nofile=-1", "--cpu=99999999999999999999999"]
    )
    def test_an_option_that_it_does_not_know(self, start, option):
        with pytest.raises(d.GuestGoneError) as gone:
            start(option)
        assert gone.value.status == 71 and option in (gone.value.fatal or "")

    @pytest.mark.parametrize("missing", ["setuid", "setgid", "kill"])
    def test_without_a_capability_that_it_needs(self, start, missing):
        with pytest.raises(d.GuestGoneError) as gone:
            start(caps=[name for name in d.ENGINE_CAPS if name != missing]).idle(5)
        assert gone.value.status == 71 and "needs the capabilities" in (gone.value.fatal or "")

    def test_not_pid_one(self, stage):
        import subprocess

        done = subprocess.run([stage.folder / stage.binary], stdin=subprocess.DEVNULL, capture_output=True)
        assert done.returncode == 71 and b"must have 1" in done.stdout


class TestNotFromInside:
    @pytest.mark.parametrize("user", ["", "agent"])
    def test_no_signal(self, guest, user):
        guest.run(
            "for s in 1 2 3 4 6 8 9 10 11 13 14 15 17 19 20 23 29 31 34 50 64; do kill -$s 1; done 2>/dev/null",
            user=user,
        )
        assert guest.run("echo on").out == b"on\n"

    def test_no_signal_by_a_root_that_may_kill(self, start):
        guest = start("--caps=20")
        guest.run("for s in 1 2 3 4 6 8 9 10 11 13 14 15 17 19 20 23 29 31 34 50 64; do kill -$s 1; done")
        assert guest.run("echo on").out == b"on\n"

    @pytest.mark.parametrize("caps", ["0", "20"])
    def test_no_forged_sigterm(self, start, caps):
        """Beyond RLIMIT_SIGPENDING a queued signal loses its sender, and looks as if it came from outside."""
        guest = start(f"--caps={caps}", enter="prlimit --sigpending=1000 --pid $$")
        guest.run("/mnt/probe forge-term")
        guest.ping()
        assert guest.run("echo on").out == b"on\n"

    @pytest.mark.parametrize("number", [9, 15, 19, 29])
    def test_no_signal_by_way_of_a_descriptor(self, guest, number):
        guest.run(f"/mnt/probe sigio 1 {number}")
        guest.ping()
        assert guest.run("echo on").out == b"on\n"

    def test_no_limit_of_cpu_time(self, guest):
        """The kernel would kill even PID 1 for it."""
        assert guest.run("/mnt/probe cpu-limit 1").out == b"prlimit: Operation not permitted\n"
