"""The fake's shell: enough of ``/bin/sh`` for tests that don't depend on what a command does.

It knows simple commands joined by ``;``, newlines, ``&&``, ``||`` and a trailing ``&``, quotes, ``$NAME``, ``$$``,
``$?``, assignments, and the redirections ``>``, ``>>``, ``2>``, ``<``, ``>&2`` and ``2>&1``. It has no pipes, loops or
functions: use ``respond=`` for the rest. The commands are in :data:`sandbox.testing.commands.COMMANDS`.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace

from anyio.lowlevel import checkpoint

from sandbox.testing.commands import COMMANDS, Exited, Process, Stream, Write

_TOKEN = re.compile(
    r"""[^\S\n]*(?:
        (\n) | (\#[^\n]*) | (&&|\|\||2>&1|>&2|2>|>>|[;&|<>()])
        | ((?: '[^']*' | "(?:\\.|[^"\\])*" | \\. | [^\s;&|<>()'"\\] )+)
    )""",
    re.VERBOSE | re.DOTALL,
)
_PART = re.compile(r"""'([^']*)'|"((?:\\.|[^"\\])*)"|\\(.)|([^'"\\]+)""", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\}|([$?]))")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)


async def run_script(process: Process, script: str) -> int:
    """Run a whole script; ``Exited`` and ``Signaled`` end it early."""
    words: list[str] = []
    wanted = True
    for token in [*_tokens(script), ";"]:
        if token not in (";", "\n", "&", "&&", "||"):
            words.append(token)
            continue
        if words and wanted:
            if token == "&":
                process.spawn(_background(process, words))
                process.last = 0
            else:
                process.last = await _run_words(process, words)
        words = []
        wanted = (process.last == 0) == (token == "&&") if token in ("&&", "||") else True
    return process.last


async def run_argv(process: Process, argv: list[str]) -> int:
    """Run one command; 127 when the fake doesn't know it."""
    name = posixpath.basename(argv[0])
    if name == "sh" and argv[1:2] == ["-c"]:
        return await run_script(process, argv[2])
    command = COMMANDS.get(name)
    if command is None:
        await process.complain(f"{argv[0]}: not found")
        return 127
    try:
        return await command(process, argv[1:])
    except OSError as error:
        return await process.complain(f"{name}: {error.filename}: {error.strerror}")


def _background(process: Process, words: list[str]) -> Callable[[], Awaitable[object]]:
    async def nothing() -> bytes:
        return b""

    async def run() -> None:
        await _run_words(replace(process, read=nothing), words)

    return run


async def _run_words(process: Process, words: list[str]) -> int:
    argv: list[str] = []
    shell = process
    tokens = iter(words)
    for token in tokens:
        if token in (">", ">>", "2>", "<"):
            process = await _redirected(process, token, _expand(shell, next(tokens, "")))
        elif token == ">&2":
            process = replace(process, write=_onto("stderr", process))
        elif token == "2>&1":
            process = replace(process, write=_onto("stdout", process))
        elif token in ("|", "(", ")"):
            raise Exited(2 * await shell.complain(f"the fake shell does not know {token!r}; use respond="))
        else:
            argv.append(token)
    while argv and (found := _ASSIGNMENT.fullmatch(argv[0])):
        shell.env[found[1]] = _expand(shell, found[2])
        argv.pop(0)
    expanded = [_expand(shell, word) for word in argv]
    if not expanded:
        return 0
    if expanded[0] in ("cd", "export"):
        return await COMMANDS[expanded[0]](shell, expanded[1:])
    return await run_argv(process, expanded)


async def _redirected(process: Process, operator: str, name: str) -> Process:
    path = process.path(name)
    if operator == "<":
        content = [process.files.read(path, process.user).data]

        async def read() -> bytes:
            return content.pop() if content else b""

        return replace(process, read=read)
    redirected: Stream = "stderr" if operator == "2>" else "stdout"
    inherited = process.write
    if path != "/dev/null" and operator != ">>":
        process.files.write(path, b"", process.user)

    async def write(stream: Stream, data: bytes) -> None:
        if stream != redirected:
            await inherited(stream, data)
        elif path == "/dev/null":
            await checkpoint()
        else:
            process.files.append(path, data, process.user)

    return replace(process, write=write)


def _onto(stream: Stream, process: Process) -> Write:
    async def write(_stream: Stream, data: bytes) -> None:
        await process.write(stream, data)

    return write


def _tokens(script: str) -> list[str]:
    tokens = []
    position = 0
    while position < len(script):
        found = _TOKEN.match(script, position)
        if found is None:
            break
        position = found.end()
        newline, comment, operator, word = found.groups()
        if not comment:
            tokens.append(newline or operator or word)
    return tokens


def _expand(process: Process, word: str) -> str:
    parts = []
    for single, double, escaped, plain in _PART.findall(word):
        if plain or double:
            text = plain or re.sub(r"\\([$\"\\])", r"\1", double)
            parts.append(_VARIABLE.sub(lambda found: _value(process, found), text))
        else:
            parts.append(single or escaped)
    return "".join(parts)


def _value(process: Process, found: re.Match[str]) -> str:
    if found[3]:
        return str(process.last) if found[3] == "?" else "2"
    return process.env.get(found[1] or found[2], "")
