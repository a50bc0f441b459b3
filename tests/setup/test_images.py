"""The minimal image, and the patience with registries."""

from __future__ import annotations

import shutil
import socket
import time
from pathlib import Path

import docker
import pytest

from scripts.find_engine import connection
from scripts.setup_images import MINIMAL, RECIPE, ask_registry, engine_address, recipe_digest
from tests.setup.test_find_engine import answer, engine


def test_a_silent_registry_is_given_up_on(tmp_path: Path):
    """Even one behind an engine that has already begun its answer."""

    def begin_and_stall(client: socket.socket) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.recv(1)  # until the other side hangs up

    started = time.monotonic()
    with engine(tmp_path / "s", begin_and_stall) as place, pytest.raises(OSError, match="timed out"):
        ask_registry(place.address, "busybox:latest", silence=1)
    assert time.monotonic() - started < 5


def test_an_error_within_the_stream_is_a_refusal(tmp_path: Path):
    body = b'{"status":"Pulling"}\r\n{"error":"no such host"}\r\n'
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with engine(tmp_path / "s", lambda client: client.sendall(reply)) as place:
        assert ask_registry(place.address, "busybox:latest") == "no such host"


def test_a_refusal_without_words_tells_its_status(tmp_path: Path):
    with engine(tmp_path / "s", answer("404 Not Found")) as place:
        assert ask_registry(place.address, "busybox:latest") == "HTTP status 404"


def test_any_change_of_the_recipe_changes_its_digest(tmp_path: Path):
    shutil.copytree(RECIPE, tmp_path / "r")
    assert recipe_digest(tmp_path / "r") == recipe_digest(RECIPE)
    (tmp_path / "r/etc/group").write_text("")
    assert recipe_digest(tmp_path / "r") != recipe_digest(RECIPE)


@pytest.mark.engine
def test_the_minimal_image_is_what_sandboxes_expect():
    client = docker.DockerClient(engine_address())
    try:
        image = client.images.get(MINIMAL)
        assert image.attrs["Config"]["User"] == "agent"
        assert image.attrs["Config"]["WorkingDir"] == "/workspace"
        assert image.attrs["Size"] < 8_000_000
        script = "id -u; id -un; pwd; touch here $HOME/there /tmp/tmp; stat -c %a /tmp /root; /usr/bin/env echo ok"
        seen = client.containers.run(MINIMAL, ["sh", "-euc", script], network_mode="none", remove=True)
        assert seen.decode().split() == ["1000", "agent", "/workspace", "1777", "700", "ok"]
    finally:
        client.close()


@pytest.mark.engine
def test_the_engine_that_set_up_found_speaks_http():
    engine = connection(engine_address())
    try:
        engine.request("GET", "/version")
        assert engine.getresponse().status == 200
    finally:
        engine.close()
