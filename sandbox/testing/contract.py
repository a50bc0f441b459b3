"""What every engine must make true, as functions of a way to open a sandbox.

An engine's tests run each of :data:`CONTRACT` on both backends. ``open_box`` takes the changes to a spec whose image
has a POSIX shell with the usual small programs (busybox suffices), and whose user may write to ``/tmp``.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, TypeVar

import anyio
import anyio.lowlevel

from sandbox.errors import FileTooLarge, NotAFile, SandboxClosed, SandboxStartError, UserUnknown
from sandbox.exchange import StreamName
from sandbox.sandbox import Sandbox
from sandbox.spec import ExecResult


class OpenBox(Protocol):
    """Opens a sandbox of the engine under test."""

    def __call__(self, **changes: Any) -> AbstractAsyncContextManager[Sandbox]:
        """``changes`` are fields of the spec."""


Error = TypeVar("Error", bound=BaseException)
Behaviour = Callable[[OpenBox], Awaitable[None]]

LARGE = 3 * 1024 * 1024
"""More than any window and pipe between the two sides holds."""


async def an_exit_code_comes_back(open_box: OpenBox) -> None:
    """Whatever it is."""
    async with open_box() as box:
        for command, code in (("true", 0), ("false", 1), ("exit 42", 42), ("exit 255", 255), ("no-such-program", 127)):
            result = await box.run(command)
            assert (result.status, result.exit_code) == ("exited", code), result
            assert result.ok == (code == 0)


async def a_signal_is_told(open_box: OpenBox) -> None:
    """As a shell would: 128 and its number."""
    async with open_box() as box:
        result = await box.run("kill -9 $$")
        assert (result.status, result.exit_code, result.signal) == ("signaled", 137, 9), result


async def streams_are_kept_apart(open_box: OpenBox) -> None:
    """Bytes in, bytes kept, UTF-8 or not."""
    async with open_box() as box:
        result = await box.run(r"printf 'a\377b'; echo err >&2")
        assert result.stdout.data == b"a\xffb"
        assert result.stdout.text == "a�b"
        assert result.stderr.data == b"err\n"
        assert not result.stdout.truncated


async def merged_streams_keep_their_order(open_box: OpenBox) -> None:
    """Both go into one pipe."""
    async with open_box() as box:
        result = await box.run("echo 1; echo 2 >&2; echo 3; echo 4 >&2", merge_stderr=True)
        assert result.stdout.text == "1\n2\n3\n4\n", result
        assert result.stderr.total_bytes == 0


async def each_call_has_a_fresh_shell(open_box: OpenBox) -> None:
    """Nothing of a shell's state outlives it."""
    async with open_box(workdir="/tmp") as box:
        await box.run("cd /; X=1; export X")
        result = await box.run('pwd; echo "[$X]"')
        assert result.stdout.text == "/tmp\n[]\n"


async def an_argv_needs_no_shell(open_box: OpenBox) -> None:
    """Its arguments arrive as they are."""
    async with open_box() as box:
        result = await box.run(["echo", "a  b", "$HOME", "'"])
        assert result.stdout.text == "a  b $HOME '\n"
        assert (await box.run(["no-such-program"])).exit_code == 127


async def a_call_inherits_environment_and_directory(open_box: OpenBox) -> None:
    """The image's, then the spec's, then its own."""
    async with open_box(env={"A": "spec", "B": "spec"}, workdir="/tmp") as box:
        result = await box.run("echo $A $B; pwd", env={"B": "call"})
        assert result.stdout.text == "spec call\n/tmp\n"
        await box.write_file("/tmp/below/file", b"")
        assert (await box.run("pwd", cwd="below")).stdout.text == "/tmp/below\n"
        assert (await box.run("pwd", cwd="/")).stdout.text == "/\n"


async def a_call_runs_as_its_user(open_box: OpenBox) -> None:
    """The spec's, or its own."""
    async with open_box(user="1234:1234") as box:
        assert (await box.run("id -u; id -g")).stdout.text == "1234\n1234\n"
        assert (await box.run("id -u", user="0:0")).stdout.text == "0\n"


async def an_unknown_user_is_refused(open_box: OpenBox) -> None:
    """At the start, and for one call."""
    async with open_box() as box:
        await _raises(UserUnknown, box.run("true", user="nobody-has-this-name"))
        assert (await box.run("true")).ok
    await _raises(UserUnknown, _open(open_box(user="nobody-has-this-name")))


async def a_missing_directory_is_refused(open_box: OpenBox) -> None:
    """At the start, and for one call."""
    async with open_box() as box:
        error = await _raises(FileNotFoundError, box.run("true", cwd="/no/such/place"))
        assert error.filename == "/no/such/place"
        await _raises(NotADirectoryError, box.run("true", cwd="/etc/passwd"))
    refusal = await _raises(SandboxStartError, _open(open_box(workdir="/no/such/place")))
    assert "/no/such/place" in str(refusal)


async def what_no_process_takes_is_refused_before_it_is_sent(open_box: OpenBox) -> None:
    """With Python's own errors."""
    async with open_box() as box:
        await _raises(ValueError, box.run("echo \0"))
        await _raises(ValueError, box.run([]))
        await _raises(ValueError, box.run("true", env={"A": "\0"}))
        await _raises(ValueError, box.run("true", timeout=0))
        await _raises(ValueError, box.run(["echo", "x" * 200_000]))
        await _raises(ValueError, box.run("true", output_limit=-1))
        await _raises(TypeError, box.run(b"true"))  # type: ignore[arg-type]
        assert (await box.run("true")).ok


async def a_long_command_runs(open_box: OpenBox) -> None:
    """Beyond what the kernel takes as an argument."""
    async with open_box() as box:
        script = "#" * 5_000_000 + "\necho done; exit 7"
        result = await box.run(script)
        assert (result.exit_code, result.stdout.text) == (7, "done\n")


async def a_timeout_kills_and_spares_the_sandbox(open_box: OpenBox) -> None:
    """What was printed before is kept."""
    async with open_box() as box:
        began = time.monotonic()
        result = await box.run("echo before; sleep 100", timeout=0.3)
        assert (result.status, result.exit_code) == ("timed_out", 124), result
        assert result.stdout.text == "before\n"
        assert time.monotonic() - began < 10
        assert (await box.run("echo next")).stdout.text == "next\n"


async def a_cancelled_call_is_dead_when_its_caller_goes_on(open_box: OpenBox) -> None:
    """And the sandbox serves the next one."""
    async with open_box() as box:
        with anyio.move_on_after(0.3) as scope:
            await box.run("sleep 3; echo alive > /tmp/alive")
        assert scope.cancelled_caught
        await anyio.sleep(3)
        assert (await box.run("test -e /tmp/alive")).exit_code == 1


async def calls_run_side_by_side(open_box: OpenBox) -> None:
    """A slow one delays no other."""
    async with open_box() as box:
        done: list[str] = []

        async def call(seconds: float, name: str) -> None:
            result = await box.run(f"sleep {seconds}; echo {name}")
            done.append(result.stdout.text.strip())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, 1, "slow")
            for number in range(8):
                tasks.start_soon(call, 0, f"quick{number}")
        assert done[-1] == "slow"
        assert sorted(done[:-1]) == [f"quick{number}" for number in range(8)]


async def a_background_child_delays_nothing(open_box: OpenBox) -> None:
    """It goes on, and is told."""
    async with open_box() as box:
        began = time.monotonic()
        result = await box.run("sleep 30 & echo done")
        assert result.stdout.text == "done\n"
        assert result.background
        assert time.monotonic() - began < 10
        assert not (await box.run("true")).background


async def stdin_is_sent_and_closed(open_box: OpenBox) -> None:
    """From bytes, text, or as it comes; without it there is none."""
    async with open_box() as box:
        assert (await box.run("cat", stdin=b"a\xff")).stdout.data == b"a\xff"
        assert (await box.run("cat", stdin="text")).stdout.data == b"text"
        assert (await box.run("cat")).stdout.data == b""
        assert (await box.run("wc -c", stdin=bytes(LARGE))).stdout.text.strip() == str(LARGE)
        assert (await box.run("cat", stdin=_pieces(b"one ", b"two"))).stdout.data == b"one two"
        assert (await box.run("wc -c", stdin=_pieces(*[bytes(100_000)] * 20))).stdout.text.strip() == "2000000"


async def stdin_that_nobody_reads_holds_nothing_up(open_box: OpenBox) -> None:
    """Neither at once nor as it comes."""
    async with open_box() as box:
        assert (await box.run("true", stdin=bytes(LARGE))).ok
        assert (await box.run("true", stdin=_pieces(*[bytes(100_000)] * 20))).ok
        assert (await box.run("true", stdin=_endless())).ok


async def a_failing_source_of_stdin_is_its_callers(open_box: OpenBox) -> None:
    """Its exception comes out, and the command is dead."""

    async def source() -> AsyncIterator[bytes]:
        yield b"first"
        raise LookupError("no more")

    async with open_box() as box:
        await _raises(LookupError, box.run("cat", stdin=source()))
        assert (await box.run("true")).ok


async def truncation_is_honest(open_box: OpenBox) -> None:
    """Head, tail and the exact total."""
    async with open_box() as box:
        result = await box.run(r"printf '0123456789abcdefghij'", output_limit=10)
        assert result.stdout.head == b"0123"
        assert result.stdout.tail == b"efghij"
        assert result.stdout.total_bytes == 20
        assert result.stdout.omitted_bytes == 10
        exact = await box.run("printf 0123456789", output_limit=10)
        assert exact.stdout.data == b"0123456789"
        assert not exact.stdout.truncated
        nothing = await box.run("echo text", output_limit=0)
        assert (nothing.stdout.data, nothing.stdout.total_bytes) == (b"", 5)


async def a_flood_is_bounded(open_box: OpenBox) -> None:
    """And counted to the last byte."""
    async with open_box() as box:
        result = await box.run("head -c 20000000 /dev/zero", output_limit=100_000)
        assert result.stdout.total_bytes == 20_000_000
        assert len(result.stdout.data) == 100_000


async def output_can_be_watched(open_box: OpenBox) -> None:
    """By a function or a coroutine function; all of it, while the command runs."""
    async with open_box() as box:
        seen: dict[StreamName, bytes] = {"stdout": b"", "stderr": b""}
        at: list[float] = []

        def watch(stream: StreamName, data: bytes) -> None:
            at.append(time.monotonic())
            seen[stream] += data

        result = await box.run("echo out; echo err >&2; sleep 1; echo end", on_output=watch)
        assert seen == {"stdout": b"out\nend\n", "stderr": b"err\n"}
        assert result.stdout.data == seen["stdout"]
        assert at[-1] - at[0] > 0.5
        total = 0

        async def count(_stream: StreamName, data: bytes) -> None:
            nonlocal total
            total += len(data)

        await box.run(f"head -c {LARGE} /dev/zero", on_output=count)
        assert total == LARGE


async def a_slow_watcher_stalls_its_own_command_only(open_box: OpenBox) -> None:
    """Whatever that one prints."""
    async with open_box() as box:
        blocked = anyio.Event()

        async def never(_stream: StreamName, _data: bytes) -> None:
            blocked.set()
            await anyio.sleep_forever()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: box.run("yes", timeout=None, on_output=never))
            await blocked.wait()
            for _ in range(5):
                assert (await box.run(f"head -c {LARGE} /dev/zero")).stdout.total_bytes == LARGE
            tasks.cancel_scope.cancel()
        assert (await box.run("true")).ok


async def a_failing_watcher_ends_its_command(open_box: OpenBox) -> None:
    """Its exception comes out."""

    def watch(_stream: StreamName, _data: bytes) -> None:
        raise LookupError("seen enough")

    async with open_box() as box:
        await _raises(LookupError, box.run("echo now; sleep 2; echo alive > /tmp/alive", on_output=watch))
        await anyio.sleep(2.5)
        assert (await box.run("test -e /tmp/alive")).exit_code == 1


async def output_can_be_iterated(open_box: OpenBox) -> None:
    """And the result is there afterwards; whoever leaves early ends the command."""
    async with open_box() as box:
        async with box.stream("echo out; echo err >&2; exit 5") as running:
            chunks = [chunk async for chunk in running]
        assert b"".join(chunk.data for chunk in chunks if chunk.stream == "stdout") == b"out\n"
        assert b"".join(chunk.data for chunk in chunks if chunk.stream == "stderr") == b"err\n"
        assert running.result.exit_code == 5
        async with box.stream("yes", timeout=None) as running:
            async for _chunk in running:
                break
        assert running.result.status == "killed"
        assert (await box.run("true")).ok


async def files_go_in_and_come_out(open_box: OpenBox) -> None:
    """Small and large, with their modes, parents made."""
    async with open_box() as box:
        for content in (b"", b"text\n", bytes(range(256)) * 8192):
            await box.write_file("/tmp/new/place/file", content)
            assert await box.read_file("/tmp/new/place/file") == content
        await box.write_file("/tmp/tool", "#!/bin/sh\n", mode=0o750)
        await box.write_file("/tmp/tool", "#!/bin/sh\nexit 3\n")
        assert (await box.run("stat -c %a /tmp/tool")).stdout.text == "750\n"
        await box.run("echo printed > /tmp/printed")
        assert await box.read_file("/tmp/printed") == b"printed\n"


async def relative_paths_begin_at_the_working_directory(open_box: OpenBox) -> None:
    """As a command's do."""
    async with open_box(workdir="/tmp") as box:
        await box.write_file("here", b"1")
        assert await box.read_file("/tmp/here") == b"1"
        assert await box.read_file("./here") == b"1"


async def file_errors_are_pythons_own(open_box: OpenBox) -> None:
    """With the path; what Python has no error for has one of ours."""
    async with open_box() as box:
        error = await _raises(FileNotFoundError, box.read_file("/no/such/file"))
        assert error.filename == "/no/such/file"
        await _raises(IsADirectoryError, box.read_file("/tmp"))
        await _raises(NotADirectoryError, box.read_file("/etc/passwd/x"))
        await _raises(NotAFile, box.read_file("/dev/null"))
        await box.write_file("/tmp/ten", b"0123456789")
        await _raises(FileTooLarge, box.read_file("/tmp/ten", max_bytes=9))
        assert await box.read_file("/tmp/ten", max_bytes=10) == b"0123456789"
        await _raises(IsADirectoryError, box.write_file("/tmp", b""))
        await _raises(UserUnknown, box.read_file("/tmp/ten", user="nobody-has-this-name"))
        await _raises(ValueError, box.read_file("/tmp/\0"))


async def file_calls_are_the_users(open_box: OpenBox) -> None:
    """No file that he may not reach, not through a link either."""
    async with open_box(user="1000:1000") as box:
        await box.write_file("/tmp/private", b"secret", mode=0o600, user="0:0")
        await _raises(PermissionError, box.read_file("/tmp/private"))
        await box.run("ln -s /tmp/private /tmp/link")
        await _raises(PermissionError, box.read_file("/tmp/link"))
        await _raises(PermissionError, box.write_file("/etc/new", b""))


async def trees_go_in_and_come_out(open_box: OpenBox) -> None:
    """Directories, files with modes and times, links as links; a link that leads out stays behind."""
    with TemporaryDirectory() as folder:
        local = Path(folder, "tree")
        (local / "sub" / "empty").mkdir(parents=True)
        (local / "sub" / "file").write_bytes(b"x" * 300_000)
        (local / "tool").write_text("#!/bin/sh\n")
        (local / "tool").chmod(0o755)
        (local / "sub" / "up").symlink_to("../tool")
        (local / "out").symlink_to("/etc/passwd")
        async with open_box() as box:
            await box.upload(local, "/tmp/tree")
            assert (await box.run("stat -c %a /tmp/tree/tool")).stdout.text == "755\n"
            assert (await box.run("readlink /tmp/tree/out")).stdout.text == "/etc/passwd\n"
            result = await box.download("/tmp/tree", Path(folder, "back"))
            await box.upload(local / "tool", "/tmp/one")
            await box.download("/tmp/one", Path(folder, "one"))
            await _raises(FileNotFoundError, box.download("/tmp/none", Path(folder, "none")))
            await _raises(FileTooLarge, box.download("/tmp/tree", Path(folder, "none"), max_bytes=1000))
        back = Path(folder, "back")
        assert (result.files, result.bytes, result.left_out) == (2, 300_010, ("out",))
        assert (back / "sub" / "file").read_bytes() == b"x" * 300_000
        assert (back / "sub" / "empty").is_dir()
        assert (back / "sub" / "up").readlink() == Path("../tool")
        assert (back / "tool").stat().st_mode & 0o777 == 0o755
        assert abs((back / "tool").stat().st_mtime - (local / "tool").stat().st_mtime) < 2
        assert (back.parent / "one").read_text() == "#!/bin/sh\n"
        assert sorted(path.name for path in back.parent.iterdir()) == ["back", "one", "tree"]


async def a_reset_kills_everything(open_box: OpenBox) -> None:
    """Calls that run are told, files stay."""
    async with open_box() as box:
        await box.write_file("/tmp/stays", b"")
        results: list[ExecResult] = []

        async def call() -> None:
            results.append(await box.run("sleep 100"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await box.run("sleep 100 & true")
            await anyio.sleep(0.3)
            await box.reset()
        assert [result.status for result in results] == ["killed"], results
        assert results[0].reason
        assert (await box.run("test -e /tmp/stays")).ok


async def a_closed_sandbox_says_so(open_box: OpenBox) -> None:
    """To each call, also to one that still ran."""
    outcome: list[type[BaseException]] = []

    async def call(box: Sandbox) -> None:
        try:
            await box.run("sleep 100")
        except SandboxClosed as error:
            outcome.append(type(error))

    async with anyio.create_task_group() as tasks:
        async with open_box() as box:
            assert not box.closed
            tasks.start_soon(call, box)
            await box.run("true")
    assert box.closed
    assert outcome == [SandboxClosed]
    await _raises(SandboxClosed, box.run("true"))
    await _raises(SandboxClosed, box.read_file("/etc/passwd"))
    await _raises(SandboxClosed, box.reset())


async def an_exception_of_the_block_comes_out_as_it_is(open_box: OpenBox) -> None:
    """In no group, whatever tasks the sandbox has."""
    with _raising(LookupError):
        async with open_box() as box:
            await box.run("true")
            raise LookupError


async def _raises(kind: type[Error], call: Awaitable[object]) -> Error:
    try:
        await call
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised")


@contextmanager
def _raising(kind: type[BaseException]) -> Iterator[None]:
    try:
        yield
    except kind:
        return
    raise AssertionError(f"no {kind.__name__} was raised")


async def _open(opening: AbstractAsyncContextManager[Sandbox]) -> None:
    async with opening:
        pass


async def _pieces(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        await anyio.lowlevel.checkpoint()
        yield piece


async def _endless() -> AsyncIterator[bytes]:
    while True:
        await anyio.sleep(0.01)
        yield b"more\n"


CONTRACT: tuple[Behaviour, ...] = (
    an_exit_code_comes_back,
    a_signal_is_told,
    streams_are_kept_apart,
    merged_streams_keep_their_order,
    each_call_has_a_fresh_shell,
    an_argv_needs_no_shell,
    a_call_inherits_environment_and_directory,
    a_call_runs_as_its_user,
    an_unknown_user_is_refused,
    a_missing_directory_is_refused,
    what_no_process_takes_is_refused_before_it_is_sent,
    a_long_command_runs,
    a_timeout_kills_and_spares_the_sandbox,
    a_cancelled_call_is_dead_when_its_caller_goes_on,
    calls_run_side_by_side,
    a_background_child_delays_nothing,
    stdin_is_sent_and_closed,
    stdin_that_nobody_reads_holds_nothing_up,
    a_failing_source_of_stdin_is_its_callers,
    truncation_is_honest,
    a_flood_is_bounded,
    output_can_be_watched,
    a_slow_watcher_stalls_its_own_command_only,
    a_failing_watcher_ends_its_command,
    output_can_be_iterated,
    files_go_in_and_come_out,
    relative_paths_begin_at_the_working_directory,
    file_errors_are_pythons_own,
    file_calls_are_the_users,
    trees_go_in_and_come_out,
    a_reset_kills_everything,
    a_closed_sandbox_says_so,
    an_exception_of_the_block_comes_out_as_it_is,
)
"""Each is named after what it says of a sandbox."""
