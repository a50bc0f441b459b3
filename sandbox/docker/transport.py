"""Unix sockets for the SDK's requests, closed when they can't be connected.

The SDK's own adapter leaves that to the garbage collector: with an engine that is down, every request would leak a
descriptor until then, and a ``ResourceWarning``.
"""

from __future__ import annotations

import socket
from typing import Any

from docker.transport import UnixHTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool


class _Connection(HTTPConnection):
    path: str

    def connect(self) -> None:
        raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            raw.settimeout(self.timeout if isinstance(self.timeout, int | float) else None)
            raw.connect(self.path)
        except BaseException:
            raw.close()
            raise
        self.sock = raw


class _Pool(HTTPConnectionPool):
    def __init__(self, path: str, size: int) -> None:
        super().__init__("localhost", maxsize=size)
        self._path = path

    def _new_conn(self) -> _Connection:
        connection = _Connection("localhost")
        connection.path = self._path
        return connection


class UnixAdapter(UnixHTTPAdapter):
    """The SDK's adapter over connections that are closed properly."""

    def __init__(self, path: str, size: int) -> None:
        super().__init__(f"http+unix://{path}", max_pool_size=size)
        self._pool = _Pool(path, size)

    def get_connection(self, url: Any, proxies: Any = None) -> Any:
        """The one pool that there is: every address of this adapter is the same socket."""
        return self._pool

    def close(self) -> None:
        """Close the idle connections."""
        self._pool.close()
        super().close()
