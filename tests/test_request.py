"""What a call is made of, and what its end is made into: plain code on both sides of the wire."""

from __future__ import annotations

import errno

import pytest

from sandbox.connection import Call
from sandbox.engine import ImageInfo
from sandbox.errors import FileTooLarge, NotAFile, UserUnknown
from sandbox.outcome import check_transfer, run_result
from sandbox.request import DEFAULT_PATH, MAX_ARGUMENT, Defaults, check_request, file_request, run_request
from sandbox.spec import Limits, SandboxSpec
from sandbox.wire import CallFlag, Exit, ExitFlag, Kind, Request, Stage, Status


def defaults(image=None, **spec):
    return Defaults.of(SandboxSpec(image="any", **spec), image or ImageInfo("id", "amd64"))


def request(command="true", of=None, **options):
    chosen = {
        "timeout": 1.5,
        "cwd": None,
        "env": None,
        "user": None,
        "merge_stderr": False,
        "output_limit": None,
        "has_stdin": False,
        "watched": False,
    }
    return run_request(of or defaults(), command, **chosen | options)


class TestEnvironment:
    def test_is_the_images_then_the_specs_then_the_calls(self):
        image = ImageInfo("id", "amd64", env={"PATH": "/image", "A": "image", "B": "image", "C": "image"})
        made = request(of=defaults(image, env={"B": "spec", "C": "spec"}), env={"C": "call"})
        assert made.env == (b"PATH=/image", b"A=image", b"B=spec", b"C=call")

    def test_has_a_path_if_the_image_has_none(self):
        assert request().env == (f"PATH={DEFAULT_PATH}".encode(),)

    def test_leaves_the_users_own_variables_to_the_guest(self):
        image = ImageInfo("id", "amd64", env={"HOME": "/root", "USER": "root", "LOGNAME": "root", "PATH": "/bin"})
        assert request(of=defaults(image)).env == (b"PATH=/bin",)
        assert request(of=defaults(image, env={"HOME": "/mine"})).env == (b"PATH=/bin", b"HOME=/mine")


class TestUserAndDirectory:
    def test_are_the_calls_then_the_specs_then_the_images(self):
        image = ImageInfo("id", "amd64", user="image", workdir="/image")
        assert (request(of=defaults(image)).user, request(of=defaults(image)).cwd) == (b"image", b"/image")
        mine = defaults(image, user="spec", workdir="/spec")
        assert (request(of=mine).user, request(of=mine).cwd) == (b"spec", b"/spec")
        assert request(of=mine, user="1:2", cwd="/call").user == b"1:2"
        assert request(of=mine, cwd="/call").cwd == b"/call"
        assert request(of=mine, cwd="below").cwd == b"/spec/below"

    def test_are_root_and_the_root_if_nobody_says(self):
        assert (request().user, request().cwd) == (b"0:0", b"/")
        assert check_request(defaults(), 1).user == b"0:0"

    def test_of_a_file_call_need_no_directory_if_the_path_is_absolute(self):
        of = defaults(workdir="/work")
        assert file_request(of, Kind.READ, "/a", user=None, timeout=None, max_bytes=1).cwd == b"/"
        assert file_request(of, Kind.READ, "a", user=None, timeout=None, max_bytes=1).cwd == b"/work"


class TestCommand:
    def test_is_a_shells_or_a_programs(self):
        assert request("echo ö").args == (b"/bin/sh", b"-c", "echo ö".encode())
        assert request(["a", "b c"]).args == (b"a", b"b c")

    def test_becomes_a_script_where_the_kernel_takes_no_argument_of_its_length(self):
        assert request("x" * MAX_ARGUMENT).args[2] == b"x" * MAX_ARGUMENT
        made = request("x" * (MAX_ARGUMENT + 1))
        assert (made.args, len(made.script), made.flags) == ((b"/bin/sh",), MAX_ARGUMENT + 1, CallFlag.SCRIPT)

    def test_has_the_flags_of_its_options(self):
        made = request(has_stdin=True, watched=True, merge_stderr=True)
        assert made.flags == CallFlag.STDIN | CallFlag.WATCH | CallFlag.MERGE

    def test_keeps_what_was_not_text(self):
        assert request("echo \udcff").args[2] == b"echo \xff"

    def test_is_kept_in_whole_milliseconds(self):
        assert request(timeout=0.0001).timeout_ms == 1
        assert request(timeout=1.5).timeout_ms == 1500
        assert request(timeout=None).timeout_ms == 0

    def test_keeps_as_much_output_as_it_or_the_spec_says(self):
        assert request(of=defaults(limits=Limits(output=5))).output_limit == 5
        assert request(output_limit=0).output_limit == 0

    @pytest.mark.parametrize(
        "command, options",
        [
            ("a\0", {}),
            ("a\ud800", {}),
            ("x" * (16 * 1024 * 1024 + 1), {}),
            ([], {}),
            ([""], {}),
            (["a", "b\0"], {}),
            (["a", "b" * (MAX_ARGUMENT + 1)], {}),
            (["a"] * 300_000, {}),
            ("a", {"env": {"A=": "b"}}),
            ("a", {"env": {"A": "b" * MAX_ARGUMENT}}),
            ("a", {"cwd": "\0"}),
            ("a", {"user": "\0"}),
            ("a", {"timeout": 0}),
            ("a", {"timeout": -1}),
            ("a", {"timeout": float("nan")}),
            ("a", {"timeout": float("inf")}),
            ("a", {"output_limit": -1}),
            ("a", {"output_limit": 1 << 30}),
        ],
        ids=lambda value: str(value)[:20],
    )
    def test_that_no_process_can_be_given_is_refused(self, command, options):
        with pytest.raises(ValueError, match=r"[a-z]"):
            request(command, **options)

    @pytest.mark.parametrize("command", [b"true", bytearray(b"true"), ["a", b"b"], ["a", 1]], ids=str)
    def test_is_text(self, command):
        with pytest.raises(TypeError):
            request(command)


@pytest.mark.parametrize("path, max_bytes", [("", 1), ("a\0", 1), ("a", -1), ("a", 1 << 64)])
def test_a_file_call_that_can_not_be_sent_is_refused(path, max_bytes):
    with pytest.raises(ValueError, match=r"[a-z]"):
        file_request(defaults(), Kind.READ, path, user=None, timeout=None, max_bytes=max_bytes)


def ended(report, kind=Kind.RUN, cancelled=False, **request_fields):
    call = Call(1, Request(kind, args=(b"program",), **request_fields), False)
    call.cancelled = cancelled
    call.exit = report
    return call


class TestResult:
    @pytest.mark.parametrize(
        "report, status, exit_code",
        [
            (Exit(Status.EXITED, exit_code=3), "exited", 3),
            (Exit(Status.SIGNALED, signal=11), "signaled", 139),
            (Exit(Status.TIMED_OUT, signal=15), "timed_out", 124),
            (Exit(Status.EXITED, exit_code=137, flags=ExitFlag.OOM), "out_of_memory", 137),
            (Exit(Status.SIGNALED, signal=9, flags=ExitFlag.OOM), "out_of_memory", 137),
            (Exit(Status.TIMED_OUT, flags=ExitFlag.OOM), "timed_out", 124),
            (Exit(Status.REFUSED, Stage.PROCESS, error=11), "refused", 125),
            (Exit(Status.REFUSED, Stage.DISK), "refused", 125),
            (Exit(Status.KILLED), "killed", 137),
            (Exit(Status.CANCELLED), "killed", 137),
        ],
        ids=str,
    )
    def test_says_how_the_command_ended(self, report, status, exit_code):
        result = run_result(ended(report))
        assert (result.status, result.exit_code) == (status, exit_code)
        assert bool(result.reason) == (status in ("refused", "killed"))

    def test_says_why_it_was_refused(self):
        assert "pids limit" in run_result(ended(Exit(Status.REFUSED, Stage.PROCESS, error=11))).reason
        assert "reserve" in run_result(ended(Exit(Status.REFUSED, Stage.DISK))).reason
        assert "reset" in run_result(ended(Exit(Status.CANCELLED))).reason
        assert "caller" in run_result(ended(Exit(Status.CANCELLED), cancelled=True)).reason

    def test_has_all_that_is_known(self):
        flags = ExitFlag.BACKGROUND | ExitFlag.OOM_UNKNOWN | ExitFlag.COLLATERAL | ExitFlag.SWEPT
        report = Exit(
            Status.EXITED, flags=flags, survivors=2, wall_us=1_500_000, user_us=250_000, sys_us=125_000, maxrss_kib=7
        )
        result = run_result(ended(report))
        assert (result.background, result.oom_known, result.collateral, result.swept) == (True, False, True, True)
        assert result.survivors == 2
        usage = result.usage
        assert (usage.wall, usage.user, usage.system, usage.max_rss) == (1.5, 0.25, 0.125, 7 * 1024)

    def test_of_a_killed_supervisor_is_honest_about_what_came(self):
        call = ended(Exit(Status.KILLED), output_limit=10)
        call.stdout.add(b"some", to_tail=False)
        assert run_result(call).stdout.total_bytes == 4
        assert not run_result(call).stdout.truncated

    @pytest.mark.parametrize(
        "report, kind",
        [
            (Exit(Status.FAILED, Stage.USER, error=2), UserUnknown),
            (Exit(Status.FAILED, Stage.CWD, error=2), FileNotFoundError),
            (Exit(Status.FAILED, Stage.CWD, error=20), NotADirectoryError),
            (Exit(Status.FAILED, Stage.CWD, error=13), PermissionError),
            (Exit(Status.FAILED, Stage.EXEC, error=13), OSError),
        ],
    )
    def test_is_none_where_no_command_ran(self, report, kind):
        with pytest.raises(kind):
            run_result(ended(report))


class TestTransfer:
    @pytest.mark.parametrize(
        "report, kind",
        [
            (Exit(Status.FAILED, Stage.FILE, error=2), FileNotFoundError),
            (Exit(Status.FAILED, Stage.FILE, error=13), PermissionError),
            (Exit(Status.FAILED, Stage.FILE, error=21), IsADirectoryError),
            (Exit(Status.FAILED, Stage.FILE, error=20), NotADirectoryError),
            (Exit(Status.FAILED, Stage.FILE, error=27), FileTooLarge),
            (Exit(Status.FAILED, Stage.FILE, error=22), NotAFile),
            (Exit(Status.FAILED, Stage.USER, error=2), UserUnknown),
            (Exit(Status.TIMED_OUT), TimeoutError),
            (Exit(Status.KILLED), InterruptedError),
            (Exit(Status.CANCELLED), InterruptedError),
            (Exit(Status.SIGNALED, signal=9), InterruptedError),
        ],
    )
    def test_that_failed_raises_what_python_would(self, report, kind):
        with pytest.raises(kind, match="/the/path" if kind is not UserUnknown else None):
            check_transfer(ended(report, Kind.READ), "/the/path")

    @pytest.mark.parametrize(
        "stage, number", [(Stage.DISK, errno.ENOSPC), (Stage.PROCESS, errno.EAGAIN), (Stage.INPUT, errno.ENOMEM)]
    )
    def test_that_was_refused_says_what_ran_out(self, stage, number):
        with pytest.raises(OSError, match="/the/path") as caught:
            check_transfer(ended(Exit(Status.REFUSED, stage), Kind.PUT), "/the/path")
        assert caught.value.errno == number

    def test_names_errors_as_linux_numbers_them(self):
        with pytest.raises(OSError, match="/the/path") as caught:
            check_transfer(ended(Exit(Status.FAILED, Stage.FILE, error=40), Kind.READ), "/the/path")
        assert caught.value.errno == errno.ELOOP
