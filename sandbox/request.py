"""From a caller's arguments to one request of the protocol: everything is judged here, before anything is sent."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from sandbox.engine import ImageInfo
from sandbox.spec import SandboxSpec, check_env, check_output_limit
from sandbox.wire import BODY_MAX, SCRIPT_MAX, CallFlag, Kind, Request

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""For an image that sets none: without PATH a shell finds nothing."""

MAX_TIMEOUT = 30 * 24 * 3600.0
"""Seconds; the protocol counts milliseconds in 32 bits."""

MAX_ARGUMENT = 128 * 1024 - 1
"""Linux takes no longer argument or environment string (MAX_ARG_STRLEN, with its NUL)."""

MAX_ARGUMENTS = BODY_MAX - 64 * 1024
"""Linux takes a quarter of the stack's limit for all of them and their pointers; the guest adds HOME and others."""

_GUEST_SETS = ("HOME", "USER", "LOGNAME")


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a call inherits: the image's configuration under the spec's."""

    user: str
    workdir: str
    env: Mapping[str, str]
    encoded_env: tuple[bytes, ...]
    output_limit: int
    grace: float

    @classmethod
    def of(cls, spec: SandboxSpec, image: ImageInfo) -> Self:
        """HOME, USER and LOGNAME follow each call's own user, so the image's are left out."""
        inherited = {name: value for name, value in image.env.items() if name not in _GUEST_SETS}
        env = {"PATH": DEFAULT_PATH, **inherited, **spec.env}
        encoded_env = _encode_env(env)
        _check_kernel_bounds((), encoded_env)
        return cls(
            user=spec.user or image.user or "0:0",
            workdir=spec.workdir or image.workdir or "/",
            env=env,
            encoded_env=encoded_env,
            output_limit=int(spec.limits.output),
            grace=spec.grace,
        )


def run_request(
    defaults: Defaults,
    command: str | Sequence[str],
    *,
    timeout: float | None,
    cwd: str | None,
    env: Mapping[str, str] | None,
    user: str | None,
    merge_stderr: bool,
    output_limit: int | None,
    has_stdin: bool,
    watched: bool,
) -> Request:
    """One command."""
    args, script = _command(command)
    entries = defaults.encoded_env if not env else _encode_env({**defaults.env, **check_env(env)})
    _check_kernel_bounds(args, entries)
    limit = defaults.output_limit if output_limit is None else output_limit
    check_output_limit(limit)
    flags = CallFlag(0)
    for wanted, flag in (
        (merge_stderr, CallFlag.MERGE),
        (watched, CallFlag.WATCH),
        (has_stdin, CallFlag.STDIN),
        (script, CallFlag.SCRIPT),
    ):
        if wanted:
            flags |= flag
    return Request(
        Kind.RUN,
        args=args,
        user=_user(defaults, user),
        cwd=_encode(posixpath.join(defaults.workdir, cwd) if cwd else defaults.workdir, "the working directory"),
        env=entries,
        flags=flags,
        script=script,
        timeout_ms=_milliseconds(timeout),
        grace_ms=round(defaults.grace * 1000),
        output_limit=limit,
    )


def file_request(
    defaults: Defaults, kind: Kind, path: str, *, user: str | None, timeout: float | None, max_bytes: int
) -> Request:
    """One transfer. An absolute path needs no working directory, which a command may have removed."""
    encoded = _encode(path, "the path")
    if not encoded:
        raise ValueError("the path is empty")
    if not 0 <= max_bytes < 1 << 64:
        raise ValueError(f"max_bytes is {max_bytes}; choose one from 0 to 2**64 - 1")
    return Request(
        kind,
        args=(encoded,),
        user=_user(defaults, user),
        cwd=b"/" if path.startswith("/") else _encode(defaults.workdir, "the working directory"),
        timeout_ms=_milliseconds(timeout),
        grace_ms=round(defaults.grace * 1000),
        max_bytes=max_bytes,
    )


def check_request(defaults: Defaults, timeout: float) -> Request:
    """Whether the user exists and the working directory can be entered."""
    return Request(
        Kind.CHECK,
        args=(b".",),
        user=_user(defaults, None),
        cwd=_encode(defaults.workdir, "the working directory"),
        timeout_ms=_milliseconds(timeout),
    )


def _command(command: str | Sequence[str]) -> tuple[tuple[bytes, ...], bytes]:
    """Arguments and script. A command that is too long for an argument reaches the shell as a file."""
    if isinstance(command, str):
        text = _encode(command, "the command")
        if len(text) <= MAX_ARGUMENT:
            return (b"/bin/sh", b"-c", text), b""
        if len(text) > SCRIPT_MAX:
            raise ValueError(f"the command has {len(text)} bytes; the most is {SCRIPT_MAX}: write it to a file")
        return (b"/bin/sh",), text
    if isinstance(command, bytes | bytearray | memoryview):
        raise TypeError(f"a command is a str or a sequence of str, not {type(command).__name__}")
    args = tuple(_encode(part, "an argument") for part in command)
    if not args or not args[0]:
        raise ValueError("the command is empty; its first part is the program")
    return args, b""


def _check_kernel_bounds(args: tuple[bytes, ...], env: tuple[bytes, ...]) -> None:
    size = 0
    for text in (*args, *env):
        size += len(text) + 9
        if len(text) > MAX_ARGUMENT:
            raise ValueError(
                f"an argument or environment variable has {len(text)} bytes; Linux takes at most {MAX_ARGUMENT}: "
                "pass it as stdin or as a file"
            )
    if size > MAX_ARGUMENTS:
        raise ValueError(
            f"arguments and environment have {size} bytes; Linux takes about {MAX_ARGUMENTS}: pass them as stdin or "
            "as a file"
        )


def _encode_env(env: Mapping[str, str]) -> tuple[bytes, ...]:
    return tuple(_encode(f"{name}={value}", "an environment variable") for name, value in env.items())


def _user(defaults: Defaults, user: str | None) -> bytes:
    return _encode(defaults.user if user is None else user, "the user") or b"0:0"


def _encode(text: str, what: str) -> bytes:
    if not isinstance(text, str):
        raise TypeError(f"{what} is a str, not {type(text).__name__}")
    if "\0" in text:
        raise ValueError(f"{what} has a NUL byte, which no process can be given; remove it")
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} has a lone surrogate at {error.start}, which no byte stands for; remove it") from None


def _milliseconds(timeout: float | None) -> int:
    if timeout is None:
        return 0
    if not 0 < timeout <= MAX_TIMEOUT:
        raise ValueError(f"a timeout of {timeout} s is outside 0..{MAX_TIMEOUT:.0f}; choose one within, or None")
    return max(1, math.ceil(timeout * 1000))
