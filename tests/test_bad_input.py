"""What can't be done says so: a typed error of one sentence that names what to do, and nothing is left of the attempt.

Each class is one line of the list of bad input that the README promises to stand. Faults that come later, from an
engine or a guest that breaks, are in tests/faults.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import anyio
import pytest
from pydantic import ValidationError

from sandbox import (
    EngineUnavailable,
    FileTooLarge,
    ImageUnavailable,
    Limits,
    Mount,
    NotAFile,
    SandboxClosed,
    SandboxSpec,
    SandboxStartError,
    UserUnknown,
    open_sandbox,
)
from sandbox.docker import DockerEngine
from sandbox.docker import api as docker_api
from sandbox.owner import Owner
from sandbox.plan import GUEST_DIR
from sandbox.spec import FORBIDDEN_CAPABILITIES, MIN_PIDS
from tests.dockerd import Entry
from tests.real_engine import MARKS, MINIMAL, PRIVATE, assert_one_sentence, minimal

pytest_plugins = ["tests.engine_fixtures"]
pytestmark = MARKS

ROOT = "0:0"
TIGHTEST = Limits(memory="16MiB", pids=MIN_PIDS)


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def refused(engine, kind, *words, **changes):
    """Opening a sandbox of this spec raises ``kind``, in one sentence with these words."""
    with pytest.raises(kind) as caught:
        async with open_sandbox(SandboxSpec(**{"image": MINIMAL, **changes}), engine=engine):
            pytest.fail("it opened")
    assert_one_sentence(caught.value, *words)
    mine = Owner.current()
    assert not [each.name for each in await engine.containers() if Owner.from_labels(each.labels) == mine]


def invalid(*words, **changes):
    """A spec that nobody can have is refused where it is made, by a line that names the field and what to do."""
    with pytest.raises(ValidationError) as caught:
        SandboxSpec(**{"image": MINIMAL, **changes})
    lines = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in caught.value.errors()]
    assert any(all(word in line for word in words) for line in lines), lines
    assert all("\n" not in line for line in lines)


class TestNoEngine:
    @pytest.mark.parametrize(
        "address, words",
        [
            ("unix:///nowhere/docker.sock", ("no such socket", "start one", "DOCKER_HOST")),
            ("tcp://127.0.0.1:1", ("nobody listens", "start one", "DOCKER_HOST")),
            ("tcp://127.0.0.1", ("names no port", "write tcp://host:port")),
            ("unix://", ("names no socket", "write unix:///")),
            ("ssh://host", ("not supported", "forward it")),
            ("https://127.0.0.1:1", ("TLS", "forward")),
            ("npipe:////./pipe/docker_engine", ("not supported", "use unix:///")),
        ],
    )
    async def test_an_address_where_none_is(self, address, words):
        with pytest.raises(EngineUnavailable) as caught:
            async with DockerEngine(address):
                pytest.fail("it opened")
        assert_one_sentence(caught.value, address, *words)

    async def test_open_sandbox_without_an_engine(self, monkeypatch, tmp_path):
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
        with pytest.raises(EngineUnavailable) as caught:
            async with open_sandbox(minimal()):
                pytest.fail("it opened")
        assert_one_sentence(caught.value, "no such socket")

    async def test_a_socket_that_nobody_listens_at(self, tmp_path):
        path = tmp_path / "stale.sock"
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
        with pytest.raises(EngineUnavailable) as caught:
            async with DockerEngine(f"unix://{path}"):
                pytest.fail("it opened")
        assert_one_sentence(caught.value, "nobody listens", "start one")

    @pytest.mark.parametrize(
        "answer, words",
        [
            (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", ("no container engine", "check the address")),
            (b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnope", ("no container engine", "check the address")),
            (b"SSH-2.0-OpenSSH_9.2\r\n", ("can't be used", "check the address")),
            (b"", ("closed the connection", "restart it")),
        ],
        ids=["a-web-server", "a-404", "no-http", "a-hang-up"],
    )
    async def test_something_else_answers(self, answer, words):
        with listener(answer) as address, pytest.raises(EngineUnavailable) as caught:
            async with DockerEngine(address):
                pytest.fail("it opened")
        assert_one_sentence(caught.value, *words)

    async def test_a_silent_engine_is_given_up_in_time(self, monkeypatch):
        monkeypatch.setattr(docker_api, "PROBE_TIMEOUT", 0.5)
        with listener(None) as address, pytest.raises(EngineUnavailable) as caught, anyio.fail_after(20):
            async with DockerEngine(address):
                pytest.fail("it opened")
        assert_one_sentence(caught.value, "does not answer in time", "restart it")


class listener:  # noqa: N801  used as a function
    """A server on the loopback interface that says one thing to whoever asks; None: nothing, and never hangs up."""

    def __init__(self, answer):
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._held = []
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self):
        self._thread.start()
        return f"tcp://127.0.0.1:{self._socket.getsockname()[1]}"

    def __exit__(self, *exc):
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for each in (*self._held, self._socket):
            each.close()

    def _serve(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            if self._answer is None:
                self._held.append(connection)
                continue
            with connection:
                connection.recv(65536)
                connection.sendall(self._answer)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_permission_denied_on_the_socket():
    """By a process without privileges, since to root every socket is open."""
    program = (
        "import os, sys, anyio\n"
        "from sandbox import EngineUnavailable, SandboxSpec, open_sandbox\n"
        "async def attempt(address):\n"
        "    os.environ['DOCKER_HOST'] = address\n"
        "    try:\n"
        "        async with open_sandbox(SandboxSpec(image='i')):\n"
        "            print('opened')\n"
        "    except EngineUnavailable as error:\n"
        "        print(error)\n"
        "anyio.run(attempt, 'unix:///nowhere')\n"  # imports all that will be needed, as the user who may read it
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "anyio.run(attempt, sys.argv[1])\n"
    )
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        Path(folder).chmod(0o755)
        path = Path(folder, "docker.sock")
        server.bind(str(path))
        server.listen()
        path.chmod(0)
        done = subprocess.run(
            [sys.executable, "-c", program, f"unix://{path}"], capture_output=True, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")
    sentence = done.stdout.splitlines()[1]
    assert_one_sentence(Exception(sentence), f"Permission denied on unix://{path}", "docker group", "rootless")


class TestImage:
    async def test_one_that_is_nowhere(self, real_engine):
        with anyio.fail_after(30):
            await refused(
                real_engine, ImageUnavailable, "can't be pulled", "build it", image=f"{PRIVATE}-nowhere:latest"
            )

    async def test_an_unknown_id(self, real_engine):
        await refused(
            real_engine, ImageUnavailable, "no image with the id", "build or pull", image="sha256:" + "0" * 64
        )

    @pytest.mark.parametrize("name", ["UPPER", "a b", "a\0b", "../../containers/json", "a?b=c", ":"])
    async def test_no_name_at_all(self, real_engine, name):
        await refused(real_engine, ImageUnavailable, "check its name", image=name)

    async def test_a_registry_that_is_silent_hinders_nobody_who_gives_up(self, real_engine):
        with listener(None) as address:
            began = time.monotonic()
            with pytest.raises(TimeoutError), anyio.fail_after(1):
                async with open_sandbox(
                    SandboxSpec(image=f"{address.removeprefix('tcp://')}/image:latest"), engine=real_engine
                ):
                    pytest.fail("it opened")
            assert time.monotonic() - began < 10

    async def test_without_a_shell(self, real_engine, make_hand_image):
        image = make_hand_image("no-shell", {"etc/motd": Entry(b"nothing here")})
        await refused(real_engine, SandboxStartError, "no executable /bin/sh", "use an image with a shell", image=image)

    async def test_with_a_shell_that_cannot_be_executed(self, real_engine, make_hand_image, busybox):
        image = make_hand_image("mode-shell", {"bin/sh": Entry(busybox, 0o644)})
        await refused(real_engine, SandboxStartError, "no executable /bin/sh", image=image)

    async def test_with_a_shell_of_another_architecture(self, real_engine, make_hand_image):
        """The image says that it fits, and lies: the kernel finds out, and it is a command's failure."""
        alien = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xb7\x00\x01" + bytes(200)
        image = make_hand_image("lying", {"bin/sh": Entry(alien)})
        async with open_sandbox(SandboxSpec(image=image), engine=real_engine) as box:
            result = await box.run("true")
        assert (result.status, result.exit_code) == ("exited", 126)
        assert result.stderr.text.startswith("/bin/sh: ")

    async def test_of_another_architecture(self, real_engine, make_hand_image, busybox):
        other = "amd64" if real_engine.info.architecture == "aarch64" else "arm64"
        image = make_hand_image("foreign", {"bin/sh": Entry(busybox)}, architecture=other)
        await refused(real_engine, ImageUnavailable, "is built for", "pull or build it for", image=image)

    async def test_asked_for_another_platform_than_it_is_here(self, real_engine, make_hand_image, busybox):
        image = make_hand_image("plain", {"bin/sh": Entry(busybox)})
        await refused(real_engine, ImageUnavailable, "for linux/s390x", "build it", image=image, platform="linux/s390x")

    async def test_whose_own_settings_would_get_in_the_way(self, real_engine, docker, make_hand_image, busybox):
        """A health check, an entry point, a stop signal and volumes of the image: none of them is followed."""
        image = make_hand_image(
            "obstinate",
            {"bin/sh": Entry(busybox), "data/file": Entry(b"of the image")},
            config={
                "Entrypoint": ["/bin/false"],
                "Cmd": ["nonsense"],
                "User": "1234:1234",
                "WorkingDir": "/data",
                "StopSignal": "SIGKILL",
                "Volumes": {"/data": {}, GUEST_DIR: {}},
                "Healthcheck": {"Test": ["CMD-SHELL", "exit 1"], "Interval": 1_000_000_000},
            },
        )
        async with open_sandbox(SandboxSpec(image=image), engine=real_engine) as box:
            result = await box.run(["/bin/sh", "-c", "echo $PWD; read line <file; echo $line"])
            assert result.stdout.text == "/data\nof the image\n"
            assert "Health" not in docker.inspect(box.container_id)["State"]

    async def test_whose_volume_is_impossible(self, real_engine, make_hand_image, busybox):
        image = make_hand_image("root-volume", {"bin/sh": Entry(busybox)}, config={"Volumes": {"/": {}}})
        await refused(real_engine, SandboxStartError, "could not start the sandbox", image=image)


class TestUserAndWorkdir:
    @pytest.mark.parametrize("user", ["nobody-knows-me", "agent:no-such-group", "-1", "99999999999", "x" * 300])
    async def test_an_unknown_user(self, real_engine, user):
        await refused(real_engine, UserUnknown, user, "create it or use numbers", user=user)

    async def test_an_empty_group_is_the_users_own(self, real_engine):
        async with open_sandbox(minimal(user="agent:"), engine=real_engine) as box:
            assert (await box.run("id -un; id -gn")).stdout.text == "agent\nagent\n"

    async def test_an_unknown_user_of_one_call_only(self, real_engine):
        async with open_sandbox(minimal(), engine=real_engine) as box:
            for attempt in (
                box.run("true", user="nobody-knows-me"),
                box.read_file("/etc/passwd", user="nobody-knows-me"),
                box.write_file("/tmp/file", b"", user="nobody-knows-me"),
            ):
                with pytest.raises(UserUnknown) as caught:
                    await attempt
                assert_one_sentence(caught.value, "'nobody-knows-me'", "create it or use numbers")
            assert (await box.run("true")).ok

    @pytest.mark.parametrize(
        "workdir, why",
        [
            ("/missing", "No such file or directory"),
            ("/etc/passwd", "Not a directory"),
            ("/root", "Permission denied"),
            ("/" + "long" * 70, "File name too long"),
        ],
    )
    async def test_a_working_directory_that_cannot_be_used(self, real_engine, workdir, why):
        await refused(real_engine, SandboxStartError, why, "create it in the image or set workdir", workdir=workdir)

    async def test_a_working_directory_of_one_call_only(self, real_engine):
        async with open_sandbox(minimal(), engine=real_engine) as box:
            for cwd, kind in (
                ("/missing", FileNotFoundError),
                ("missing", FileNotFoundError),
                ("/etc/passwd", NotADirectoryError),
                ("/root", PermissionError),
            ):
                with pytest.raises(kind) as caught:
                    await box.run("true", cwd=cwd)
                assert cwd in str(caught.value.filename)
            assert (await box.run("true")).ok


class TestLimits:
    def test_impossible_ones_are_refused_where_they_are_written(self):
        invalid("limits.memory", "negative", limits={"memory": -1})
        invalid("limits.memory", "least is 16MiB", limits={"memory": "1MiB"})
        invalid("limits.memory", "'lots'", "512MiB", limits={"memory": "lots"})
        invalid("limits.pids", "the least is", limits={"pids": -1})
        invalid("limits.pids", "the least is", limits={"pids": MIN_PIDS - 1})
        invalid("limits.pids", "4194304", limits={"pids": 10**12})
        invalid("limits.cpus", "greater than 0", limits={"cpus": -1})
        invalid("limits.cpus", "finite", limits={"cpus": float("inf")})
        invalid("limits.cpus", "", limits={"cpus": float("nan")})
        invalid("limits.disk", "negative", limits={"disk": -1})
        invalid("limits.open_files", "greater than or equal to 16", limits={"open_files": 1})
        invalid("limits.output", "outside", limits={"output": "1GiB"})
        invalid("shm_size", "negative", shm_size=-1)
        invalid("tmpfs", "more than 0", tmpfs={"/scratch": 0})
        invalid("lifetime", "greater than 0", lifetime=0)
        invalid("lifetime", "", lifetime=float("inf"))
        invalid("lease", "", lease=float("inf"))
        invalid("lease", "greater than or equal to 1", lease=0)
        invalid("grace", "", grace=-1)

    def test_a_refused_spec_tells_no_secret(self):
        with pytest.raises(ValidationError) as caught:
            SandboxSpec(image=MINIMAL, env={"TOKEN": "swordfish"}, capabilities=["SYS_PTRACE"])
        assert "swordfish" not in str(caught.value)

    @pytest.mark.parametrize(
        "limits, words",
        [
            (Limits(cpus=100_000), ("cpus is 100000", "choose a value within")),
            (Limits(cpus=0.001), ("cpus is 0.001", "choose a value within")),
            (Limits(memory="1PB"), ("memory", "choose")),
            (Limits(memory="1GiB", open_files=1048576), ("open_files",)),
        ],
        ids=["cpus", "too-few-cpus", "memory", "open-files"],
    )
    async def test_beyond_this_engine(self, real_engine, limits, words):
        if limits.open_files == 1048576:
            # An engine may be allowed that many; one that isn't says so.
            try:
                async with open_sandbox(minimal(limits=limits), engine=real_engine) as box:
                    assert (await box.run("ulimit -n")).stdout.text == "1048576\n"
                    return
            except SandboxStartError as error:
                assert_one_sentence(error, *words)
                return
        await refused(real_engine, SandboxStartError, *words, limits=limits)

    async def test_a_disk_limit_that_cannot_be_enforced(self, real_engine):
        if real_engine.info.disk_quota:
            pytest.skip("this engine has quotas")
        await refused(
            real_engine,
            SandboxStartError,
            "disk limit can't be enforced",
            "leave limits.disk out",
            limits=Limits(disk="1GiB"),
        )

    @pytest.mark.parametrize(
        "changes",
        [
            {"tmpfs": {"/scratch": 1 << 60}},
            {"tmpfs": {"/scratch": 300 << 20, "/more": 200 << 20}},
            {"shm_size": 600 << 20},
            {"limits": Limits(memory="32MiB"), "tmpfs": {"/scratch": 30 << 20}},
        ],
    )
    async def test_file_systems_in_memory_that_leave_a_command_none(self, real_engine, changes):
        """Files there are memory that no process holds: when they fill it, the kernel's only choice is the guest."""
        await refused(real_engine, SandboxStartError, "memory", "make them smaller or raise limits.memory", **changes)

    async def test_a_size_that_one_file_may_not_have(self, real_engine):
        async with open_sandbox(minimal(limits=Limits(file_size=1000)), engine=real_engine) as box:
            result = await box.run("head -c 5000 /dev/zero >/tmp/file; echo $?; wc -c </tmp/file")
            assert result.stdout.text == "153\n1000\n"  # SIGXFSZ
            with pytest.raises(OSError) as caught:
                await box.write_file("/tmp/other", bytes(5000))
            assert caught.value.errno == errno.EFBIG
            assert not (await box.run("ls /tmp/other")).ok
            await box.write_file("/tmp/other", bytes(1000))


class TestTightLimits:
    """The least that a spec takes is enough for the guest, one supervisor, a shell, and what the shell starts."""

    @pytest.mark.parametrize("limits", [Limits(memory="16MiB", pids=16), TIGHTEST], ids=["16-pids", "the-least"])
    async def test_everything_works(self, real_engine, limits):
        async with open_sandbox(minimal(limits=limits), engine=real_engine) as box:
            result = await box.run("echo a | tr a b | cat; echo err >&2; exit 3")
            assert (result.status, result.exit_code, result.stdout.text, result.stderr.text) == (
                "exited",
                3,
                "b\n",
                "err\n",
            )
            content = os.urandom(2 << 20)
            await box.write_file("/workspace/file", content)
            assert await box.read_file("/workspace/file") == content
            echoed = await box.run("cat", stdin=content, output_limit=4 << 20)
            assert (echoed.status, echoed.stdout.data == content) == ("exited", True)
            script = await box.run("#" * (1 << 20) + "\necho long")
            assert script.stdout.text == "long\n"
            flood = await box.run("head -c 50000000 /dev/zero")
            assert (flood.status, flood.stdout.total_bytes) == ("exited", 50_000_000)

    @pytest.mark.parametrize("limits", [Limits(memory="16MiB", pids=16), TIGHTEST], ids=["16-pids", "the-least"])
    async def test_a_timeout_and_a_reset_work(self, real_engine, limits):
        async with open_sandbox(minimal(limits=limits), engine=real_engine) as box:
            result = await box.run("trap '' TERM; sleep 1000 & sleep 1000", timeout=0.5)
            assert (result.status, result.survivors) == ("timed_out", 0)
            background = await box.run("sleep 1000 & sleep 1000 & echo started")
            assert (background.stdout.text, background.background) == ("started\n", True)
            assert (await box.run("echo still")).stdout.text == "still\n"
            await box.reset()
            assert (await box.run("echo again")).stdout.text == "again\n"

    async def test_several_calls_at_once(self, real_engine):
        results = []

        async def one(box, number):
            results.append(await box.run(f"sleep 0.2; echo {number}"))

        async with open_sandbox(minimal(limits=Limits(memory="16MiB", pids=16)), engine=real_engine) as box:
            async with anyio.create_task_group() as tasks:
                for number in range(4):
                    tasks.start_soon(one, box, number)
        assert sorted(result.stdout.text for result in results) == ["0\n", "1\n", "2\n", "3\n"]

    @pytest.mark.parametrize("limits", [Limits(memory="16MiB", pids=16), TIGHTEST], ids=["16-pids", "the-least"])
    async def test_too_much_is_data(self, real_engine, limits):
        async with open_sandbox(minimal(limits=limits), engine=real_engine) as box:
            hog = await box.run("x=0123456789abcdef; while :; do x=$x$x; done", timeout=30)
            assert hog.status == ("out_of_memory" if hog.oom_known else "signaled")
            many = await box.run("for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do sleep 100 & done; echo all")
            assert (many.status, many.stdout.text) == ("exited", "")
            assert "fork" in many.stderr.text
            refused_now = await box.run("true")
            assert (refused_now.status, refused_now.exit_code) == ("refused", 125)
            await box.reset()
            assert (await box.run("true")).ok

    async def test_a_read_only_root_too(self, real_engine):
        async with open_sandbox(minimal(limits=TIGHTEST, read_only=True), engine=real_engine) as box:
            full = await box.run("cat /dev/zero >/tmp/file; ls /tmp")
            assert (full.status, full.stdout.text) == ("exited", "file\n")
            assert (await box.run("echo well")).stdout.text == "well\n"


class TestProtection:
    @pytest.mark.parametrize("name", sorted(FORBIDDEN_CAPABILITIES))
    def test_a_capability_that_reaches_the_guest_or_the_host(self, name):
        invalid(name, "leave them out", capabilities=[name])
        invalid(name, "leave them out", capabilities=[f"cap_{name.lower()}"])

    @pytest.mark.parametrize(
        "name", ["SYS_PTRACE", "SYS_ADMIN", "DAC_READ_SEARCH", "SYS_RESOURCE", "SYS_NICE", "SYS_TIME", "ALL"]
    )
    def test_these_are_among_them(self, name):
        """DAC_READ_SEARCH opens the host's files by their handles; SYS_RESOURCE takes PID 1's limits away, SYS_NICE its
        turn on the CPU."""
        assert name in FORBIDDEN_CAPABILITIES

    async def test_a_capability_that_no_kernel_has(self, real_engine):
        await refused(real_engine, SandboxStartError, "FROBNICATE", "capabilities(7)", capabilities=["FROBNICATE"])

    @pytest.mark.parametrize(
        "option", ["privileged", "pid_mode", "ipc_mode", "security_opt", "devices", "volumes", "entrypoint", "cap_add"]
    )
    def test_an_option_that_there_is_not(self, option):
        invalid(option, "not permitted", **{option: True})

    @pytest.mark.parametrize("network", ["host", "bridge", "container:x"])
    def test_somebody_elses_network(self, network):
        invalid("network", "'none' or 'open'", network=network)

    @pytest.mark.parametrize("path", ["/", "/proc", "/proc/1", "/sys/fs", "/dev", GUEST_DIR, f"{GUEST_DIR}/guest"])
    async def test_a_place_that_hides_what_the_guest_relies_on(self, real_engine, path):
        await refused(real_engine, SandboxStartError, "choose another path", tmpfs={path: 4096})
        await refused(
            real_engine, SandboxStartError, "choose another path", mounts=[Mount(volume="anything", target=path)]
        )

    async def test_a_place_that_hides_the_shell(self, real_engine):
        await refused(real_engine, SandboxStartError, "/bin/sh", "use an image with a shell", tmpfs={"/bin": 65536})

    def test_a_path_of_the_host_as_a_volume(self):
        invalid("volume", mounts=[{"volume": "/etc", "target": "/host"}])

    async def test_a_volume_that_is_not_there_is_not_made(self, real_engine, docker):
        await refused(
            real_engine,
            SandboxStartError,
            "no volume 'sandbox-test-missing'",
            "create and fill it first",
            mounts=[Mount(volume="sandbox-test-missing", target="/data")],
        )
        assert "sandbox-test-missing" not in docker.volumes()

    async def test_a_runtime_that_the_engine_does_not_know(self, real_engine):
        await refused(
            real_engine,
            SandboxStartError,
            "no runtime 'frobnicate'",
            "install it",
            "leave it out",
            runtime="frobnicate",
        )


class TestCommands:
    async def test_what_no_process_can_be_given(self, real_engine):
        async with open_sandbox(minimal(), engine=real_engine) as box:
            for attempt, word in (
                (box.run("echo a\0b"), "NUL"),
                (box.run(["echo", "a\0b"]), "NUL"),
                (box.run("true", cwd="/\0"), "NUL"),
                (box.run("true", user="a\0"), "NUL"),
                (box.run("true", env={"A": "\0"}), "NUL"),
                (box.run("true", env={"A=": "b"}), "'='"),
                (box.run("true", env={"": "b"}), "name of an environment variable"),
                (box.run("echo \ud800"), "surrogate"),
                (box.run([]), "empty"),
                (box.run([""]), "empty"),
                (box.run("#" * (16 << 20) + "#"), "write it to a file"),
                (box.run(["echo", "x" * (128 << 10)]), "as stdin or as a file"),
                (box.run("true", env={"A": "x" * (128 << 10)}), "as stdin or as a file"),
                (box.run("true", env={f"A{i}": "x" * 100_000 for i in range(30)}), "as stdin or as a file"),
                (box.run("true", timeout=0), "choose one within"),
                (box.run("true", timeout=float("nan")), "choose one within"),
                (box.run("true", timeout=1e12), "choose one within"),
                (box.run("true", output_limit=-1), "choose one within"),
                (box.run("true", output_limit=1 << 40), "choose one within"),
            ):
                with pytest.raises(ValueError, match=word) as caught:
                    await attempt
                assert "\n" not in str(caught.value)
            with pytest.raises(TypeError, match="not bytes"):
                await box.run(b"true")  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="not int"):
                await box.run(["echo", 1])  # type: ignore[list-item]
            assert (await box.run("echo well")).stdout.text == "well\n"

    def test_an_environment_that_no_process_can_have(self):
        invalid("env", "NUL", env={"A": "\0"})
        invalid("env", "name of an environment variable", env={"A=B": ""})

    async def test_an_environment_that_is_too_large_for_every_call(self, real_engine):
        with pytest.raises(ValueError, match="as stdin or as a file"):
            async with open_sandbox(minimal(env={"A": "x" * 200_000}), engine=real_engine):
                pytest.fail("it opened")

    async def test_a_large_environment(self, real_engine):
        env = {f"NUMBER_{i}": str(i) * 100_000 for i in range(9)}
        async with open_sandbox(minimal(env=env), engine=real_engine) as box:
            assert (await box.run("echo ${#NUMBER_0} ${#NUMBER_8}")).stdout.text == "100000 100000\n"

    async def test_a_command_of_5_mb(self, real_engine):
        async with open_sandbox(minimal(), engine=real_engine) as box:
            result = await box.run("x=" + "a" * 5_000_000 + '; echo ${#x}; cat; echo "$#"', stdin=b"input\n")
            assert result.stdout.text == "5000000\ninput\n0\n"
            longest = "#" * ((16 << 20) - 8) + "\necho hi"
            assert (await box.run(longest)).stdout.text == "hi\n"

    async def test_a_sandbox_after_its_end(self, real_engine):
        async with open_sandbox(minimal(), engine=real_engine) as box:
            pass
        assert box.closed
        for attempt in (box.run("true"), box.read_file("/etc/passwd"), box.write_file("/tmp/a", b""), box.reset()):
            with pytest.raises(SandboxClosed) as caught:
                await attempt
            assert_one_sentence(caught.value, "async with")


class TestFiles:
    async def test_over_the_bound(self, real_engine, tmp_path):
        async with open_sandbox(minimal(), engine=real_engine) as box:
            await box.run("head -c 100000 /dev/zero >/tmp/large; mkdir /tmp/tree; cp /tmp/large /tmp/tree/a")
            for attempt in (
                box.read_file("/tmp/large", max_bytes=99_999),
                box.read_file("/dev/../tmp/large", max_bytes=0),
                box.download("/tmp/large", tmp_path / "large", max_bytes=99_999),
                box.download("/tmp/tree", tmp_path / "tree", max_bytes=99_999),
            ):
                with pytest.raises(FileTooLarge) as caught:
                    await attempt
                assert_one_sentence(caught.value, "raise max_bytes")
            assert len(await box.read_file("/tmp/large", max_bytes=100_000)) == 100_000
        assert list(tmp_path.iterdir()) == []

    async def test_what_is_no_file(self, real_engine):
        async with open_sandbox(minimal(), engine=real_engine) as box:
            await box.run("mkfifo /tmp/fifo; ln -s loop /tmp/loop")
            for path in ("/dev/zero", "/tmp/fifo"):
                with pytest.raises(NotAFile) as caught:
                    await box.read_file(path)
                assert_one_sentence(caught.value, "no file")
            for path, number in (
                ("/missing", errno.ENOENT),
                ("/etc", errno.EISDIR),
                ("/etc/passwd/x", errno.ENOTDIR),
                ("/tmp/loop", errno.ELOOP),
                ("/root/x", errno.EACCES),
                ("/tmp/" + "x" * 300, errno.ENAMETOOLONG),
            ):
                with pytest.raises(OSError) as failed:
                    await box.read_file(path)
                assert (failed.value.errno, failed.value.filename) == (number, path)
            for path, number in (
                ("/etc/new", errno.EACCES),
                ("/etc", errno.EISDIR),
                ("/etc/passwd/x", errno.ENOTDIR),
                ("/tmp/" + "x" * 300, errno.ENAMETOOLONG),
            ):
                with pytest.raises(OSError) as failed:
                    await box.write_file(path, b"")
                assert (failed.value.errno, failed.value.filename) == (number, path)
            for bad in (box.read_file(""), box.read_file("a\0"), box.read_file("/etc/passwd", max_bytes=-1)):
                with pytest.raises(ValueError, match=r"empty|NUL|choose one"):
                    await bad

    async def test_a_full_disk(self, real_engine):
        """A tmpfs of one MiB: a command is told by its own write, a transfer by Python's own error."""
        async with open_sandbox(minimal(tmpfs={"/small": 1 << 20}), engine=real_engine) as box:
            await box.write_file("/small/kept", b"old")
            result = await box.run("head -c 5000000 /dev/zero >/small/large; echo $?")
            assert (result.status, result.stdout.text) == ("exited", "1\n")
            assert result.stderr.text
            for path in ("/small/kept", "/small/new"):
                with pytest.raises(OSError) as caught:
                    await box.write_file(path, bytes(2_000_000))
                assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, path)
            assert (await box.run("ls -A /small")).stdout.text == "kept\nlarge\n"
            assert await box.read_file("/small/kept") == b"old"
            await box.run("rm /small/large")
            await box.write_file("/small/kept", b"new")

    async def test_local_files_that_are_not_there(self, real_engine, tmp_path):
        async with open_sandbox(minimal(), engine=real_engine) as box:
            with pytest.raises(FileNotFoundError):
                await box.upload(tmp_path / "missing", "/tmp/there")
            with pytest.raises(FileNotFoundError):
                await box.download("/etc/passwd", tmp_path / "missing" / "there")
            with pytest.raises(FileNotFoundError):
                await box.download("/missing", tmp_path / "there")
            assert not (await box.run("ls /tmp/there")).ok
        assert list(tmp_path.iterdir()) == []
