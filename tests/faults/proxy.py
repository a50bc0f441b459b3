"""The real engine behind a unix socket that breaks chosen requests: refuses them, loses their answers, or hangs."""

from __future__ import annotations

import contextlib
import json
import re
import selectors
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

Fault = Literal["500", "garbage", "hang-up", "answer-lost", "hang"]
"""``answer-lost``: the engine does it, and the connection breaks before it says so. ``hang``: until ``let_go``, then as
``hang-up``."""

BREATH = 0.05


class FaultyEngine:
    """One connection a request, so that each can be judged by its first line."""

    def __init__(self, upstream: str, path: Path) -> None:
        self.address = f"unix://{path}"
        self.seen: list[str] = []
        """Method and path of each request, without the API's version."""
        self._upstream = upstream
        self._rules: list[tuple[re.Pattern[str], Fault, int]] = []
        self._over = threading.Event()
        self._let_go = threading.Event()
        self._threads: list[threading.Thread] = []
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(64)

    def fail(self, pattern: str, fault: Fault, times: int = 1_000_000) -> None:
        """From now on, and so many times, requests whose method and path match fail."""
        self._rules.append((re.compile(pattern), fault, times))

    def mend(self) -> None:
        self._rules.clear()

    def let_go(self) -> None:
        """Hang up on all that hang."""
        self._let_go.set()

    def __enter__(self) -> Self:
        self._begin(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._let_go.set()
        self._server.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._server.close()

    def _begin(self, function: object, *arguments: object) -> None:
        thread = threading.Thread(target=function, args=arguments, name="proxy", daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self._begin(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            head = self._read_head(client)
            if not head:
                return
            method, path = head.split(b" ", 2)[:2]
            request = f"{method.decode()} {re.sub('^/v[0-9.]+', '', path.decode())}"
            self.seen.append(request)
            fault = self._fault(request)
            if fault == "500":
                body = json.dumps({"message": "the engine is out of sorts"}).encode()
                client.sendall(
                    b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nConnection: close\r\n"
                    b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
                )
            elif fault == "garbage":
                client.sendall(b"\x00\x01\x02 no HTTP at all\r\n\r\n")
            elif fault == "hang":
                self._let_go.wait()
            elif fault != "hang-up":
                self._forward(client, head, answer=fault != "answer-lost")

    def _fault(self, request: str) -> Fault | None:
        for number, (pattern, fault, times) in enumerate(self._rules):
            if times > 0 and pattern.search(request):
                self._rules[number] = (pattern, fault, times - 1)
                return fault
        return None

    def _read_head(self, client: socket.socket) -> bytes:
        head = b""
        while b"\r\n\r\n" not in head:
            data = client.recv(65536)
            if not data:
                return b""
            head += data
        if b"upgrade: tcp" in head.lower():
            return head
        return re.sub(rb"\r\n(?i:connection): [^\r]*", b"", head, count=1).replace(
            b"\r\n", b"\r\nConnection: close\r\n", 1
        )

    def _forward(self, client: socket.socket, head: bytes, *, answer: bool) -> None:
        with socket.socket(socket.AF_UNIX) as engine, selectors.DefaultSelector() as ready:
            engine.connect(self._upstream)
            engine.sendall(head)
            ready.register(client, selectors.EVENT_READ, engine)
            ready.register(engine, selectors.EVENT_READ, client)
            while ready.get_map() and not self._over.is_set():
                for key, _ in ready.select(BREATH):
                    source, sink = key.fileobj, key.data
                    assert isinstance(source, socket.socket)
                    data = source.recv(65536)
                    if data and (answer or source is client):
                        sink.sendall(data)
                    elif not data or source is engine:
                        if source is engine:
                            return
                        ready.unregister(client)
                        engine.shutdown(socket.SHUT_WR)
