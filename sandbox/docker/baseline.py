"""What the docker SDK itself costs: the other side of every comparison in the selftest and the benchmark.

It is used as its documentation shows it, with nothing of ours between, so that the ratios are honest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import docker

from sandbox.spec import LABEL_PREFIX

Json = dict[str, Any]


class Baseline:
    """Blocking calls of the SDK. Used by one thread at a time."""

    def __init__(self, address: str) -> None:
        self._client: Any = docker.APIClient(address, version="auto", timeout=120)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def exec(self, container: str, command: Sequence[str]) -> tuple[int, bytes]:
        """``docker exec`` through the SDK: create, start, read, inspect. Exit code and output."""
        made = self._client.exec_create(container, list(command))
        output = self._client.exec_start(made["Id"])
        return self._client.exec_inspect(made["Id"])["ExitCode"], output

    def timed_exec(self, container: str, command: Sequence[str]) -> Callable[[], None]:
        """A function that runs the command once and fails if it does."""

        def once() -> None:
            code, output = self.exec(container, command)
            if code != 0:
                raise RuntimeError(f"docker exec ended with {code}: {output[:200]!r}")

        return once

    @contextmanager
    def started(self, name: str, config: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
        """Create, attach and start a container; its id and the seconds that it took.

        At the end of the block its stdin is closed, and with it goes one that ends with its stdin; the engine's
        ``remove`` ends any other, and is needed anyhow where this is interrupted between create and start.
        """
        began = time.perf_counter()
        container = self._client.create_container_from_config(dict(config), name)["Id"]
        stream = self._client.attach_socket(container, {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
        try:
            self._client.start(container)
            yield container, time.perf_counter() - began
        finally:
            stream.close()

    def process_id(self, container: str) -> int:
        """The host's number of the container's PID 1, where the engine is on this host."""
        return int(self._client.inspect_container(container)["State"]["Pid"])

    def owned_by(self, pid: int) -> int:
        """How many containers of any state a process of this host has made, those for seeding the guest included."""
        label = f"{LABEL_PREFIX}pid={pid}"
        return len(self._client.containers(all=True, quiet=True, filters={"label": [label]}))
