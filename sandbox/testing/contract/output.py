"""What a command prints and reads: kept, watched, fed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import anyio
import anyio.lowlevel

from sandbox.exchange import StreamName
from sandbox.testing.contract.base import LARGE, OpenBox, endless, pieces, raises


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
        await raises(LookupError, box.run("echo now; sleep 2; echo alive > /tmp/alive", on_output=watch))
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


async def stdin_is_sent_and_closed(open_box: OpenBox) -> None:
    """From bytes, text, or as it comes; without it there is none."""
    async with open_box() as box:
        assert (await box.run("cat", stdin=b"a\xff")).stdout.data == b"a\xff"
        assert (await box.run("cat", stdin="text")).stdout.data == b"text"
        assert (await box.run("cat")).stdout.data == b""
        assert (await box.run("wc -c", stdin=bytes(LARGE))).stdout.text.strip() == str(LARGE)
        assert (await box.run("cat", stdin=pieces(b"one ", b"two"))).stdout.data == b"one two"
        assert (await box.run("wc -c", stdin=pieces(*[bytes(100_000)] * 20))).stdout.text.strip() == "2000000"


async def stdin_that_nobody_reads_holds_nothing_up(open_box: OpenBox) -> None:
    """Neither at once nor as it comes."""
    async with open_box() as box:
        assert (await box.run("true", stdin=bytes(LARGE))).ok
        assert (await box.run("true", stdin=pieces(*[bytes(100_000)] * 20))).ok
        assert (await box.run("true", stdin=endless())).ok


async def a_failing_source_of_stdin_is_its_callers(open_box: OpenBox) -> None:
    """Its exception comes out, and the command is dead."""

    async def source() -> AsyncIterator[bytes]:
        yield b"first"
        raise LookupError("no more")

    async with open_box() as box:
        await raises(LookupError, box.run("cat", stdin=source()))
        assert (await box.run("true")).ok
