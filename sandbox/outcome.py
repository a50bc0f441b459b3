"""From a call's EXIT to what its caller sees: a result, or one of Python's own errors."""

from __future__ import annotations

import errno
import os

from sandbox.connection import Call, Kept
from sandbox.errors import FileTooLarge, NotAFile, SandboxError, SandboxExhausted, UserUnknown
from sandbox.spec import ExecResult, Output, Status, Usage
from sandbox.wire import CallFlag, Exit, ExitFlag, Kind, Stage
from sandbox.wire import Status as Ending

TIMED_OUT = 124
REFUSED = 125
KILLED = 137

_REFUSALS = {
    Stage.PROCESS: "no process could be made in the sandbox: what runs in it has used up its pids limit or its memory",
    Stage.DISK: "the disk is below the sandbox's reserve: remove files, or lower disk_reserve",
    Stage.INPUT: "no memory was left in the sandbox for the command's input",
}

_REFUSED_TRANSFERS = {Stage.DISK: errno.ENOSPC, Stage.INPUT: errno.ENOMEM}

_LINUX = {
    11: errno.EAGAIN,
    35: errno.EDEADLK,
    36: errno.ENAMETOOLONG,
    38: errno.ENOSYS,
    39: errno.ENOTEMPTY,
    40: errno.ELOOP,
    95: errno.EOPNOTSUPP,
    110: errno.ETIMEDOUT,
    122: errno.EDQUOT,
}
"""Numbers that mean something else on other systems, where the controller may run."""


def run_result(call: Call) -> ExecResult:
    """A command's outcome as data; raises where no command ran."""
    report = _report(call)
    if report.status is Ending.FAILED:
        raise _failure(call, report, "")
    status, exit_code, reason = _ending(call, report)
    return ExecResult(
        status=status,
        exit_code=exit_code,
        stdout=_output(call.stdout, report.total_out),
        stderr=_output(call.stderr, report.total_err),
        signal=report.signal or None,
        background=ExitFlag.BACKGROUND in report.flags,
        reason=reason,
        oom_known=ExitFlag.OOM_UNKNOWN not in report.flags,
        collateral=ExitFlag.COLLATERAL in report.flags,
        swept=ExitFlag.SWEPT in report.flags,
        survivors=report.survivors,
        usage=Usage(report.wall_us / 1e6, report.user_us / 1e6, report.sys_us / 1e6, report.maxrss_kib * 1024),
    )


def exhausted_result(error: SandboxExhausted) -> ExecResult:
    """For a command in a sandbox whose memory the commands have used up: during it, or before."""
    return ExecResult(status="out_of_memory", exit_code=KILLED, signal=9, reason=str(error))


def check_transfer(call: Call, path: str) -> Exit:
    """Raise what kept a file call from being done."""
    report = _report(call)
    match report.status:
        case Ending.EXITED if report.exit_code == 0:
            return report
        case Ending.FAILED:
            raise _failure(call, report, path)
        case Ending.REFUSED:
            raise _os_error(_REFUSED_TRANSFERS.get(_stage(report), errno.EAGAIN), path)
        case Ending.TIMED_OUT:
            raise TimeoutError(errno.ETIMEDOUT, "the transfer took longer than its timeout", path)
        case _:
            raise InterruptedError(errno.EINTR, "the transfer was killed from inside the sandbox, or by a reset", path)


def _report(call: Call) -> Exit:
    if call.exit is None:
        raise RuntimeError("the call has not ended yet")
    return call.exit


def _ending(call: Call, report: Exit) -> tuple[Status, int, str]:
    match report.status:
        case Ending.EXITED | Ending.SIGNALED:
            code = report.exit_code if report.status is Ending.EXITED else 128 + report.signal
            if ExitFlag.OOM in report.flags:
                return "out_of_memory", code, ""
            return ("exited" if report.status is Ending.EXITED else "signaled"), code, ""
        case Ending.TIMED_OUT:
            return "timed_out", TIMED_OUT, ""
        case Ending.REFUSED:
            reason = _REFUSALS.get(_stage(report), "the sandbox could not begin or go on with the command")
            return (
                "refused",
                REFUSED,
                f"{reason} ({os.strerror(_LINUX.get(report.error, report.error))})" if report.error else reason,
            )
        case Ending.CANCELLED if call.cancelled:
            return "killed", KILLED, "it was ended because its caller left it"
        case Ending.CANCELLED:
            return "killed", KILLED, "the sandbox was reset while it ran"
        case _:
            return "killed", KILLED, "its supervisor was killed from inside the sandbox"


def _output(kept: Kept, total: int) -> Output:
    # PID 1 answers for a killed supervisor and knows no totals, though some of the output may have come.
    return Output(bytes(kept.head), bytes(kept.tail), max(total, len(kept)))


def _stage(report: Exit) -> Stage:
    return report.stage or Stage.PROCESS


def _failure(call: Call, report: Exit, path: str) -> SandboxError | OSError:
    number = _LINUX.get(report.error, report.error)
    request = call.request
    match report.stage:
        case Stage.USER:
            user = request.user.decode("utf-8", "replace")
            return UserUnknown(f"The sandbox's passwd and group files know no {user!r}; create it or use numbers.")
        case Stage.CWD:
            return _os_error(number, os.fsdecode(request.cwd))
        case Stage.FILE:
            return _file_error(call, number, path)
        case _:
            program = os.fsdecode(request.args[0]) if request.args and CallFlag.SCRIPT not in request.flags else path
            return _os_error(number, program)


def _file_error(call: Call, number: int, path: str) -> SandboxError | OSError:
    if number == errno.EFBIG and call.request.kind is not Kind.PUT:
        return FileTooLarge(f"{path!r} holds more than {call.request.max_bytes} bytes; raise max_bytes to have it.")
    if number == errno.EINVAL:
        return NotAFile(f"{path!r} is a device, a FIFO or a socket, and no file.")
    return _os_error(number, path)


def _os_error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)
