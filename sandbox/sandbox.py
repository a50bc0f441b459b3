"""A sandbox: one container, one guest, one stream, and the calls over it. Opened by ``async with``, gone after it."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from sandbox import files
from sandbox.calls import Running, Source, Watcher, perform, streaming
from sandbox.channel import Channel, open_channel
from sandbox.engine import Engine, EngineInfo, ImageInfo
from sandbox.errors import SandboxExhausted
from sandbox.localtree import Download
from sandbox.outcome import exhausted_result, run_result
from sandbox.plan import plan_container
from sandbox.request import Defaults, run_request
from sandbox.spec import ExecResult, SandboxSpec
from sandbox.start import greet, launched
from sandbox.wire import Feature

START_TIMEOUT = 60.0
"""Seconds from the container's start until the guest must be ready."""

RUN_TIMEOUT = 60.0
FILE_TIMEOUT = 60.0
MAX_READ = 16 * 1024 * 1024
MAX_DOWNLOAD = 1024 * 1024 * 1024
MAX_ENTRIES = 100_000

Stdin = bytes | str | AsyncIterable[bytes] | None


@dataclass(frozen=True, slots=True)
class SandboxInfo:
    """Facts about an open sandbox."""

    container_id: str
    name: str
    image: ImageInfo
    engine: EngineInfo
    warnings: tuple[str, ...]
    """What the engine said when it made the container: limits that it discards, for one."""
    oom_known: bool
    """Whether ``out_of_memory`` can be told from a SIGKILL here."""


class Sandbox:
    """One container that runs commands for its opener. Made by :meth:`open`; any number of calls at once."""

    def __init__(self, spec: SandboxSpec, info: SandboxInfo, defaults: Defaults, channel: Channel) -> None:
        self._spec = spec
        self._info = info
        self._defaults = defaults
        self._channel = channel

    @classmethod
    @asynccontextmanager
    async def open(
        cls, engine: Engine, spec: SandboxSpec, *, start_timeout: float = START_TIMEOUT
    ) -> AsyncIterator[Self]:
        """Start a container and yield when it serves. Whatever happens, it is gone when the block has ended.

        Raises ``ImageUnavailable``, ``SandboxStartError``, ``UserUnknown`` (the spec's user), ``EngineUnavailable``.
        """
        image = await engine.image(spec.image, spec.platform)
        plan = plan_container(spec, image, engine.info)
        defaults = Defaults.of(spec, image)
        async with launched(engine, plan) as attachment:
            explain = partial(engine.cause_of_death, attachment.container_id)
            async with open_channel(attachment.stream, lease=spec.lease, explain=explain) as channel:
                hello = await greet(channel, plan, defaults, start_timeout)
                info = SandboxInfo(
                    container_id=attachment.container_id,
                    name=plan.name,
                    image=image,
                    engine=engine.info,
                    warnings=attachment.warnings,
                    oom_known=Feature.OOM in hello.features,
                )
                yield cls(spec, info, defaults, channel)

    @property
    def spec(self) -> SandboxSpec:
        """What was asked for."""
        return self._spec

    @property
    def info(self) -> SandboxInfo:
        """What came to be."""
        return self._info

    @property
    def container_id(self) -> str:
        """The engine's id."""
        return self._info.container_id

    @property
    def closed(self) -> bool:
        """Whether no call can be made any more: the block has ended, or the sandbox was lost."""
        return self._channel.ended

    async def run(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = RUN_TIMEOUT,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        stdin: Stdin = None,
        merge_stderr: bool = False,
        output_limit: int | None = None,
        on_output: Watcher | None = None,
    ) -> ExecResult:
        """Run a command once and say how it ended; whatever it does is data.

        A ``str`` is a script for a fresh ``/bin/sh``, a sequence is a program and its arguments. After ``timeout``
        seconds (60 unless told; None: no limit) it is killed with all its children, and so it is when the caller is
        cancelled. It ends when its shell exits; children that go on in the background are left alone
        (``ExecResult.background``).

        ``cwd`` may be relative to the sandbox's working directory; ``env`` is added to the image's and the spec's.
        ``stdin`` is sent, then closed; without it the command reads ``/dev/null``. ``merge_stderr`` sends stderr to
        stdout, in the order of writing. ``output_limit`` bytes of each stream are kept. ``on_output(stream, data)``,
        a function or coroutine function, sees the bytes as they come; while it works, the command waits.

        Raises ``SandboxLost`` when the sandbox dies, ``UserUnknown`` for ``user``, ``FileNotFoundError`` and other
        ``OSError`` for ``cwd``, ``ValueError`` for what no process can be given.
        """
        request = run_request(
            self._defaults,
            command,
            timeout=timeout,
            cwd=cwd,
            env=env,
            user=user,
            merge_stderr=merge_stderr,
            output_limit=output_limit,
            has_stdin=stdin is not None,
            watched=on_output is not None,
        )
        try:
            return run_result(await perform(self._channel, request, source=_source(stdin), watcher=on_output))
        except SandboxExhausted as error:
            return exhausted_result(error)

    def stream(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = RUN_TIMEOUT,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        stdin: Stdin = None,
        merge_stderr: bool = False,
        output_limit: int | None = None,
    ) -> AbstractAsyncContextManager[Running]:
        """Run a command and iterate over its output while it runs; the arguments are those of :meth:`run`::

            async with box.stream("make") as running:
                async for chunk in running:
                    print(chunk.stream, chunk.data)
            print(running.result.exit_code)

        A command that still runs when the block ends is killed.
        """
        request = run_request(
            self._defaults,
            command,
            timeout=timeout,
            cwd=cwd,
            env=env,
            user=user,
            merge_stderr=merge_stderr,
            output_limit=output_limit,
            has_stdin=stdin is not None,
            watched=True,
        )
        return streaming(self._channel, request, _source(stdin))

    async def read_file(
        self, path: str, *, max_bytes: int = MAX_READ, user: str | None = None, timeout: float | None = FILE_TIMEOUT
    ) -> bytes:
        """Return a whole file of at most ``max_bytes``, read as the user.

        Raises Python's own errors with the path, ``FileTooLarge``, and ``NotAFile`` for a device, FIFO or socket.
        """
        return await files.read_file(
            self._channel, self._defaults, path, max_bytes=max_bytes, user=user, timeout=timeout
        )

    async def write_file(
        self,
        path: str,
        data: bytes | str,
        *,
        mode: int | None = None,
        user: str | None = None,
        timeout: float | None = FILE_TIMEOUT,
    ) -> None:
        """Write a whole file as the user, atomically; missing parent directories are made.

        Without ``mode`` an existing file keeps its own and a new one gets 0644.
        """
        await files.write_file(self._channel, self._defaults, path, data, mode=mode, user=user, timeout=timeout)

    async def upload(
        self, local: Path | str, remote: str, *, user: str | None = None, timeout: float | None = FILE_TIMEOUT
    ) -> None:
        """Copy a local file or tree to the path ``remote``, as the user; a directory there is merged with it.

        Links below ``local`` are copied as links; sockets, FIFOs and devices are left out.
        """
        await files.upload(self._channel, self._defaults, Path(local), remote, user=user, timeout=timeout)

    async def download(
        self,
        remote: str,
        local: Path | str,
        *,
        max_bytes: int = MAX_DOWNLOAD,
        max_entries: int = MAX_ENTRIES,
        user: str | None = None,
        timeout: float | None = FILE_TIMEOUT,
    ) -> Download:
        """Copy a file or tree out, read as the user, to the path ``local``, all or nothing.

        A local file is replaced by a file; a tree needs a place where nothing is, or an empty directory. Links that
        lead out of the tree are left out and named in the result; modes are made harmless as ``tarfile`` does it.
        """
        return await files.download(
            self._channel,
            self._defaults,
            remote,
            Path(local),
            max_bytes=max_bytes,
            max_entries=max_entries,
            user=user,
            timeout=timeout,
        )

    async def reset(self) -> None:
        """Kill every process in the sandbox. Calls that run end as ``killed``; files stay."""
        await self._channel.reset()


def _source(stdin: Stdin) -> Source | None:
    if stdin is None or isinstance(stdin, AsyncIterable):
        return stdin
    if isinstance(stdin, str):
        stdin = stdin.encode("utf-8", "surrogateescape")
    return (memoryview(stdin).cast("B"),)
