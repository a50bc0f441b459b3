"""An agent that makes the kernel take its whole sandbox: that is data and scored, and never the host's failure."""

from __future__ import annotations

import errno
import shutil
import subprocess
from pathlib import Path

import pytest

from sandbox import Limits, SandboxExhausted, SandboxSpec, open_sandbox
from sandbox.selftest.checks import DEFAULT_IMAGE

pytestmark = [pytest.mark.engine, pytest.mark.anyio]

ROOT = "0:0"
HOGS = """
echo 1000 >/proc/1/oom_score_adj
hog() { x=0123456789abcdef; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18; do x=$x$x; done; sleep 30; }
for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do hog & done
wait
"""
"""The guest is made the kernel's first choice, as root with SETUID can; no hog is large enough to be worse."""

PRLIMIT = r"""
#include <stdio.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/resource.h>
int main(int argc, char **argv)
{
    struct rlimit one = {1, 1};
    if (argc < 2) return 2;
    for (int resource = 0; resource < 16; resource++)
        if (prlimit(atoi(argv[1]), resource, &one, NULL) == 0 || errno != EPERM) return 1;
    return 0;
}
"""


async def test_a_sandbox_that_its_commands_drove_out_of_memory_is_told_as_data() -> None:
    spec = SandboxSpec(image=DEFAULT_IMAGE, limits=Limits(memory="48MiB"), capabilities="docker")
    async with open_sandbox(spec) as box:
        result = await box.run(HOGS, user=ROOT, cwd="/")
        assert result.status == "out_of_memory"
        assert result.exit_code == 137
        later = await box.run("echo again")
        assert later.status == "out_of_memory"
        assert "memory" in later.reason
        with pytest.raises(SandboxExhausted):
            await box.read_file("/etc/passwd")


@pytest.fixture(scope="module")
def prlimit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here to build the attacker's tool with")
    folder = tmp_path_factory.mktemp("prlimit")
    (folder / "prlimit.c").write_text(PRLIMIT)
    command = [compiler, "-static", "-o", str(folder / "prlimit"), str(folder / "prlimit.c"), "-D_GNU_SOURCE"]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("the C compiler here doesn't link statically")
    return folder / "prlimit"


@pytest.mark.parametrize("target", ["1", "$PPID"], ids=["PID 1", "the supervisor"])
@pytest.mark.parametrize("capabilities", ["minimal", "docker"])
async def test_no_command_can_set_the_limits_of_what_guards_it(prlimit: Path, target: str, capabilities: str) -> None:
    assert errno.EPERM == 1
    async with open_sandbox(SandboxSpec(image=DEFAULT_IMAGE, capabilities=capabilities)) as box:
        await box.write_file("/tmp/prlimit", prlimit.read_bytes(), mode=0o755)
        assert (await box.run(f"/tmp/prlimit {target}", user=ROOT, cwd="/")).exit_code == 0
        assert (await box.run("echo well")).stdout.text == "well\n"
