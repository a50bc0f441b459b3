"""RUN: how a command begins, what it is given, and how its end is told."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from tests.guest import driver as d


class TestEnds:
    @pytest.mark.parametrize("code", [0, 1, 2, 124, 127, 255])
    def test_exit_codes(self, guest, code):
        call = guest.run(f"exit {code}")
        assert call.end.outcome == (d.EXITED, 0, code)
        assert call.end.flags & ~d.OOM_UNKNOWN == 0 and call.end.signal == 0

    @pytest.mark.parametrize("number", [1, 2, 3, 6, 9, 11, 13, 14, 15, 34, 64])
    def test_signals(self, guest, number):
        call = guest.run(f"kill -{number} $$")
        assert (call.end.status, call.end.signal) == (d.SIGNALED, number)

    def test_a_killed_shell_is_told_apart_from_a_shell_that_says_137(self, guest):
        assert guest.run("exit 137").end.outcome == (d.EXITED, 0, 137)

    def test_both_streams_apart(self, guest):
        call = guest.run("echo out; echo err >&2; exit 3")
        assert (call.out, call.err, call.end.exit_code) == (b"out\n", b"err\n", 3)
        assert (call.end.total_out, call.end.total_err) == (4, 4)

    def test_usage_is_told(self, guest):
        call = guest.run("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 0.1")
        assert call.end.wall_us > 100_000
        assert call.end.user_us > 0 and call.end.maxrss_kib > 100

    def test_many_at_once_each_with_its_own_answer(self, guest):
        calls = [guest.sh(f"echo {i}; exit {i}") for i in range(40)]
        guest.wait(*calls)
        assert [(call.out, call.end.exit_code) for call in calls] == [(b"%d\n" % i, i) for i in range(40)]

    def test_nothing_is_kept_between_calls(self, guest):
        guest.run("cd /tmp; export LEFT=1; umask 077")
        assert guest.run("echo $LEFT; pwd; umask").out == b"\n/\n0022\n"


class TestPrograms:
    def test_found_in_the_path_of_the_call(self, guest):
        assert guest.do(["echo", "a b", "", "c"]).out == b"a b  c\n"
        assert guest.do(["echo"], env=["PATH=/nowhere"]).end.exit_code == 127

    def test_found_in_a_usual_path_where_the_call_has_none(self, guest):
        assert guest.do(["echo", "x"], env=[]).out == b"x\n"

    @pytest.mark.parametrize("argv", [["no-such-program"], ["/no/such"], ["/etc/passwd/x"], [""]])
    def test_not_found(self, guest, argv):
        call = guest.do(argv)
        assert call.end.outcome == (d.EXITED, 0, 127)
        assert call.err.startswith(argv[0].encode() + b": ")

    @pytest.mark.parametrize("argv", [["/etc/passwd"], ["/etc"]])
    def test_not_executable(self, guest, argv):
        call = guest.do(argv)
        assert call.end.outcome == (d.EXITED, 0, 126)
        assert b"Permission denied" in call.err

    def test_arguments_that_the_kernel_does_not_take(self, guest):
        call = guest.do(["/bin/echo", "x" * 200_000])
        assert call.end.outcome == (d.EXITED, 0, 126)
        assert b"Argument list too long" in call.err

    def test_a_script_of_five_megabytes(self, guest):
        script = b"read line; echo $1 $line\n" + b"#" * 5_000_000 + b"\necho done\n"
        call = guest.do(["/bin/sh"], script=script, stdin=b"from stdin\n")
        assert call.end.outcome == (d.EXITED, 0, 0)
        assert call.out == b"from stdin\ndone\n"

    def test_an_empty_script(self, guest):
        assert guest.do(["/bin/sh"], script=b"", stdin=b"echo not this").out == b""

    def test_a_script_can_not_be_changed_while_it_runs(self, guest):
        script = b"echo first\n(echo 'echo forged' > $0) 2>/dev/null || echo sealed\n"
        assert guest.do(["/bin/sh"], script=script).out == b"first\nsealed\n"

    def test_a_script_as_another_user(self, guest):
        assert guest.do(["/bin/sh"], script=b"id -u\n" + b"#" * 200_000, user="agent").out == b"1000\n"

    def test_bytes_that_are_no_utf8(self, guest):
        assert guest.do(["printf", "%s", b"\xff\xfe\n\x80"]).out == b"\xff\xfe\n\x80"


def _without_libcs(mask: str) -> str:
    """A mask without signals 32 and 33: libc keeps them for itself, and whoever started us may ignore them."""
    return f"{int(mask, 16) & ~(0b11 << 31):016x}"


class TestSurroundings:
    def test_environment_is_the_calls_and_nothing_else(self, guest):
        call = guest.do(["env"], env=[d.PATH, "A=1", b"B=\xff"], user="agent")
        assert sorted(call.out.splitlines()) == sorted(
            [d.PATH, b"A=1", b"B=\xff", b"HOME=/home/agent", b"USER=agent", b"LOGNAME=agent"]
        )

    def test_home_and_names_that_the_call_sets_stay(self, guest):
        call = guest.do(["env"], env=["HOME=/h", "USER=u", "LOGNAME="], user="agent")
        assert sorted(call.out.splitlines()) == [b"HOME=/h", b"LOGNAME=", b"USER=u"]

    def test_directory(self, guest):
        assert guest.run("pwd", cwd="/usr/bin").out == b"/usr/bin\n"

    @pytest.mark.parametrize(
        "cwd, number", [("/none", 2), ("/etc/passwd", 20), ("", 2), ("/" + "x" * 300, 36), ("/root", 13)]
    )
    def test_directory_that_can_not_be_entered(self, guest, cwd, number):
        call = guest.run("echo ran", cwd=cwd, user="agent")
        assert (call.end.status, call.end.stage, call.end.error) == (d.FAILED, d.CWD, number)
        assert call.out == b""

    @pytest.mark.parametrize("user", ["", "agent"])
    def test_three_descriptors_and_no_more(self, guest, user):
        assert guest.do(["/mnt/probe", "fds"], user=user).out == b"0\n1\n2\n"
        assert guest.do(["/mnt/probe", "fds"], user=user, stdin=b"x", flags=d.MERGE).out == b"0\n1\n2\n"

    def test_a_script_is_one_more(self, guest):
        call = guest.do(["/bin/sh"], script=b"/mnt/probe fds")
        descriptors = [int(line) for line in call.out.split()]
        assert descriptors[:3] == [0, 1, 2] and len(descriptors) <= 5 and all(fd >= 10 for fd in descriptors[3:])

    def test_descriptors_that_the_runtime_left_open_are_closed(self, start):
        read_end, write_end = os.pipe()
        extra = [os.dup(read_end) for _ in range(3)]
        with Path("/dev/null").open("rb") as null:
            os.dup2(null.fileno(), 100)
            os.dup2(null.fileno(), 200)
            try:
                guest = start(extra_fds=[*extra, 100, 200])
                assert guest.do(["/mnt/probe", "fds"]).out == b"0\n1\n2\n"
                # PID 1 lets go of the call's channel a moment after its EXIT.
                until = time.monotonic() + 10
                while (held := len(list(Path(f"/proc/{guest.pid}/fd").iterdir()))) > 9 and time.monotonic() < until:
                    time.sleep(0.01)
                assert held <= 9
            finally:
                for fd in (read_end, write_end, *extra, 100, 200):
                    os.close(fd)

    @pytest.mark.parametrize("user", ["", "agent"])
    def test_standard_streams_can_be_opened_by_name(self, guest, user):
        call = guest.run("echo a >/dev/stdout; echo b >/dev/stderr; echo c >>/proc/self/fd/1", user=user)
        assert (call.out, call.err) == (b"a\nc\n", b"b\n")

    def test_stdin_is_empty_unless_it_is_given(self, guest):
        assert guest.run("cat; readlink /proc/self/fd/0").out == b"/dev/null\n"

    def test_its_own_session_and_group(self, guest):
        pid, group, session = guest.run("echo $$; cut -d' ' -f5,6 /proc/$$/stat").out.split()
        assert pid == group == session

    def test_signals_are_as_they_are_in_a_new_process(self, guest):
        text = guest.do(["cat", "/proc/self/status"]).out.decode()
        found = dict(re.findall(r"^(Sig(?:Blk|Ign|Cgt|Pnd)|ShdPnd):\s(\w+)", text, re.MULTILINE))
        found["SigIgn"] = _without_libcs(found["SigIgn"])
        assert found == dict.fromkeys(("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"), "0" * 16)

    def test_signals_that_the_runtime_ignored_are_not(self, start):
        guest = start(enter="trap '' INT QUIT PIPE USR1")
        ignored = guest.run("grep SigIgn /proc/self/status").out.split()[1].decode()
        assert _without_libcs(ignored) == "0" * 16

    def test_children_are_what_the_oom_killer_takes_first(self, guest):
        assert guest.run("cat /proc/self/oom_score_adj").out == b"500\n"
        assert guest.run("cat /proc/self/oom_score_adj", user="agent").out == b"500\n"

    def test_no_new_privileges_even_where_the_engine_forgot_them(self, guest):
        assert guest.run("grep NoNewPrivs /proc/self/status").out.split() == [b"NoNewPrivs:", b"1"]


class TestLimits:
    def test_none_but_the_core_size_by_default(self, guest):
        assert guest.run("ulimit -c").out == b"0\n"

    def test_each_that_was_asked_for(self, start):
        guest = start("--nofile=64", "--fsize=1048576", "--cpu=7")
        for user in ("", "agent"):
            call = guest.run("ulimit -n; ulimit -Hn; ulimit -f; ulimit -t; ulimit -c", user=user)
            assert call.out == b"64\n64\n2048\n7\n0\n"

    def test_file_size_is_kept(self, start):
        guest = start("--fsize=65536")
        call = guest.run("head -c 100000 /dev/zero >/tmp/big; wc -c </tmp/big")
        assert call.out.strip() == b"65536"

    def test_cpu_time_ends_the_process(self, start):
        guest = start("--cpu=1")
        call = guest.run("while :; do :; done")
        assert call.end.status == d.SIGNALED and call.end.signal in (9, 24)
        assert guest.run("echo on").out == b"on\n"

    def test_more_descriptors_than_the_container_allows_are_as_many_as_it_allows(self, start):
        guest = start("--nofile=1000000", enter="ulimit -n 4096")
        assert guest.run("ulimit -n").out == b"4096\n"


class TestCapabilities:
    NONE = b"0" * 16

    def caps(self, guest, **options):
        text = guest.run("grep -E '^Cap(Inh|Prm|Eff|Amb)' /proc/self/status", **options).out.decode()
        return dict(re.findall(r"Cap(\w+):\s(\w+)", text))

    @pytest.mark.parametrize("user", ["", "0:0", "agent", "1000:0", "4242"])
    def test_none_by_default(self, guest, user):
        assert self.caps(guest, user=user) == dict.fromkeys(("Inh", "Prm", "Eff", "Amb"), "0" * 16)

    def test_root_keeps_just_what_was_asked_for(self, start):
        guest = start("--caps=b", caps=("setuid", "setgid", "kill", "chown", "dac_override", "fowner"))
        assert self.caps(guest) == {"Inh": "0" * 16, "Prm": f"{0xB:016x}", "Eff": f"{0xB:016x}", "Amb": "0" * 16}
        assert self.caps(guest, user="agent")["Prm"] == "0" * 16

    def test_what_the_engine_did_not_give_is_refused(self, start):
        guest = start("--caps=200000")
        call = guest.run("echo ran")
        assert (call.end.status, call.end.stage, call.end.error) == (d.REFUSED, d.PROCESS, 1)


class TestHello:
    def test_only_the_loopback_interface(self, start):
        guest = start(mounts="ip link set lo up 2>/dev/null || true")
        assert set(guest.interfaces) <= {b"lo"}

    def test_an_interface_of_the_network_is_told(self, start):
        guest = start(network=True)
        assert any(name != b"lo" for name in guest.interfaces)

    def test_no_shell(self, start):
        assert start().features & 1 == 1
