"""Where set-up looks for an engine, and what it makes of what it finds there."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox.docker.address import find_addresses
from scripts.console import SetupError
from scripts.find_engine import Place, places, probe, probe_all


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose docker configuration names the context ``far``."""
    config = tmp_path / ".docker"
    meta = config / "contexts/meta" / hashlib.sha256(b"far").hexdigest()
    meta.mkdir(parents=True)
    (meta / "meta.json").write_text(json.dumps({"Endpoints": {"docker": {"Host": "tcp://far:2375"}}}))
    (config / "config.json").write_text(json.dumps({"currentContext": "far"}))
    return tmp_path


@pytest.mark.parametrize(
    "env, addresses",
    [
        ({}, ["tcp://far:2375"]),
        ({"DOCKER_HOST": "unix:///a.sock", "DOCKER_CONTEXT": "far"}, ["unix:///a.sock"]),
        ({"DOCKER_CONTEXT": "default"}, ["unix:///var/run/docker.sock"]),
        ({"DOCKER_CONFIG": "/nonexistent"}, ["unix:///var/run/docker.sock"]),
        (
            {"DOCKER_CONTEXT": "default", "XDG_RUNTIME_DIR": "/run/user/7"},
            ["unix:///var/run/docker.sock", "unix:///run/user/7/docker.sock"],
        ),
    ],
)
def test_set_up_looks_where_the_package_looks(home: Path, env: dict[str, str], addresses: list[str]):
    assert [place.address for place in places(env, home)] == addresses
    assert list(find_addresses({"HOME": str(home), **env})) == addresses


def test_a_context_that_does_not_exist_is_named(home: Path):
    with pytest.raises(SetupError, match="DOCKER_CONTEXT names the docker context 'gone'"):
        places({"DOCKER_CONTEXT": "gone"}, home)


def test_a_configuration_that_is_no_json_is_named(home: Path):
    (home / ".docker/config.json").write_text("{")
    with pytest.raises(SetupError, match=r"config\.json can't be read"):
        places({}, home)


@contextmanager
def engine(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[Place]:
    """Something that listens at ``path`` and treats its one client as told."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def accept() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(65536)
                serve(client)

        thread = threading.Thread(target=accept)
        thread.start()
        yield Place(f"unix://{path}", "a test", False)
        thread.join()


def answer(status: str) -> Callable[[socket.socket], None]:
    return lambda client: client.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())


def test_an_engine_answers_its_ping(tmp_path: Path):
    with engine(tmp_path / "s", answer("200 OK")) as place:
        assert probe(place).state == "answers"


def test_an_engine_in_trouble_is_broken(tmp_path: Path):
    with engine(tmp_path / "s", answer("500 Oops")) as place:
        assert probe(place).state == "broken"


def test_what_is_no_engine_is_broken(tmp_path: Path):
    with engine(tmp_path / "s", lambda client: client.sendall(b"220 smtp\r\n")) as place:
        assert probe(place).state == "broken"


def test_a_socket_that_a_dead_engine_left_behind_is_absent(tmp_path: Path):
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(tmp_path / "s"))
    assert probe(Place(f"unix://{tmp_path}/s", "a test", False)).state == "absent"
    assert probe(Place(f"unix://{tmp_path}/none", "a test", False)).state == "absent"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_socket_of_others_is_denied(tmp_path: Path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        for folder in [tmp_path, *tmp_path.parents][:3]:
            folder.chmod(0o755)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.setuid(65534)
            os.write(writer, probe(Place(f"unix://{path}", "a test", False)).state.encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(reader, 100) == b"denied"
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("address", ["ssh://host", "tcp://host", "https://host:2376", "nonsense", "tcp://host:port"])
def test_an_address_that_sandboxes_cannot_use_says_what_they_can(address: str):
    found = probe_all({"DOCKER_HOST": address})
    assert [(one.state, one.place.chosen) for one in found] == [("broken", True)]
    assert found[0].detail
