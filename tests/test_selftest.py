"""The selftest itself: it passes where all is well, and each of its checks fails when what it checks is broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any
from uuid import uuid4

import pytest

from sandbox import Network, Output, Sandbox, SandboxSpec
from sandbox.owner import Owner
from sandbox.plan import NAME_PREFIX, ROLE
from sandbox.selftest import latency, leak
from sandbox.selftest.__main__ import main
from sandbox.selftest.check import Context
from sandbox.selftest.checks import CHECKS
from sandbox.selftest.episode import INSTALL
from sandbox.selftest.run import run_check
from tests.dockerd import Entry
from tests.real_engine import MARKS, MINIMAL, PRIVATE

pytest_plugins = ["tests.engine_fixtures"]
pytestmark = MARKS

HAS_ATROPOS = find_spec("atroposlib") is not None
NAMES = [check.name for check in CHECKS]


@pytest.fixture
def anyio_backend():
    return "asyncio"


def selftest(*words, program=None, **environ):
    start = ["-c", program] if program else ["-m", "sandbox.selftest"]
    return subprocess.run(
        [sys.executable, *start, *words],
        env={**os.environ, "COLUMNS": "200", **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


class TestRun:
    def test_every_promise_holds_here(self):
        done = selftest("--json")
        report = json.loads(done.stdout)
        failed = [check for check in report["checks"] if check["outcome"] == "failed"]
        assert not failed
        assert (done.returncode, report["ok"], report["image"]) == (0, True, MINIMAL)
        assert report["host"]
        assert [check["name"] for check in report["checks"]] == NAMES
        skipped = {check["name"] for check in report["checks"] if check["outcome"] == "skipped"}
        assert skipped <= (set() if HAS_ATROPOS else {"episode"})
        for check in report["checks"]:
            assert set(check) == {"name", "promise", "outcome", "seconds", "detail", "expected", "remedy"}
            assert check["detail"] and check["promise"]
            assert check["seconds"] >= 0

    def test_for_a_person_it_is_a_table_and_a_verdict(self):
        done = selftest("--only", "start", "--only", "network")
        assert (done.returncode, done.stderr) == (0, "")
        assert "lo alone" in done.stdout
        assert "All promises hold on this host: 2 passed." in done.stdout
        assert "fork-bomb" not in done.stdout

    def test_only_some(self):
        done = selftest("--json", "--only", "shell", "--only", "image")
        report = json.loads(done.stdout)
        assert [check["name"] for check in report["checks"]] == ["image", "shell"]
        assert done.returncode == 0

    def test_a_check_that_there_is_not(self, capsys):
        with pytest.raises(SystemExit) as caught:
            main(["--only", "no-such-check"])
        assert caught.value.code == 2
        assert "fork-bomb" in capsys.readouterr().err  # the names that there are

    @pytest.mark.parametrize("words", [["--json"], []])
    def test_without_an_engine_the_first_check_says_so(self, words, tmp_path):
        done = selftest(*words, DOCKER_HOST=f"unix://{tmp_path}/none.sock")
        assert (done.returncode, done.stderr) == (1, "")
        assert "Traceback" not in done.stdout
        if not words:
            assert "Not every promise holds on this host: 1 failed." in done.stdout
            return
        report = json.loads(done.stdout)
        assert report["ok"] is False
        (only,) = report["checks"]
        assert (only["name"], only["outcome"]) == ("engine", "failed")
        assert "no such socket" in only["detail"] and "start one or set DOCKER_HOST" in only["detail"]
        assert only["expected"] and only["remedy"]

    def test_with_an_image_that_is_not_there(self):
        done = selftest("--json", "--image", f"{PRIVATE}-nowhere:latest", "--only", "engine", "--only", "start")
        assert (done.returncode, done.stderr) == (1, "")
        engine, start = json.loads(done.stdout)["checks"]
        assert (engine["outcome"], start["outcome"]) == ("passed", "failed")
        assert "build it" in start["detail"]
        assert start["expected"] and start["remedy"]

    def test_without_atroposlib_the_episode_is_skipped_with_the_way_to_have_it(self):
        program = (
            "import sys; sys.modules['atroposlib'] = None; from sandbox.selftest.__main__ import main; sys.exit(main())"
        )
        done = selftest("--json", "--only", "episode", program=program)
        assert (done.returncode, done.stderr) == (0, "")
        (only,) = json.loads(done.stdout)["checks"]
        assert only["outcome"] == "skipped"
        assert INSTALL in only["detail"]

    def test_the_package_alone_imports_nothing_of_the_agent(self):
        program = (
            "import sys, sandbox.selftest.__main__; "
            "print([name for name in sys.modules if name.split('.')[0] in ('agent', 'atroposlib', 'transformers')])"
        )
        assert selftest(program=program).stdout == "[]\n"


class BrokenSandbox(Sandbox):
    """A real sandbox; a subclass really breaks one of its promises."""

    docker: Any = None

    @classmethod
    def around(cls, box: Sandbox, docker: Any) -> BrokenSandbox:
        broken = cls.__new__(cls)
        vars(broken).update(vars(box))
        broken.docker = docker
        return broken

    def exec(self, command: str, user: str = "0:0", *, detach: bool) -> tuple[int | None, bytes]:
        """Beside the guest, by the engine's own exec: nobody ends what it leaves."""
        config = {"Cmd": ["/bin/sh", "-c", command], "User": user, "AttachStdout": not detach, "Tty": True}
        made = self.docker.request("POST", f"/containers/{self.container_id}/exec", config)["Id"]
        output = self.docker.request("POST", f"/exec/{made}/start", {"Detach": detach, "Tty": True})
        output = output if isinstance(output, bytes) else str(output).encode()
        return self.docker.request("GET", f"/exec/{made}/json")["ExitCode"], output


class KeepsState(BrokenSandbox):
    async def run(self, command, **how):
        script = f"[ ! -e /tmp/state ] || . /tmp/state\n{command}\nstatus=$?\nexport -p >/tmp/state\nexit $status"
        return await super().run(script, **how)


class ManglesExitCodes(BrokenSandbox):
    async def run(self, command, **how):
        return await super().run(f"({command}) || exit 1" if isinstance(command, str) else command, **how)


class CutsOutput(BrokenSandbox):
    async def run(self, command, **how):
        return await super().run(f"{{ {command}; }} | head -c 100000", **how)


class LosesTheEnd(BrokenSandbox):
    """It cuts, and says that nothing was cut."""

    async def run(self, command, **how):
        result = await super().run(command, **how)
        return replace(result, stdout=Output(head=result.stdout.head, total_bytes=len(result.stdout.head)))


class WaitsForChildren(BrokenSandbox):
    async def run(self, command, **how):
        return await super().run(f"{command}\nwait", **{**how, "timeout": 3})


class IgnoresModes(BrokenSandbox):
    async def write_file(self, path, data, **how):
        await super().write_file(path, data, **{**how, "mode": None})


class ReadsAsRoot(BrokenSandbox):
    async def read_file(self, path, **how):
        return await super().read_file(path, **{**how, **({"user": "0:0"} if "user" in how else {})})


class LeavesSurvivors(BrokenSandbox):
    async def run(self, command, **how):
        if how.get("timeout") != 1:
            return await super().run(command, **how)
        self.exec(command, "1000", detach=True)
        return await super().run("sleep 100", **how)


class LeavesTheBomb(BrokenSandbox):
    async def run(self, command, **how):
        if "bomb" not in command:
            return await super().run(command, **how)
        self.exec(command, "65534:65534", detach=True)
        return await super().run("while :; do :; done", **how)


class HidesHogs(BrokenSandbox):
    """The hog is stopped by a limit of its own, so nobody sees that memory ran out."""

    async def run(self, command, **how):
        return await super().run(f"ulimit -v 40000; {command}", **how)


class Slow(BrokenSandbox):
    async def run(self, command, **how):
        return await super().run("sleep 1" if command == "true" else command, **how)


class Amnesic(BrokenSandbox):
    """What the agent's tools write goes elsewhere."""

    async def run(self, command, **how):
        result = await super().run(command, **how)
        await super().run("rm -f /tmp/sum.txt", user="0:0")
        return result


class Sabotaged(Context):
    """The checks' context, with sandboxes that are broken, or of another spec than they ask for."""

    def __init__(self, engine, image=MINIMAL, *, kind=None, docker=None, **changes):
        super().__init__(engine, image)
        self._kind = kind
        self._docker = docker
        self._changes = changes

    def spec(self, **changes: Any) -> SandboxSpec:
        return super().spec(**{**changes, **self._changes})

    @asynccontextmanager
    async def sandbox(self, **changes: Any):
        async with super().sandbox(**changes) as box:
            yield self._kind.around(box, self._docker) if self._kind else box


async def finding(name, context):
    (check,) = [check for check in CHECKS if check.name == name]
    return await run_check(check, context)


def assert_failed(found, *words):
    """It says what was seen, what was expected and what to do."""
    assert found.outcome == "failed", found
    assert found.detail and found.expected and found.remedy, found
    assert found.remedy.endswith(".")
    for word in words:
        assert word in f"{found.detail} | {found.expected} | {found.remedy}", found


class TestSabotage:
    @pytest.mark.parametrize(
        "name, kind, words",
        [
            ("shell", KeepsState, ("state of an earlier call", "kept", "unset")),
            ("exit-codes", ManglesExitCodes, ("exit 42", "('exited', 1)", "('exited', 42)")),
            ("flood", CutsOutput, ("bytes written", "100000", "50000004")),
            ("flood", LosesTheEnd, ("bytes written", "50000004")),
            ("background", WaitsForChildren, ("background children", "timed_out", "exited")),
            ("files", IgnoresModes, ("mode", "-rw-r--r--", "-rw-r-----")),
            ("files", ReadsAsRoot, ("a link to root's file", "its bytes", "PermissionError")),
            ("survivors", LeavesSurvivors, ("survivors", "(0, 0)")),
            ("fork-bomb", LeavesTheBomb, ("call", "refused")),
            ("memory-hog", HidesHogs, ("the hog's status", "exited", "out_of_memory")),
        ],
        ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", ""),
    )
    async def test_a_broken_promise_is_found(self, real_engine, docker, name, kind, words):
        found = await finding(name, Sabotaged(real_engine, kind=kind, docker=docker))
        assert_failed(found, *words)

    async def test_a_slow_call(self, real_engine, docker, monkeypatch):
        monkeypatch.setattr(latency, "ROUNDS", 1)
        monkeypatch.setattr(latency, "CALLS", 5)
        found = await finding("latency", Sabotaged(real_engine, kind=Slow, docker=docker))
        assert_failed(found, "a call's median time", "less than docker exec")

    @pytest.mark.parametrize("name", ["shell", "exit-codes", "background", "files", "network"])
    async def test_the_same_sandbox_unbroken_passes(self, real_engine, docker, name):
        """So it is the sabotage that fails, and not the way it is made."""
        found = await finding(name, Sabotaged(real_engine, kind=BrokenSandbox, docker=docker))
        assert found.outcome == "passed", found

    @pytest.mark.parametrize(
        "name, changes, words",
        [
            ("network", {"network": Network.OPEN}, ("interfaces that are up", "[]", "network='none'")),
            ("escape", {"capabilities": "docker"}, ("give a file away as 0:0", "it worked", "'minimal'")),
            ("start", {"workdir": "/missing"}, ("SandboxStartError", "create it")),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    async def test_a_spec_without_its_walls_is_found(self, real_engine, name, changes, words):
        found = await finding(name, Sabotaged(real_engine, **changes))
        assert_failed(found, *words)

    async def test_a_shell_that_is_none(self, real_engine, make_hand_image, busybox):
        shell = {"bin/busybox": Entry(busybox), "bin/sh": Entry(b"#!/bin/busybox echo\n")}
        image = make_hand_image("odd-shell", {**shell, "tmp/.keep": Entry()})
        found = await finding("shell", Context(real_engine, image))
        assert_failed(found, "POSIX shell")

    async def test_an_image_that_is_gone(self, real_engine):
        found = await finding("image", Context(real_engine, f"{PRIVATE}-nowhere:latest"))
        assert_failed(found, "ImageUnavailable", "build it")

    async def test_an_engine_that_cannot_limit(self, real_engine):
        class Limitless:
            info = replace(real_engine.info, pids_limit=False)

        found = await finding("engine", Context(Limitless(), MINIMAL))  # type: ignore[arg-type]
        assert_failed(found, "can limit pids", "True", "cgroup controller")

    async def test_a_container_that_stays(self, real_engine, docker):
        """One that looks like ours, made outside and left."""
        left = docker.create(
            f"{NAME_PREFIX}{uuid4().hex}",
            {"Image": MINIMAL, "Labels": {**Owner.current().labels(), ROLE: "sandbox"}},
        )
        info = docker.inspect(left)

        class Stays(BrokenSandbox):
            container_id = info["Id"]

        try:
            found = await finding("start", Sabotaged(real_engine, kind=Stays, docker=docker))
        finally:
            docker.remove(left)
        assert_failed(found, "containers left after the block", info["Id"], "sandbox sweep")

    async def test_a_controller_whose_container_outlives_it(self, real_engine, docker, monkeypatch):
        """It starts one as anybody does, with the engine and without a guest."""
        tokens = []

        def command(address, image, token):
            tokens.append(token)
            labels = {**Owner.current().labels(), ROLE: "sandbox", "selftest": token}
            config = {"Image": image, "Cmd": ["sleep", "1000"], "Labels": labels, "NetworkDisabled": True}
            made = docker.create(f"{NAME_PREFIX}{uuid4().hex}", config)
            docker.do(made, "start")
            return [sys.executable, "-c", f"import time; print('opening\\n{made}', flush=True); time.sleep(1000)"]

        monkeypatch.setattr(leak, "victim_command", command)
        monkeypatch.setattr(leak, "GONE_BOUND", 1.0)
        try:
            found = await finding("leak", Context(real_engine, MINIMAL))
        finally:
            for container in docker.containers(f"selftest={tokens[0]}"):
                docker.remove(container["Id"])
        assert_failed(found, "containers of a killed process", "running", "none", "sandbox sweep")

    async def test_a_victim_that_cannot_start(self, real_engine, monkeypatch):
        monkeypatch.setattr(leak, "victim_command", lambda *_: [sys.executable, "-c", "raise SystemExit('no luck')"])
        assert_failed(await finding("leak", Context(real_engine, MINIMAL)), "the victim", "no luck", "an open sandbox")

    @pytest.mark.skipif(not HAS_ATROPOS, reason="needs atroposlib")
    async def test_an_episode_whose_work_is_lost(self, real_engine, docker):
        found = await finding("episode", Sabotaged(real_engine, kind=Amnesic, docker=docker))
        assert_failed(found, "the grade", "0.0", "1.0")

    async def test_a_check_that_breaks_itself_is_a_failure_too(self, real_engine):
        class Breaks(Context):
            def sandbox(self, **changes: Any) -> Any:
                raise ZeroDivisionError("by nobody's plan")

        found = await finding("shell", Breaks(real_engine, MINIMAL))
        assert_failed(found, "ZeroDivisionError: by nobody's plan", "report it")
