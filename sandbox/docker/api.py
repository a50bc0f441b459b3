"""The border to the docker SDK: its only importer, and the one place where foreign exceptions become ours.

What comes out are plain JSON values and two exceptions: ``EngineUnavailable`` when the engine can't be reached, and
:class:`RefusedError` when it answered no; a caller that knows what was asked turns the latter into a sentence.
"""

from __future__ import annotations

import io
import json
import os
import socket
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import docker
import docker.errors
import requests

from sandbox.docker.sentences import message, one_line, why_unavailable
from sandbox.docker.transport import UnixAdapter
from sandbox.errors import EngineUnavailable, SandboxError

Json = dict[str, Any]

API_VERSION = (1, 44)
"""The newest API that is asked for. A newer engine serves it too, and its new defaults don't reach us."""

PROBE_TIMEOUT = 10
REQUEST_TIMEOUT = 120
"""Seconds. A start may be slow on a host that is busy; an engine that is silent for so long is hung."""

DISCARD_BOUND = 5.0
"""Seconds in which a removal that nobody waits for is asked for again."""

CONNECTIONS = 64
"""Idle ones that are kept; more than the threads that use them."""

FILE_BOUND = 16 * 1024 * 1024


class RefusedError(SandboxError):
    """The engine answered, and said no."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"The engine refused ({status}): {message}.")
        self.status = status
        self.message = message


class DockerApi:
    """The few calls that are needed, blocking. One object serves many threads."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.version = self._probe()
        self.api_version = negotiate(self.version)
        with self._border():
            self._client = self._new_client(self.api_version, REQUEST_TIMEOUT)
        self._base = f"{self._client.base_url}/v{self.api_version}"

    def _probe(self) -> Json:
        """The engine's own description; the first words with it."""
        try:
            with self._border():
                client = self._new_client("1.24", PROBE_TIMEOUT)
                try:
                    return dict(client.version(api_version=False))
                finally:
                    client.close()
        except RefusedError as refusal:
            raise EngineUnavailable(
                f"What answers at {self.address} is no container engine, or may not be used ({refusal.message[:100]}); "
                "check the address."
            ) from refusal

    def _new_client(self, version: str, timeout: int) -> Any:
        client = docker.APIClient(self.address, version=version, timeout=timeout, max_pool_size=CONNECTIONS)
        if self.address.startswith("unix://"):
            path = "/" + self.address.removeprefix("unix://").lstrip("/")
            client.mount("http+docker://", UnixAdapter(path, CONNECTIONS))
        # Neither a proxy for the web nor a .netrc is meant for the engine.
        client.trust_env = False
        return client

    def close(self) -> None:
        """Close the pooled connections."""
        self._client.close()

    def info(self) -> Json:
        with self._border():
            return dict(self._client.info())

    # containers

    def create(self, name: str, config: Json, platform: str | None = None) -> tuple[str, tuple[str, ...]]:
        """The new container's id, and the engine's warnings."""
        with self._border():
            # The raw call: the SDK's own builder would put the proxies of the user's configuration into the container.
            answer = self._client.create_container_from_config(config, name, platform)
            return answer["Id"], tuple(answer.get("Warnings") or ())

    def attach(self, container: str) -> socket.socket:
        """The connected socket of an attach to stdin, stdout and stderr. The container must not be started yet."""
        # Not the SDK's attach_socket: it sets no timeout, and a hung engine would hold the thread for ever.
        url = f"{self._base}/containers/{container}/attach"
        streams = {"stream": 1, "stdin": 1, "stdout": 1, "stderr": 1}
        headers = {"Connection": "Upgrade", "Upgrade": "tcp"}
        with self._border():
            with self._client.post(
                url, params=streams, headers=headers, stream=True, timeout=REQUEST_TIMEOUT
            ) as response:
                if response.status_code not in (101, 200):
                    raise RefusedError(response.status_code, message(response.text))
                # A descriptor of our own, so that the response can be closed. Nothing of the guest can be in the
                # response's buffer, since the container doesn't run yet.
                return socket.socket(fileno=os.dup(response.raw.fileno()))

    def start(self, container: str) -> None:
        with self._border():
            self._client.start(container)

    def delete(self, container: str, timeout: float = REQUEST_TIMEOUT) -> None:
        """Kill it and remove it with its anonymous volumes."""
        url = f"{self._base}/containers/{container}"
        with self._border():
            response = self._client.delete(url, params={"force": 1, "v": 1}, timeout=timeout)
            if response.status_code >= 300:
                raise RefusedError(response.status_code, message(response.text))

    def discard(self, container: str) -> None:
        """Remove a container that never ran; that another process was faster is no error."""
        with suppress(RefusedError):
            self.remove(container, DISCARD_BOUND)

    def remove(self, name: str, deadline: float, *, give_up_on: str | None = None) -> None:
        """Kill a container and wait until there is none of that name.

        A container that exits removes itself, so its removal may be under way already: the engine then refuses ours
        (409), or its storage driver is busy (500), and all that can be done is to ask again until it is gone. A refusal
        with the words ``give_up_on`` is final.
        """
        until = time.monotonic() + deadline
        pause = 0.005
        while True:
            try:
                self.delete(name, max(1.0, until - time.monotonic()))
                return
            except RefusedError as refusal:
                if refusal.status == 404:
                    return
                if time.monotonic() + pause > until or (give_up_on and give_up_on in refusal.message):
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 0.25)

    def inspect(self, container: str) -> Json | None:
        """None: there is none of that name."""
        with self._border(), suppress(docker.errors.NotFound):
            return dict(self._client.inspect_container(container))
        return None

    def containers(self, filters: Mapping[str, list[str]]) -> list[Json]:
        """Containers of any state."""
        with self._border():
            return list(self._client.containers(all=True, filters=dict(filters)))

    def put_file(self, container: str, directory: str, name: str, data: bytes) -> None:
        """One executable file of root's into a container or a volume that it mounts."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o555
            tar.addfile(entry, io.BytesIO(data))
        with self._border():
            self._client.put_archive(container, directory, archive.getvalue())

    def get_file(self, container: str, path: str) -> bytes | None:
        """A file's bytes; None if it is not there."""
        with self._border(), suppress(docker.errors.NotFound):
            chunks, _ = self._client.get_archive(container, path)
            archive = io.BytesIO()
            for chunk in chunks:
                archive.write(chunk)
                if archive.tell() > FILE_BOUND:
                    raise RefusedError(500, f"{path} is larger than {FILE_BOUND} bytes")
            return _single_file(archive)
        return None

    def events(self, container: str, since: float, until: float) -> Iterator[Json]:
        """The container's history, oldest first; ends at ``until``, or when the caller stops asking."""
        # Not the SDK's events: it sets no timeout.
        url = f"{self._base}/events"
        filters = json.dumps({"type": ["container"], "container": [container]})
        params = {"since": f"{since:.6f}", "until": f"{until:.6f}", "filters": filters}
        with self._border(), self._client.get(url, params=params, stream=True, timeout=PROBE_TIMEOUT) as response:
            if response.status_code != 200:
                raise RefusedError(response.status_code, message(response.text))
            for line in response.iter_lines():
                yield json.loads(line)

    # images

    def image(self, reference: str) -> Json | None:
        with self._border(), suppress(docker.errors.NotFound):
            return dict(self._client.inspect_image(reference))
        return None

    def pull(self, reference: str, platform: str | None) -> None:
        with self._border():
            try:
                for line in self._client.pull(reference, stream=True, decode=True, platform=platform):
                    if "error" in line:
                        raise RefusedError(500, one_line(str(line["error"])))
            except docker.errors.APIError:
                raise
            except docker.errors.DockerException as error:  # the user's credential helper
                raise RefusedError(401, one_line(str(error))) from error

    # volumes

    def create_volume(self, name: str, labels: Mapping[str, str]) -> None:
        """Idempotent: an existing volume of that name stays as it is."""
        with self._border():
            self._client.create_volume(name, labels=dict(labels))

    def volume(self, name: str) -> Json | None:
        with self._border(), suppress(docker.errors.NotFound):
            return dict(self._client.inspect_volume(name))
        return None

    def volumes(self, label: str) -> list[Json]:
        with self._border():
            return list(self._client.volumes(filters={"label": [label]}).get("Volumes") or ())

    def delete_volume(self, name: str) -> None:
        with self._border():
            self._client.remove_volume(name)

    # networks

    def create_network(self, name: str, options: Mapping[str, str], labels: Mapping[str, str]) -> str:
        with self._border():
            answer = self._client.create_network(name, driver="bridge", options=dict(options), labels=dict(labels))
            return str(answer["Id"])

    def networks(self, label: str) -> list[Json]:
        with self._border():
            return list(self._client.networks(filters={"label": [label]}))

    def delete_network(self, network: str) -> None:
        with self._border():
            self._client.remove_network(network)

    @contextmanager
    def _border(self) -> Iterator[None]:
        try:
            yield
        except docker.errors.APIError as error:
            raise RefusedError(error.status_code or 500, one_line(str(error.explanation or error))) from error
        except docker.errors.NullResource as error:
            raise RefusedError(400, "an empty name") from error
        except (docker.errors.DockerException, requests.exceptions.RequestException, OSError, ValueError) as error:
            # ValueError: what answers is no engine (its JSON can't be read).
            raise EngineUnavailable(why_unavailable(self.address, error)) from error


def negotiate(version: Mapping[str, Any]) -> str:
    """The API version to speak, from the engine's own answer."""
    newest, oldest = (_version(version.get(key)) for key in ("ApiVersion", "MinAPIVersion"))
    chosen = max(min(API_VERSION, newest or API_VERSION), oldest or API_VERSION[:0])
    return ".".join(map(str, chosen))


def _version(text: object) -> tuple[int, ...]:
    parts = str(text or "").split(".")
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()


def _single_file(archive: io.BytesIO) -> bytes | None:
    archive.seek(0)
    try:
        with tarfile.open(fileobj=archive) as tar:
            entry = tar.next()
            file = tar.extractfile(entry) if entry is not None and entry.isreg() else None
            return file.read() if file is not None else None
    except tarfile.TarError:
        return None
