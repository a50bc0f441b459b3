"""The engine, the image, a start, and what a command may rely on."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from pathlib import Path

import anyio

from sandbox.errors import FileTooLarge
from sandbox.selftest.check import REPORT, Context, Failed, expect

FLOOD = 50_000_000
FLOOD_LIMIT = 65536
GROWTH_BOUND = 16 * 1024 * 1024


async def engine(context: Context) -> str:
    """The engine can enforce the limits that every sandbox has."""
    info = context.engine.info
    for name, enforced in (("memory", info.memory_limit), ("pids", info.pids_limit), ("cpu", info.cpu_limit)):
        expect(
            f"the engine can limit {name}",
            enforced,
            True,
            remedy=f"Give the engine the {name} cgroup controller (a rootless one: systemd's Delegate=yes).",
        )
    return f"{info.name} {info.version}, {info.storage_driver}, cgroup v{info.cgroup_version}, {info.address}"


async def image(context: Context) -> str:
    """The image is on the engine."""
    facts = await context.engine.image(context.image)
    return f"{context.image}, {facts.architecture}, {facts.id.removeprefix('sha256:')[:12]}"


async def start(context: Context) -> str:
    """A sandbox starts, answers, and is gone afterwards."""
    began = time.perf_counter()
    async with context.sandbox() as box:
        ready = time.perf_counter()
        result = await box.run("echo ready")
        expect("the first call", result.stdout.text, "ready\n", remedy=REPORT)
        name = box.container_id
    closed = time.perf_counter()
    left = [container.id for container in await context.engine.containers() if container.id == name]
    expect("containers left after the block", left, [], remedy="Remove them with `python -m sandbox sweep`.")
    return f"open {1000 * (ready - began):.0f} ms, close and gone {1000 * (closed - ready):.0f} ms"


async def shell(context: Context) -> str:
    """Each call is a fresh POSIX shell."""
    remedy = "Use an image whose /bin/sh is a POSIX shell (dash, busybox ash, bash)."
    async with context.sandbox() as box:
        await box.run("cd /tmp; VARIABLE=kept; export VARIABLE; umask 077; set -f")
        fresh = await box.run('echo "${VARIABLE-unset} $(umask) $(pwd)"; case $- in *f*) echo noglob;; esac')
        home = await box.run("pwd")
        expect("state of an earlier call", fresh.stdout.text, f"unset 0022 {home.stdout.text}", remedy=remedy)
        program = 'set -- a "b c"; cat <<E | tr a-z A-Z; echo $(($# * 21)) "${2#b }" $(printf %s "$1")\nhere $1\nE\n'
        expect("POSIX constructs", (await box.run(program)).stdout.text, "HERE A\n42 c a\n", remedy=remedy)
        apart = await box.run("echo out; echo err >&2")
        expect("two streams", (apart.stdout.text, apart.stderr.text), ("out\n", "err\n"), remedy=REPORT)
        merged = await box.run("echo 1; echo 2 >&2; echo 3", merge_stderr=True)
        expect("merged order", merged.stdout.text, "1\n2\n3\n", remedy=REPORT)
        echoed = await box.run("cat", stdin=b"\x00\xff" * 70_000)
        expect("bytes of stdin seen again", echoed.stdout.data == b"\x00\xff" * 70_000, True, remedy=REPORT)
    return "no state kept; here-documents, arithmetic, parameters, pipes, streams, stdin"


async def exit_codes(context: Context) -> str:
    """Exit codes and signals are told apart and exactly."""
    async with context.sandbox() as box:
        for code in (0, 1, 42, 126, 255):
            result = await box.run(f"exit {code}")
            expect(f"exit {code}", (result.status, result.exit_code), ("exited", code), remedy=REPORT)
        for name, number in (("TERM", 15), ("KILL", 9), ("SEGV", 11)):
            result = await box.run(f"kill -{name} $$")
            seen = (result.status, result.signal, result.exit_code)
            expect(f"kill -{name} $$", seen, ("signaled", number, 128 + number), remedy=REPORT)
        result = await box.run("no-such-command-here")
        expect("an unknown command", (result.status, result.exit_code), ("exited", 127), remedy=REPORT)
        result = await box.run(["no-such-program-here"])
        expect("an unknown program", (result.status, result.exit_code), ("exited", 127), remedy=REPORT)
    return "5 exit codes, 3 signals, 127 for what isn't there"


def _resident_bytes() -> int | None:
    """Of this process; None where there is no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


async def flood(context: Context) -> str:
    """A command that prints without end costs the controller nothing; what was left out is told exactly."""
    command = f"head -c {FLOOD} /dev/zero | tr '\\0' x; echo end"
    async with context.sandbox() as box:
        await box.run("true")
        before = _resident_bytes()
        result = await box.run(command, output_limit=FLOOD_LIMIT, timeout=120)
        after = _resident_bytes()
    out = result.stdout
    expect("bytes written", out.total_bytes, FLOOD + 4, remedy=REPORT)
    expect("bytes kept (head, tail)", (len(out.head), len(out.tail)), (26214, 39322), remedy=REPORT)
    expect("the end of the tail", out.tail[-5:], b"xend\n", remedy=REPORT)
    grown = 0 if before is None or after is None else after - before
    if grown > GROWTH_BOUND:
        raise Failed("memory growth", seen=f"{grown} bytes", expected=f"under {GROWTH_BOUND}", remedy=REPORT)
    return f"{FLOOD / 1e6:.0f} MB printed, 64 KiB kept, controller grew {max(grown, 0) / 2**20:.1f} MiB"


async def background(context: Context) -> str:
    """A call ends when its shell does; its background children go on."""
    async with context.sandbox() as box:
        began = time.perf_counter()
        result = await box.run("(sleep 1; echo late >/tmp/late) & sleep 300 & echo started", timeout=60)
        took = time.perf_counter() - began
        seen = (result.status, result.stdout.text, result.background)
        expect("a call with background children", seen, ("exited", "started\n", True), remedy=REPORT)
        with anyio.move_on_after(30):
            while not (await box.run("cat /tmp/late")).ok:
                await anyio.sleep(0.1)
        late = await box.run("cat /tmp/late")
        expect("what the background child wrote later", late.stdout.text, "late\n", remedy=REPORT)
    return f"answered after {1000 * took:.0f} ms, children went on"


async def files(context: Context) -> str:
    """Files go in and out whole, as the call's user, bounded."""
    content = bytes(range(256)) * 4096
    async with context.sandbox() as box:
        await box.write_file("/tmp/check/file.bin", content, mode=0o640)
        expect("file read back whole", await box.read_file("/tmp/check/file.bin") == content, True, remedy=REPORT)
        listed = await box.run('set -- $(ls -ln /tmp/check/file.bin); echo "$1 $3"; id -u')
        mode, uid, own = listed.stdout.text.split()
        expect("mode", mode[:10], "-rw-r-----", remedy=REPORT)
        expect("owner is the call's user", uid, own, remedy=REPORT)
        try:
            await box.read_file("/tmp/check/file.bin", max_bytes=1000)
        except FileTooLarge:
            pass
        else:
            raise Failed("a file over the bound", seen="its bytes", expected="FileTooLarge", remedy=REPORT)
        await box.run("umask 077; echo secret >/tmp/secret; ln -s /tmp/secret /tmp/link; chmod 777 /tmp", user="0:0")
        try:
            await box.read_file("/tmp/link", user="65534:65534")
        except PermissionError:
            pass
        else:
            raise Failed("a link to root's file", seen="its bytes", expected="PermissionError", remedy=REPORT)
        await _tree_there_and_back(context, box)
    return "1 MiB and a tree there and back; modes, owner, bound, links"


async def _tree_there_and_back(context: Context, box: object) -> None:
    from sandbox.sandbox import Sandbox

    assert isinstance(box, Sandbox)
    with tempfile.TemporaryDirectory() as folder:
        source, back = Path(folder, "source"), Path(folder, "back")
        (source / "sub").mkdir(parents=True)
        (source / "sub" / "script.sh").write_text("#!/bin/sh\necho uploaded\n")
        (source / "sub" / "script.sh").chmod(0o755)
        (source / "link").symlink_to("sub/script.sh")
        await box.upload(source, "/tmp/tree")
        expect("an uploaded script", (await box.run("/tmp/tree/link")).stdout.text, "uploaded\n", remedy=REPORT)
        await box.download("/tmp/tree", back)
        names = sorted(str(path.relative_to(back)) for path in back.rglob("*"))
        expect("the tree that came back", names, ["link", "sub", "sub/script.sh"], remedy=REPORT)


def host() -> str:
    """This machine, in a few words."""
    return f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} cores"
