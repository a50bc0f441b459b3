"""An engine's API by hand, for tests that look at a real engine from outside, break it, or make images for it.

Not the SDK: one connection a request, closed after it, so that a test which counts descriptors counts the sandbox's.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import socket
import tarfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import anyio

Json = Any

TIMEOUT = 60.0


class ApiError(Exception):
    """The engine answered with an error."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(self._path)


@dataclass(frozen=True)
class Docker:
    """One engine."""

    address: str

    def request(self, method: str, route: str, body: Any = None, **query: Any) -> Any:
        """The answer's JSON, or its bytes where it is none."""
        headers = {"Content-Type": "application/json"}
        if isinstance(body, bytes):
            headers["Content-Type"] = "application/x-tar"
        elif body is not None:
            body = json.dumps(body).encode()
        filters = {key: json.dumps(value) if isinstance(value, dict) else str(value) for key, value in query.items()}
        connection = self._connection()
        try:
            connection.request(method, f"{route}?{urlencode(filters)}", body, headers)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        if response.status >= 300:
            raise ApiError(response.status, data.decode("utf-8", "replace"))
        try:
            return json.loads(data)
        except ValueError:
            return data

    def _connection(self) -> http.client.HTTPConnection:
        if self.address.startswith("unix://"):
            return _UnixConnection(self.address.removeprefix("unix://"))
        parts = urlsplit(self.address)
        return http.client.HTTPConnection(parts.hostname or "localhost", parts.port, timeout=TIMEOUT)

    def answers(self) -> bool:
        try:
            self.request("GET", "/_ping")
        except (OSError, ApiError, http.client.HTTPException):
            return False
        return True

    # containers

    def containers(self, *labels: str) -> list[Json]:
        """Of any state, with all these labels."""
        return list(self.request("GET", "/containers/json", all=1, filters={"label": list(labels)}))

    def inspect(self, container: str) -> Json:
        return self.request("GET", f"/containers/{container}/json")

    def exists(self, container: str) -> bool:
        try:
            self.inspect(container)
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    def do(self, container: str, action: str, **query: Any) -> None:
        """start, stop, kill, pause, unpause."""
        self.request("POST", f"/containers/{container}/{action}", **query)

    def create(self, name: str, config: Mapping[str, Any]) -> str:
        return str(self.request("POST", "/containers/create", dict(config), name=name)["Id"])

    def remove(self, container: str) -> None:
        """Whether it is there or not."""
        try:
            self.request("DELETE", f"/containers/{container}", force=1, v=1)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    def put(self, container: str, directory: str, archive: bytes) -> None:
        self.request("PUT", f"/containers/{container}/archive", archive, path=directory)

    def get(self, container: str, path: str) -> bytes:
        """One file's bytes."""
        data = self.request("GET", f"/containers/{container}/archive", path=path)
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            file = tar.extractfile(tar.next())  # type: ignore[arg-type]
            assert file is not None
            return file.read()

    # what containers share

    def volumes(self) -> dict[str, Json]:
        return {volume["Name"]: volume for volume in self.request("GET", "/volumes")["Volumes"] or ()}

    def remove_volume(self, name: str) -> None:
        self.request("DELETE", f"/volumes/{name}", force=1)

    def networks(self) -> dict[str, str]:
        return {network["Id"]: network["Name"] for network in self.request("GET", "/networks")}

    # images

    def load(self, archive: bytes) -> None:
        answer = self.request("POST", "/images/load", archive, quiet=1)
        assert b"errorDetail" not in json.dumps(answer, default=bytes.decode).encode(), answer

    def save(self, reference: str) -> bytes:
        return bytes(self.request("GET", f"/images/{quote(reference, safe='')}/get"))

    def remove_image(self, reference: str) -> None:
        self.request("DELETE", f"/images/{quote(reference, safe='')}", force=1)


@dataclass(frozen=True)
class Entry:
    """One file, or what else a tar can hold, of an image made by hand."""

    data: bytes = b""
    mode: int = 0o755
    kind: bytes = tarfile.REGTYPE
    link: str = ""


def make_tar(entries: Mapping[str, Entry]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, entry in entries.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.type, info.linkname = len(entry.data), entry.mode, entry.kind, entry.link
            tar.addfile(info, io.BytesIO(entry.data))
    return buffer.getvalue()


def make_image(
    reference: str,
    entries: Mapping[str, Entry],
    *,
    architecture: str = "amd64",
    config: Mapping[str, Any] | None = None,
) -> bytes:
    """An archive that ``docker load`` takes: an image of one layer, of whatever architecture and configuration."""
    layer = make_tar(entries)
    settings = {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], **(config or {})}
    description = {
        "architecture": architecture,
        "os": "linux",
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        "history": [{"created": "2024-01-01T00:00:00Z", "created_by": "by hand"}],
    }
    text = json.dumps(description).encode()
    name = f"{hashlib.sha256(text).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": [reference], "Layers": ["layer.tar"]}]
    parts = {name: text, "layer.tar": layer, "manifest.json": json.dumps(manifest).encode()}
    return make_tar({path: Entry(data, 0o644) for path, data in parts.items()})


def wait_until(condition: Callable[[], object], bound: float = 10.0, what: str = "") -> None:
    """Poll, from a thread or a test without an event loop."""
    deadline = time.monotonic() + bound
    while not condition():
        assert time.monotonic() < deadline, f"not within {bound:g} s: {what}"
        time.sleep(0.02)


async def eventually(condition: Callable[[], object], bound: float = 10.0, what: str = "") -> None:
    """Poll, and let other tasks go on meanwhile."""
    deadline = time.monotonic() + bound
    while not condition():
        assert time.monotonic() < deadline, f"not within {bound:g} s: {what}"
        await anyio.sleep(0.02)
