"""The network of sandboxes that may reach out: one bridge of our own, without traffic between its containers.

A race between processes can make two. Everybody therefore uses the oldest, and whoever made a younger one takes it
back. Their names differ: engines let two networks have one name, and then refuse to start a container in either.
"""

from __future__ import annotations

import threading
from typing import Any
from uuid import uuid4

from sandbox.docker.api import DockerApi, RefusedError
from sandbox.plan import NAME_PREFIX, ROLE, shared_labels

NAME = f"{NAME_PREFIX}open-"
_LABEL = f"{ROLE}=network"
_OPTIONS = {
    "com.docker.network.bridge.enable_icc": "false",
    "com.docker.network.bridge.enable_ip_masquerade": "true",
}


class OpenNetwork:
    """The open network of one engine, made when it is first needed."""

    def __init__(self, api: DockerApi) -> None:
        self._api = api
        self._lock = threading.Lock()
        self._id: str | None = None

    def ensure(self) -> str:
        """The network's id."""
        with self._lock:
            if self._id is None:
                self._id = self._oldest() or self._create()
            return self._id

    def forget(self) -> None:
        """The network turned out to be gone; the next ``ensure`` makes it again."""
        with self._lock:
            self._id = None

    def remove_unused(self) -> list[str]:
        """Remove the networks of ours that no container uses, not even one that is yet to start; their ids."""
        networks: list[str] = [network["Id"] for network in self._api.networks(_LABEL)]
        unused = [network for network in networks if not self._api.containers({"network": [network]})]
        removed = [network for network in unused if self._delete(network)]
        if removed:
            self.forget()
        return removed

    def release(self) -> None:
        """If this engine has used the network: remove it unless others do."""
        if self._id is not None:
            self.remove_unused()

    def _create(self) -> str:
        mine = self._api.create_network(NAME + uuid4().hex[:12], _OPTIONS, shared_labels("network"))
        oldest = self._oldest() or mine
        if oldest != mine:
            self._delete(mine)
        return oldest

    def _oldest(self) -> str | None:
        networks: list[dict[str, Any]] = self._api.networks(_LABEL)
        return min(((str(n["Created"]), str(n["Id"])) for n in networks), default=(None, None))[1]

    def _delete(self, network: str) -> bool:
        try:
            self._api.delete_network(network)
        except RefusedError:
            return False  # somebody uses it by now, or was faster
        return True
