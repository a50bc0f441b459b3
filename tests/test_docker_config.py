"""The Docker engine's pure parts: translations both ways, addresses, the stream's headers. No engine is needed."""

from __future__ import annotations

import hashlib
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ByteSize

from sandbox.docker.address import DEFAULT_SOCKET, check_address, find_addresses
from sandbox.docker.api import negotiate
from sandbox.docker.config import GUEST_PATH, create_config
from sandbox.docker.death import death_from_events, with_last_words
from sandbox.docker.facts import container_info, engine_info, has_disk_quota, image_info, parse_time
from sandbox.docker.launch import check_warnings
from sandbox.docker.sentences import why_unavailable
from sandbox.docker.stream import STDERR_KEPT, Demultiplexer, HeaderError
from sandbox.engine import ContainerPlan, Death, ImageInfo
from sandbox.errors import EngineUnavailable, SandboxStartError
from sandbox.spec import MIB, Limits, Mount, Network, SandboxSpec

IMAGE = ImageInfo(id="sha256:" + "1" * 64, architecture="amd64", env={"PATH": "/bin"})


def config(network_id=None, **spec):
    made = SandboxSpec(image="i", **spec)
    plan = ContainerPlan(name="n", spec=made, image=IMAGE, labels={"a": "b"}, guest_args=("--caps=0",))
    return create_config(plan, "guest-volume", network_id)


class TestConfig:
    def test_the_guest_is_pid_1_as_root_whatever_image_and_engine_say(self):
        made = config()
        assert made["Entrypoint"] == [GUEST_PATH, "--caps=0"]
        assert made["Cmd"] == []
        assert (made["User"], made["WorkingDir"]) == ("0:0", "/")
        assert made["Healthcheck"] == {"Test": ["NONE"]}
        assert made["HostConfig"]["Init"] is False

    def test_the_controllers_end_of_the_stream_is_the_guests_stdin(self):
        made = config()
        assert made["OpenStdin"] and made["StdinOnce"] and made["AttachStdin"] and not made["Tty"]
        assert made["HostConfig"]["AutoRemove"]
        assert made["HostConfig"]["LogConfig"]["Type"] == "none"

    def test_nothing_of_the_controllers_or_the_calls_environment_gets_into_the_container(self, monkeypatch):
        monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
        assert "Env" not in config(env={"SECRET": "1"})

    def test_hardening_is_the_default(self):
        host = config()["HostConfig"]
        assert host["CapDrop"] == ["ALL"]
        assert host["CapAdd"] == ["KILL", "SETGID", "SETUID"]
        assert host["SecurityOpt"] == ["no-new-privileges"]
        assert host["Privileged"] is False
        assert host["PublishAllPorts"] is False
        assert not {"Binds", "Devices", "PortBindings", "PidMode", "MaskedPaths", "ReadonlyPaths"} & host.keys()

    def test_limits_are_always_set_and_swap_is_off(self):
        host = config(limits=Limits(memory=ByteSize(64 * MIB), pids=32, cpus=0.5))["HostConfig"]
        assert host["Memory"] == host["MemorySwap"] == 64 * MIB
        assert host["PidsLimit"] == 32
        assert host["NanoCpus"] == 500_000_000
        assert {"Name": "core", "Soft": 0, "Hard": 0} in host["Ulimits"]

    @pytest.mark.parametrize("asked, given", [(16, 4096), (1 << 20, 1 << 20)])
    def test_the_guest_has_descriptors_for_its_calls_however_few_a_call_may_open(self, asked, given):
        assert config(limits=Limits(open_files=asked))["HostConfig"]["Ulimits"][0] == {
            "Name": "nofile",
            "Soft": given,
            "Hard": given,
        }

    def test_without_a_network_none_is_set_up_and_none_is_named(self):
        made = config()
        assert made["NetworkDisabled"] is True
        assert made["HostConfig"]["NetworkMode"] == "none"

    def test_a_read_only_root_needs_the_engines_hosts_file_and_a_tmp(self):
        made = config(read_only=True)
        assert made["NetworkDisabled"] is False
        assert made["HostConfig"]["NetworkMode"] == "none"
        assert made["HostConfig"]["ReadonlyRootfs"] is True
        assert made["HostConfig"]["Tmpfs"] == {"/tmp": f"rw,exec,nosuid,nodev,mode=1777,size={64 * MIB}"}

    def test_the_tmp_of_a_small_read_only_sandbox_leaves_memory_for_processes(self):
        made = config(read_only=True, limits=Limits(memory=ByteSize(16 * MIB)))
        assert made["HostConfig"]["Tmpfs"]["/tmp"].endswith(f"size={4 * MIB}")
        assert made["HostConfig"]["ShmSize"] == 4 * MIB

    def test_the_users_own_tmp_is_kept(self):
        made = config(read_only=True, tmpfs={"/tmp": ByteSize(4096)})
        assert made["HostConfig"]["Tmpfs"]["/tmp"].endswith("size=4096")

    def test_an_open_network_is_named_by_its_id(self):
        made = config(network_id="f00", network=Network.OPEN)
        assert made["HostConfig"]["NetworkMode"] == "f00"
        assert made["NetworkDisabled"] is False

    def test_volumes_are_read_only_and_copy_nothing_up(self):
        mounts = config(mounts=(Mount(volume="wheels", target="/wheels"),))["HostConfig"]["Mounts"]
        assert [mount["Source"] for mount in mounts] == ["guest-volume", "wheels"]
        assert all(mount["ReadOnly"] and mount["VolumeOptions"]["NoCopy"] for mount in mounts)

    def test_runtime_and_disk_are_given_only_where_asked_for(self):
        assert not {"Runtime", "StorageOpt"} & config()["HostConfig"].keys()
        host = config(runtime="runsc", limits=Limits(disk=ByteSize(10**9)))["HostConfig"]
        assert host["Runtime"] == "runsc"
        assert host["StorageOpt"] == {"size": "1000000000"}


class TestFacts:
    def test_an_old_engines_answer(self):
        info = engine_info(
            "unix:///s",
            "1.41",
            {"Version": "20.10.24", "Arch": "amd64", "Components": [{"Name": "Engine"}]},
            {
                "Architecture": "x86_64",
                "CgroupVersion": "1",
                "Driver": "overlay2",
                "NCPU": 2,
                "MemTotal": 4096,
                "Runtimes": {"runc": {}, "a": {}},
                "SecurityOptions": ["name=seccomp,profile=default", "name=rootless"],
                "MemoryLimit": False,
                "PidsLimit": True,
                "CpuCfsPeriod": True,
                "CpuCfsQuota": False,
            },
        )
        assert (info.name, info.architecture, info.runtimes) == ("Docker Engine", "x86_64", ("a", "runc"))
        assert info.rootless and "seccomp" in info.security
        assert (info.memory_limit, info.pids_limit, info.cpu_limit) == (False, True, False)
        assert not info.disk_quota

    def test_an_engine_that_says_little(self):
        info = engine_info("unix:///s", "1.41", {"Arch": "arm64"}, {})
        assert info.architecture == "aarch64"
        assert info.memory_limit and not info.disk_quota

    @pytest.mark.parametrize(
        "driver, backing, options, quota",
        [
            ("btrfs", "", "", True),
            ("zfs", "", "", True),
            ("overlay2", "extfs", "rw,prjquota", False),
            ("overlay2", "xfs", "rw,noquota", False),
            ("overlay2", "xfs", "rw,prjquota", True),
            ("overlayfs", "xfs", "rw,prjquota", False),
        ],
    )
    def test_disk_quotas(self, tmp_path, driver, backing, options, quota):
        root = tmp_path / "docker"
        root.mkdir()
        table = tmp_path / "mounts"
        table.write_text(f"/dev/a / ext4 rw 0 0\n/dev/b {tmp_path} xfs {options} 0 0\n/dev/c {root}-x xfs pquota 0 0\n")
        info = {"Driver": driver, "DriverStatus": [["Backing Filesystem", backing]], "DockerRootDir": str(root)}
        assert has_disk_quota(info, "unix:///s", str(table)) is quota

    def test_a_remote_xfs_gets_the_benefit_of_the_doubt(self):
        info = {"Driver": "overlay2", "DriverStatus": [["Backing Filesystem", "xfs"]], "DockerRootDir": "/"}
        assert has_disk_quota(info, "tcp://h:1")

    def test_an_image(self):
        answer = {
            "Id": "sha256:1",
            "Architecture": "arm64",
            "Config": {"Env": ["A=1=2", "broken"], "User": "u", "WorkingDir": "/w", "Volumes": {"/v": {}}},
        }
        image = image_info(answer)
        assert (image.env, image.user, image.workdir, image.volumes) == ({"A": "1=2"}, "u", "/w", ("/v",))
        assert image_info({"Id": "sha256:1", "Config": None}).env == {}

    def test_a_container_is_dated_by_this_machines_clock(self):
        answer = {"Id": "1", "Names": ["/n"], "State": "created", "Image": "sha", "Created": 1000, "Labels": None}
        container = container_info(answer, clock_offset=600)
        assert (container.name, container.created, container.image) == ("n", 400, "sha")

    def test_times(self):
        assert parse_time("1970-01-01T00:00:01.123456789Z") == pytest.approx(1.123456)
        assert parse_time("1970-01-01T02:00:00+02:00") == 0
        assert parse_time("nonsense") == 0

    @pytest.mark.parametrize(
        "newest, oldest, spoken",
        [("1.41", "1.12", "1.41"), ("1.52", "1.24", "1.44"), ("1.60", "1.48", "1.48"), (None, None, "1.44")],
    )
    def test_the_api_version_is_one_that_both_know(self, newest, oldest, spoken):
        assert negotiate({"ApiVersion": newest, "MinAPIVersion": oldest}) == spoken


def _cause(events):
    death = death_from_events(events)
    return "" if death is None else death.cause


class TestDeath:
    @staticmethod
    def event(action, **attributes):
        return {"Action": action, "Actor": {"Attributes": attributes}}

    @pytest.mark.parametrize(
        "code, says", [("0", "link"), ("70", "protocol"), ("72", "lease"), ("73", "lifetime"), ("74", "SIGTERM")]
    )
    def test_the_guests_own_reasons(self, code, says):
        assert says in _cause([self.event("start"), self.event("die", exitCode=code)])

    def test_a_kill_through_the_engine(self):
        events = [self.event("kill", signal="9"), self.event("die", exitCode="137")]
        assert _cause(events) == "it was killed from outside (SIGKILL)"

    def test_memory_that_its_commands_used_up(self):
        death = death_from_events([self.event("oom"), self.event("die", exitCode="137")])
        assert death is not None and death.exhausted and "memory" in death.cause

    def test_a_kill_from_outside_is_nobodys_exhaustion_although_memory_ran_out_before(self):
        events = [self.event("oom"), self.event("kill", signal="9"), self.event("die", exitCode="137")]
        death = death_from_events(events)
        assert death is not None and not death.exhausted and "outside" in death.cause

    def test_an_oom_that_did_not_kill_the_guest_is_not_blamed(self):
        assert "lease" in _cause([self.event("oom"), self.event("die", exitCode="72")])

    def test_a_kill_behind_the_engines_back(self):
        assert "not through the engine" in _cause([self.event("die", exitCode="137")])

    def test_no_death_yet(self):
        assert death_from_events([self.event("start"), self.event("kill", signal="15")]) is None

    def test_what_the_runtime_said_is_passed_on_in_one_line(self):
        assert with_last_words(Death("it died"), b"exec x:\n bad format.\n").cause == "it died (exec x: bad format)"
        assert with_last_words(Death(), b"\xff" * 1000).cause.startswith("it ended (")
        assert with_last_words(Death("it died"), b" ") == Death("it died")

    def test_an_engine_that_does_not_say(self):
        assert _cause([{"status": "die"}]) == "it ended, and the engine does not say how"


class TestAddress:
    def test_the_default_and_the_rootless_socket(self):
        assert find_addresses({"HOME": "/nonexistent"}) == (DEFAULT_SOCKET,)
        found = find_addresses({"HOME": "/nonexistent", "XDG_RUNTIME_DIR": "/run/user/7"})
        assert found == (DEFAULT_SOCKET, "unix:///run/user/7/docker.sock")

    def test_docker_host_comes_before_everything(self, tmp_path):
        self.context(tmp_path, "other", "tcp://elsewhere:1")
        environ = {"DOCKER_HOST": "unix:///mine", "DOCKER_CONTEXT": "other", "DOCKER_CONFIG": str(tmp_path)}
        assert find_addresses(environ) == ("unix:///mine",)

    def test_a_context_by_name_and_the_current_one(self, tmp_path):
        self.context(tmp_path, "one", "unix:///one")
        self.context(tmp_path, "two", "tcp://two:2375")
        (tmp_path / "config.json").write_text('{"currentContext": "one"}')
        assert find_addresses({"DOCKER_CONFIG": str(tmp_path)}) == ("unix:///one",)
        assert find_addresses({"DOCKER_CONFIG": str(tmp_path), "DOCKER_CONTEXT": "two"}) == ("tcp://two:2375",)
        assert find_addresses({"DOCKER_CONFIG": str(tmp_path), "DOCKER_CONTEXT": "default"}) == (DEFAULT_SOCKET,)

    def test_the_configuration_lies_in_the_home_directory(self, tmp_path):
        self.context(tmp_path / ".docker", "one", "unix:///one")
        (tmp_path / ".docker" / "config.json").write_text('{"currentContext": "one"}')
        assert find_addresses({"HOME": str(tmp_path)}) == ("unix:///one",)

    @pytest.mark.parametrize(
        "environ, says",
        [
            ({"DOCKER_HOST": "ssh://me@there"}, "ssh -N -L"),
            ({"DOCKER_HOST": "tcp://h:2376", "DOCKER_TLS_VERIFY": "1"}, "TLS"),
            ({"DOCKER_HOST": "https://h:2376"}, "TLS"),
            ({"DOCKER_HOST": "npipe:////./pipe/docker"}, "unix:///path"),
            ({"DOCKER_HOST": "h"}, "unix:///path"),
            ({"DOCKER_HOST": "tcp://h"}, "port"),
            ({"DOCKER_HOST": "tcp://h:x"}, "port"),
            ({"DOCKER_HOST": "unix://"}, "socket"),
            ({"DOCKER_CONTEXT": "gone"}, "docker context ls"),
        ],
    )
    def test_what_cannot_be_used_is_refused_in_one_sentence(self, environ, says, tmp_path):
        with pytest.raises(EngineUnavailable, match=says) as caught:
            find_addresses({"HOME": str(tmp_path), **environ})
        assert str(caught.value).endswith(".") and "\n" not in str(caught.value)

    def test_a_context_with_certificates_is_refused(self, tmp_path):
        key = self.context(tmp_path, "secure", "tcp://h:2376")
        (tmp_path / "contexts" / "tls" / key / "docker").mkdir(parents=True)
        with pytest.raises(EngineUnavailable, match="TLS"):
            find_addresses({"DOCKER_CONFIG": str(tmp_path), "DOCKER_CONTEXT": "secure"})

    def test_a_broken_configuration_is_told(self, tmp_path):
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(EngineUnavailable, match=r"config\.json"):
            find_addresses({"DOCKER_CONFIG": str(tmp_path)})

    @pytest.mark.parametrize("address", ["unix:///a", "unix://a/b", "tcp://h:1", "http://h:1", "tcp://[::1]:2375"])
    def test_plain_sockets_are_supported(self, address):
        assert check_address(address) == address

    @staticmethod
    def context(config_dir, name, host):
        key = hashlib.sha256(name.encode()).hexdigest()
        folder = config_dir / "contexts" / "meta" / key
        folder.mkdir(parents=True)
        (folder / "meta.json").write_text(json.dumps({"Name": name, "Endpoints": {"docker": {"Host": host}}}))
        return key


class TestUnavailable:
    @pytest.mark.parametrize(
        "cause, says",
        [
            (PermissionError(13, "no"), "docker group"),
            (FileNotFoundError(2, "no"), "no such socket"),
            (ConnectionRefusedError(111, "no"), "nobody listens"),
            (ConnectionResetError(104, "no"), "closed the connection"),
            (TimeoutError(), "in time"),
            (ValueError("no JSON"), "no container engine"),
            (OSError("odd\nthing"), "odd thing"),
        ],
    )
    def test_the_innermost_cause_is_told(self, cause, says):
        wrapped = ConnectionError("aborted", cause) if isinstance(cause, OSError) and cause.errno else cause
        message = why_unavailable("unix:///s", wrapped)
        assert says in message and "unix:///s" in message and "\n" not in message


class TestWarnings:
    @pytest.mark.parametrize(
        "warning",
        [
            "Your kernel does not support memory limit capabilities or the cgroup is not mounted. "
            "Limitation discarded.",
            "Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. PIDs limit discarded.",
        ],
    )
    def test_a_discarded_limit_is_an_error(self, warning):
        with pytest.raises(SandboxStartError, match="discards a limit"):
            check_warnings((warning,))

    def test_swap_that_cannot_be_bounded_is_a_warning(self):
        check_warnings(("Your kernel does not support swap limit capabilities. Memory limited without swap.",))


def frame(stream, payload):
    return struct.pack(">BxxxI", stream, len(payload)) + payload


FRAMES = st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=60)), max_size=20)


class TestDemultiplexer:
    @given(FRAMES, st.lists(st.integers(min_value=1, max_value=40), min_size=1))
    def test_stdout_comes_out_whole_and_in_order_however_it_is_split(self, frames, sizes):
        data = b"".join(frame(*each) for each in frames)
        demultiplexer, out, turn = Demultiplexer(), b"", 0
        while data:
            size = sizes[turn % len(sizes)]
            piece, data, turn = data[:size], data[size:], turn + 1
            part = demultiplexer.feed(piece)
            assert len(part) <= len(piece)
            out += part
        assert out == b"".join(payload for stream, payload in frames if stream == 1)
        assert demultiplexer.stderr == b"".join(payload for stream, payload in frames if stream == 2)[:STDERR_KEPT]

    def test_a_flood_on_stderr_is_bounded(self):
        demultiplexer = Demultiplexer()
        for _ in range(100):
            demultiplexer.feed(frame(2, b"x" * 1000))
        assert len(demultiplexer.stderr) == STDERR_KEPT

    @pytest.mark.parametrize("header", [b"\3\0\0\0\0\0\0\1", b"\1\0\1\0\0\0\0\1", b"HTTP/1.1", b"\xff" * 8, b"\0" * 8])
    def test_anything_else_than_a_header_is_an_error(self, header):
        with pytest.raises(HeaderError):
            Demultiplexer().feed(header)

    @given(st.binary(max_size=300))
    def test_no_input_does_worse_than_that(self, data):
        try:
            assert len(Demultiplexer().feed(data)) <= len(data)
        except HeaderError:
            pass
