"""What the agent can do to its own sandbox, as root and as a user of no rights.

Each of it is data of the right status; the next call works or says why; other calls go on where that is promised;
and when the sandbox is closed nothing is left.
"""

from __future__ import annotations

import errno
import shutil
import subprocess
import time
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from sandbox import Limits, SandboxExhausted, UserUnknown, open_sandbox
from tests.real_engine import MARKS, assert_one_sentence, compile_static, minimal

pytest_plugins = ["tests.engine_fixtures"]
pytestmark = MARKS

ROOT = "0:0"
AGENT = "agent"
EACH = pytest.mark.parametrize("user", [ROOT, AGENT], ids=["root", "user"])

BOMB = "#!/bin/sh\nwhile :; do setsid /tmp/bomb 2>/dev/null & done\n"


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="session")
def mischief(tmp_path_factory):
    """A program for what a shell can't do."""
    source = Path(__file__).with_name("mischief.c")
    try:
        return compile_static(source, tmp_path_factory.mktemp("mischief") / "mischief").read_bytes()
    except subprocess.CalledProcessError:
        pytest.skip("no compiler here makes a static program")


@pytest.fixture
def opened(real_engine):
    def open_one(**changes):
        return open_sandbox(minimal(**changes), engine=real_engine)

    return open_one


async def assert_well(box, user=None):
    """A call, a file there and back, and a kill work."""
    result = await box.run("echo well", user=user)
    assert (result.status, result.exit_code, result.stdout.text) == ("exited", 0, "well\n"), result
    path = f"/tmp/well-{user}"  # of each user's own, since /tmp is sticky
    await box.write_file(path, b"file", user=user)
    assert await box.read_file(path, user=user) == b"file"
    assert (await box.run("sleep 100", timeout=0.2, user=user)).status == "timed_out"


async def processes(box):
    """The command lines of what lives in the sandbox: neither the guest nor this very question."""
    result = await box.run(["ps", "-o", "stat,args"], user=ROOT)
    lines = [line.split(None, 1) for line in result.stdout.text.splitlines()[1:]]
    return [args for state, args in lines if "Z" not in state and "/guest" not in args and not args.startswith("ps ")]


@asynccontextmanager
async def beside(box, command, **how):
    """Another call that runs meanwhile; it has ended when the block has."""
    results = []

    async def run():
        results.append(await box.run(command, **how))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await anyio.sleep(0.2)
        yield results


class TestItsSupervisor:
    async def test_root_kills_it(self, opened):
        async with opened() as box:
            async with beside(box, "sleep 1; echo unharmed") as other:
                result = await box.run("sleep 1000 & setsid sleep 1000 & kill -9 $PPID; sleep 1000", user=ROOT)
                assert (result.status, result.exit_code) == ("killed", 137)
                assert "supervisor" in result.reason
            assert other[0].stdout.text == "unharmed\n"
            assert await processes(box) == []
            await assert_well(box)

    async def test_root_kills_everything(self, opened):
        async with opened() as box:
            async with beside(box, "sleep 100", timeout=30) as other:
                result = await box.run("kill -9 -1; echo alive", user=ROOT)
                assert result.status == "killed"
            assert other[0].status == "killed"
            await assert_well(box)

    async def test_root_stops_it(self, opened):
        """PID 1 keeps the deadline itself."""
        async with opened() as box:
            async with beside(box, "sleep 2; echo unharmed", timeout=30) as other:
                result = await box.run("sleep 1000 & kill -STOP $PPID; sleep 1000", user=ROOT, timeout=0.5)
                assert (result.status, result.exit_code, result.survivors) == ("timed_out", 124, 0)
            assert other[0].stdout.text == "unharmed\n"
            assert await processes(box) == []
            await assert_well(box)

    async def test_a_stopped_one_does_not_keep_a_cancelled_caller(self, opened):
        async with opened() as box:
            began = time.monotonic()
            with anyio.move_on_after(0.5):
                await box.run("kill -STOP $PPID; exit", user=ROOT, timeout=None)
            assert time.monotonic() - began < 15
            await assert_well(box)

    async def test_a_user_can_do_neither(self, opened):
        async with opened() as box:
            result = await box.run("kill -9 $PPID; kill -STOP $PPID; kill -9 1; kill -STOP 1; echo alive")
            assert (result.status, result.stdout.text) == ("exited", "alive\n")
            assert result.stderr.text.count("not permitted") == 4
            await assert_well(box)

    async def test_a_user_kills_all_that_he_may(self, opened):
        """His own other calls end by his own signal, root's go on."""
        async with opened() as box:
            async with beside(box, "sleep 1; echo unharmed", user=ROOT) as roots:
                async with beside(box, "sleep 100") as own:
                    result = await box.run("kill -9 -1; echo alive")
                    assert (result.status, result.stdout.text) == ("exited", "alive\n")
                assert (own[0].status, own[0].signal) == ("signaled", 9)
            assert roots[0].stdout.text == "unharmed\n"
            await assert_well(box)

    @EACH
    async def test_its_limits_cannot_be_touched(self, opened, mischief, user):
        async with opened() as box:
            await box.write_file("/tmp/mischief", mischief, mode=0o755, user=ROOT)
            result = await box.run("/tmp/mischief limits", user=user)
            assert set(result.stdout.text.splitlines()) == {
                "guest: Operation not permitted",
                "supervisor: Operation not permitted",
            }
            await assert_well(box, user)


class TestProcesses:
    @EACH
    async def test_children_at_the_limit(self, opened, user):
        async with opened(limits=Limits(pids=32)) as box:
            first = await box.run("while :; do sleep 1000 & done", user=user)
            assert (first.status, first.background) == ("exited", True)
            assert "fork" in first.stderr.text
            for _ in range(2):
                result = await box.run("echo well")
                assert (result.status, result.exit_code) == ("refused", 125)
                assert "pids limit" in result.reason
            await box.reset()
            assert await processes(box) == []
            await assert_well(box, user)

    @EACH
    async def test_a_fork_bomb(self, opened, user):
        async with opened(limits=Limits(pids=64), workdir="/") as box:
            await box.write_file("/tmp/bomb", BOMB, mode=0o755, user=ROOT)
            result = await box.run("trap '' TERM; /tmp/bomb & while :; do :; done", timeout=1, user=user)
            assert (result.status, result.survivors) == ("timed_out", 0)
            assert await processes(box) == []
            await assert_well(box, user)

    @EACH
    async def test_a_fork_bomb_that_is_left_behind(self, opened, user):
        async with opened(limits=Limits(pids=64), workdir="/") as box:
            await box.write_file("/tmp/bomb", BOMB, mode=0o755, user=ROOT)
            first = await box.run("/tmp/bomb &", user=user)
            assert first.status == "exited"
            result = await box.run("echo well", timeout=10)
            assert result.status in ("refused", "exited")
            await box.reset()
            assert await processes(box) == []
            await assert_well(box, user)

    async def test_a_fork_bomb_beside_another_users_call(self, opened):
        """The user's own uid is swept, and nobody else's; who may have been hit is told."""
        async with opened(limits=Limits(pids=64), workdir="/") as box:
            await box.write_file("/tmp/bomb", BOMB, mode=0o755, user=ROOT)
            async with beside(box, "sleep 4; echo unharmed", user="1234:1234", timeout=60) as other:
                result = await box.run("trap '' TERM; /tmp/bomb & while :; do :; done", timeout=1)
                assert (result.status, result.survivors) == ("timed_out", 0)
            assert other[0].stdout.text == "unharmed\n" or other[0].collateral

    @EACH
    async def test_many_background_children_of_many_calls(self, opened, user):
        async with opened(limits=Limits(pids=128)) as box:
            for _ in range(30):
                result = await box.run("sleep 1000 & echo started", user=user)
                assert (result.stdout.text, result.background) == ("started\n", True)
            await assert_well(box, user)
            assert len(await processes(box)) == 30
            await box.reset()
            assert await processes(box) == []

    @EACH
    async def test_one_that_takes_no_signal_but_kill(self, opened, user):
        async with opened() as box:
            command = "trap '' 1 2 3 13 14 15 20; kill -STOP $$; while :; do sleep 1; done"
            result = await box.run(command, timeout=0.5, user=user)
            assert (result.status, result.survivors) == ("timed_out", 0)
            assert await processes(box) == []

    @EACH
    async def test_a_reset_ends_what_runs(self, opened, user):
        async with opened() as box:
            async with beside(box, "sleep 1000 & setsid sleep 1000 & sleep 1000", user=user, timeout=60) as running:
                await box.reset()
            assert (running[0].status, running[0].exit_code) == ("killed", 137)
            assert "reset" in running[0].reason
            assert await processes(box) == []
            await assert_well(box, user)


class TestMemory:
    @EACH
    async def test_a_hog(self, opened, user):
        async with opened(limits=Limits(memory="64MiB")) as box:
            async with beside(box, "sleep 1; echo unharmed", user=user) as other:
                result = await box.run("x=0123456789abcdef; while :; do x=$x$x; done", timeout=60, user=user)
                assert result.status == ("out_of_memory" if result.oom_known else "signaled")
            assert (other[0].status, other[0].stdout.text) == ("exited", "unharmed\n")
            await assert_well(box, user)

    @EACH
    @pytest.mark.parametrize("memory", ["16MiB", "64MiB", "512MiB"])
    async def test_a_full_dev_shm(self, opened, user, memory):
        """Its files are memory of the sandbox that no process holds."""
        async with opened(limits=Limits(memory=memory)) as box:
            result = await box.run("cat /dev/zero >/dev/shm/file", timeout=60, user=user)
            assert (result.status, result.exit_code) == ("exited", 1)
            assert "space" in result.stderr.text
            await assert_well(box, user)
            hog = await box.run("x=0123456789abcdef; while :; do x=$x$x; done", timeout=60, user=user)
            assert hog.status == ("out_of_memory" if hog.oom_known else "signaled")
            await assert_well(box, user)

    async def test_every_file_system_in_memory_full_on_a_read_only_root(self, opened):
        async with opened(limits=Limits(memory="32MiB"), read_only=True, tmpfs={"/scratch": 8 << 20}) as box:
            for place in ("/dev/shm", "/tmp", "/scratch"):
                result = await box.run(f"cat /dev/zero >{place}/file", timeout=60)
                assert "space" in result.stderr.text
            assert (await box.run("echo well; head -c 1000000 /dev/zero")).stdout.total_bytes == 1_000_005
            hog = await box.run("x=0123456789abcdef; while :; do x=$x$x; done", timeout=60)
            assert hog.status == ("out_of_memory" if hog.oom_known else "signaled")
            assert (await box.run("rm /tmp/file; echo well")).stdout.text == "well\n"

    @pytest.mark.parametrize("attempt", ["shared-memory 100", "kernel-memory 100"])
    async def test_memory_that_no_process_answers_for(self, opened, mischief, attempt):
        """Here the kernel may be left with nobody to kill but the guest. That is still the command's doing: each run is
        data, and what can't be data says so."""
        async with opened(limits=Limits(memory="48MiB")) as box:
            await box.write_file("/tmp/mischief", mischief, mode=0o755)
            with anyio.fail_after(60):
                result = await box.run(f"/tmp/mischief {attempt}", timeout=30)
                assert result.status in ("out_of_memory", "exited", "signaled", "killed")
                for _ in range(3):
                    result = await box.run("echo well", timeout=10)
                    assert result.status in ("exited", "out_of_memory", "refused", "killed", "signaled")
                try:
                    await box.reset()
                except SandboxExhausted as error:
                    exhausted = error
                else:
                    return
            assert_one_sentence(exhausted, "used up its memory", "Open a new one")
            assert (await box.run("echo well")).status == "out_of_memory"
            with pytest.raises(SandboxExhausted):
                await box.read_file("/etc/passwd")


class TestDisk:
    @EACH
    async def test_a_full_file_system(self, opened, user):
        async with opened(tmpfs={"/small": 1 << 20}) as box:
            result = await box.run("cat /dev/zero >/small/file; echo $?", user=user)
            assert (result.status, result.stdout.text) == ("exited", "1\n")
            with pytest.raises(OSError) as caught:
                await box.write_file("/small/other", bytes(100_000), user=user)
            assert caught.value.errno == errno.ENOSPC
            assert (await box.run("ls /small")).stdout.text == "file\n"
            await assert_well(box, user)

    @EACH
    async def test_below_the_reserve_calls_are_refused(self, opened, user):
        async with opened(disk_reserve=1 << 60) as box:
            result = await box.run("echo well", user=user)
            assert (result.status, result.exit_code, result.stdout.text) == ("refused", 125, "")
            assert "reserve" in result.reason
            with pytest.raises(OSError) as caught:
                await box.write_file("/tmp/file", b"", user=user)
            assert caught.value.errno == errno.ENOSPC
            assert b"agent" in await box.read_file("/etc/passwd", user=user)
            await box.reset()

    async def test_one_that_takes_the_reserve_is_stopped(self, opened, docker):
        folder = docker.request("GET", "/info")["DockerRootDir"]
        if not docker.address.startswith("unix://") or not Path(folder).is_dir():
            pytest.skip("this engine's disk can't be seen from here")
        free = shutil.disk_usage(folder).free
        if free < 4 << 30:
            pytest.skip("too little disk is free here to take some")
        async with opened(disk_reserve=free - (512 << 20)) as box:
            result = await box.run("while :; do cat /dev/zero >>/tmp/large; done", timeout=120)
            assert (result.status, result.exit_code) == ("refused", 125)
            assert "reserve" in result.reason
            again = await box.run("echo well")
            assert again.status == "refused"
        # The space comes back with the container's end, so the next sandbox of that reserve serves.

    async def test_trees_that_are_hard_to_remove(self, opened):
        """Deep, with odd names and no rights; closing the sandbox removes them all (the leak check sees to it)."""
        async with opened() as box:
            name = "x" * 200
            command = (
                f"cd /tmp; i=0; while [ $i -lt 60 ]; do mkdir {name}; cd {name}; i=$((i+1)); done; "
                "cd /tmp; mkdir -- '-rf *' \"$(printf 'a\\nb\\377')\"; touch a; chmod 000 /tmp/a .; mkfifo fifo"
            )
            assert (await box.run(command)).status == "exited"


class TestFiles:
    async def test_root_removes_the_shell(self, opened):
        async with opened() as box:
            await box.run("rm /bin/sh", user=ROOT)
            result = await box.run("echo well")
            assert (result.status, result.exit_code) == ("exited", 127)
            assert result.stderr.text == "/bin/sh: not found\n"
            assert (await box.run(["/bin/busybox", "echo", "well"])).stdout.text == "well\n"
            await box.write_file("/tmp/file", b"here")
            assert await box.read_file("/tmp/file") == b"here"
            await box.reset()
            assert (await box.run(["/bin/busybox", "ln", "-s", "busybox", "/bin/sh"], user=ROOT)).ok
            await assert_well(box)

    async def test_root_removes_everything(self, opened):
        async with opened() as box:
            result = await box.run("cd /; rm -rf /* 2>/dev/null; echo gone", user=ROOT, timeout=60)
            assert result.stdout.text == "gone\n"
            with pytest.raises(FileNotFoundError):
                await box.run("true", user=ROOT)
            result = await box.run("true", user=ROOT, cwd="/")
            assert (result.status, result.exit_code) == ("exited", 127)
            with pytest.raises(UserUnknown):
                await box.run("true")
            await box.write_file("/new/file", b"here", user=ROOT)
            assert await box.read_file("/new/file", user=ROOT) == b"here"

    @pytest.mark.parametrize(
        "trick",
        [
            "mkfifo /etc/passwd",
            "ln -s /dev/zero /etc/passwd",
            "ln -s passwd /etc/passwd",
            "mkdir /etc/passwd",
            "head -c 3000000 /dev/zero >/etc/passwd",
            "printf 'agent' >/etc/passwd",
            "printf 'agent:x:99999999999999:1:::\\n' >/etc/passwd",
        ],
    )
    async def test_root_replaces_the_passwd_file(self, opened, trick):
        """Nothing hangs on it; the name is unknown, a number still serves."""
        async with opened() as box:
            await box.run(f"mv /etc/passwd /etc/kept; {trick}", user=ROOT)
            with anyio.fail_after(20):
                with pytest.raises(UserUnknown):
                    await box.run("true")
                with pytest.raises(UserUnknown):
                    await box.read_file("/etc/group")
                await assert_well(box, "1000:1000")
                await assert_well(box, ROOT)
                await box.run("rm -rf /etc/passwd; mv /etc/kept /etc/passwd", user=ROOT)
            await assert_well(box)

    async def test_root_takes_all_rights_from_the_root_directory(self, opened):
        async with opened() as box:
            await box.run("chmod 000 /", user=ROOT)
            with pytest.raises((UserUnknown, PermissionError)):
                await box.run("true")
            with pytest.raises(PermissionError):
                await box.run("true", user=ROOT)
            with pytest.raises((UserUnknown, PermissionError)):
                await box.read_file("/etc/passwd")
            await box.reset()

    @EACH
    async def test_unmounting(self, opened, user):
        async with opened() as box:
            command = "for m in /proc /dev/shm /dev /sys /.shell-agent-sandbox /; do umount -l $m; umount $m; done; :"
            result = await box.run(command, user=user)
            assert (result.status, result.exit_code) == ("exited", 0)
            assert "not permitted" in result.stderr.text
            assert (await box.run("mount | grep -c shell-agent-sandbox")).stdout.text == "1\n"
            await assert_well(box, user)

    async def test_the_guests_own_file_cannot_be_written(self, opened):
        async with opened() as box:
            result = await box.run("cd /.shell-agent-sandbox; rm guest; echo >guest; touch other; ls -A", user=ROOT)
            assert result.stdout.text == "guest\n"
            assert result.stderr.text.count("Read-only file system") == 3
            await assert_well(box)

    async def test_root_replaces_dev_null(self, opened):
        """A call's stdin is the guest's own handle of the real one."""
        async with opened() as box:
            await box.run("rm /dev/null /dev/zero; echo trap >/dev/null; chmod 000 /dev/null", user=ROOT)
            assert (await box.run("cat; echo end")).stdout.text == "end\n"
            assert (await box.run("cat", stdin=b"input")).stdout.text == "input"
            await assert_well(box)

    @EACH
    async def test_the_working_directory_is_gone(self, opened, user):
        async with opened(workdir="/tmp") as box:
            await box.run("mkdir /workspace/sub; cd /workspace/sub; rmdir /workspace/sub; echo well", user=AGENT)
            with pytest.raises(FileNotFoundError) as caught:
                await box.run("true", cwd="/workspace/sub", user=user)
            assert caught.value.filename == "/workspace/sub"
            await box.run("ln -s /root /workspace/sub", user=AGENT)
            with pytest.raises(PermissionError):
                await box.run("true", cwd="/workspace/sub", user=AGENT)
            await assert_well(box, user)


class TestStreams:
    @EACH
    async def test_children_that_hold_the_output(self, opened, user):
        async with opened() as box:
            began = time.monotonic()
            result = await box.run("(sleep 1000; echo late) & setsid sleep 1000 & echo now", user=user)
            assert time.monotonic() - began < 10
            assert (result.status, result.stdout.text, result.background) == ("exited", "now\n", True)
            await assert_well(box, user)

    @EACH
    async def test_a_flood(self, opened, user):
        async with opened() as box:
            command = "head -c 100000000 /dev/zero | tr '\\0' x; head -c 1000000 /dev/zero >&2; echo end"
            result = await box.run(command, output_limit=10_000, timeout=60, user=user)
            assert (result.status, result.stdout.total_bytes, result.stderr.total_bytes) == (
                "exited",
                100_000_004,
                1_000_000,
            )
            assert (len(result.stdout.head), len(result.stdout.tail)) == (4000, 6000)
            assert result.stdout.tail.endswith(b"xend\n")

    async def test_a_background_flood_harms_nobody(self, opened):
        async with opened() as box:
            result = await box.run("cat /dev/zero & cat /dev/zero >&2 & echo started", timeout=30)
            assert (result.status, result.background) == ("exited", True)
            await assert_well(box)
            await box.reset()
            assert await processes(box) == []

    @EACH
    async def test_closed_descriptors(self, opened, user):
        async with opened() as box:
            result = await box.run("exec 0<&- 1>&- 2>&-; sleep 0.2; exit 3", user=user)
            assert (result.status, result.exit_code, result.stdout.total_bytes) == ("exited", 3, 0)
            result = await box.run("exec 1>&- 2>&-; cat", stdin=b"x" * 1_000_000, user=user)
            assert result.status == "exited"
            await assert_well(box, user)

    @EACH
    async def test_output_that_looks_like_frames(self, opened, user):
        """Whatever a command writes is output: the protocol's own last frame too."""
        fake = "\\034\\000\\000\\000\\023\\000\\000\\000\\001\\000\\000\\000"
        async with opened() as box:
            result = await box.run(f"printf '{fake}'; printf '{fake}' >&2; exit 5", user=user)
            assert (result.status, result.exit_code) == ("exited", 5)
            assert result.stdout.data == result.stderr.data == bytes([28, 0, 0, 0, 19, 0, 0, 0, 1, 0, 0, 0])

    @EACH
    async def test_stdin_that_nobody_reads(self, opened, user):
        async with opened() as box:
            result = await box.run("exit 4", stdin=bytes(5_000_000), user=user)
            assert (result.status, result.exit_code) == ("exited", 4)
            result = await box.run("sleep 100", stdin=bytes(5_000_000), timeout=0.5, user=user)
            assert result.status == "timed_out"
            await assert_well(box, user)

    @EACH
    async def test_all_descriptors_and_all_pipes(self, opened, mischief, user):
        async with opened() as box:
            await box.write_file("/tmp/mischief", mischief, mode=0o755, user=ROOT)
            result = await box.run("/tmp/mischief descriptors", user=user)
            assert result.stdout.text.startswith("descriptors: ")
            result = await box.run("/tmp/mischief pipes 60", user=user)
            assert result.background
            result = await box.run("head -c 3000000 /dev/zero; echo err >&2", user=user)
            assert (result.status, result.stdout.total_bytes, result.stderr.text) == ("exited", 3_000_000, "err\n")
            assert (await box.run("cat", stdin=bytes(300_000), user=user)).stdout.total_bytes == 300_000
            await assert_well(box, user)

    @EACH
    async def test_all_inotify_instances(self, opened, user):
        async with opened() as box:
            result = await box.run(
                "i=0; while [ $i -lt 150 ]; do inotifyd - /tmp & i=$((i+1)); done; sleep 1; :", user=user
            )
            assert result.status == "exited"
            await assert_well(box, user)
            await box.reset()
            assert await processes(box) == []
