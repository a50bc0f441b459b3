"""The command line: run a command in a sandbox, list and sweep sandboxes, examine the engine.

argparse reads it: it comes with Python, and four commands of a few options need nothing more. What goes wrong is one
sentence on stderr and an exit status, never a traceback.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import anyio.to_thread
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sandbox.docker import DockerEngine
from sandbox.doctor import doctor
from sandbox.engine import ContainerInfo
from sandbox.errors import SandboxError
from sandbox.owner import Owner
from sandbox.sandbox import Sandbox
from sandbox.spec import ExecResult, Output, SandboxSpec
from sandbox.sweep import sweep

FAILED = 2
RUN_FAILED = 125
"""The sandbox and not the command failed: the status that ``docker run`` and ``timeout`` use too."""
INTERRUPTED = 130

Command = Callable[[argparse.Namespace], Awaitable[int]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command line; its exit status."""
    options = _parser().parse_args(arguments)
    failed = RUN_FAILED if options.command is _run else FAILED
    try:
        status: int = anyio.run(options.command, options)
        return status
    except ValidationError as error:
        return _complain(_in_one_sentence(error), failed)
    except (SandboxError, ValueError, OSError) as error:
        return FAILED if _is_our_reader_gone(error) else _complain(str(error), failed)
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sandbox", description="Sandboxes for shell agents.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = _subcommand(commands, "run", _run, "run one command in a sandbox of its own")
    run.add_argument("image", metavar="IMAGE", help="a reference or an image id")
    run.add_argument(
        "words",
        metavar="COMMAND",
        nargs=argparse.REMAINDER,
        help="one word: a script for /bin/sh; several: a program and its arguments",
    )
    run.add_argument("--user", help="name, uid, name:group or uid:gid (default: the image's)")
    run.add_argument("--cwd", metavar="DIR", help="where the command runs (default: the image's)")
    run.add_argument("--env", metavar="NAME[=VALUE]", action="append", default=[], help="without a value: yours")
    run.add_argument("--timeout", metavar="SECONDS", type=float, help="kill it after so long, exit status 124")
    run.add_argument("--network", choices=["none", "open"], help="what it reaches (default: none)")
    run.add_argument("--memory", metavar="SIZE", help="such as 512MiB")
    run.add_argument("--pids", metavar="N", type=int, help="processes and threads")
    run.add_argument("--cpus", metavar="N", type=float, help="cores' worth of time")
    run.add_argument("--disk", metavar="SIZE", help="of the root; needs an engine with quotas")
    run.add_argument("--capabilities", metavar="SET", help='"minimal" (the default), "docker", or names with commas')
    run.add_argument("--read-only", action="store_true", default=None, help="a read-only root")
    run.add_argument("--runtime", help="another OCI runtime, such as runsc")
    run.add_argument("--platform", help="such as linux/arm64")

    _subcommand(commands, "ps", _ps, "list the sandboxes on the engine, of whatever owner")
    _subcommand(commands, "sweep", _sweep, "remove what dead owners left")
    _subcommand(commands, "doctor", _doctor, "examine the engine and which limits it can enforce")
    return parser


def _subcommand(commands: Any, name: str, command: Command, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text.capitalize()}.")
    parser.set_defaults(command=command)
    parser.add_argument("--engine", metavar="ADDRESS", help="such as unix:///path (default: as docker finds it)")
    parser.add_argument("--json", action="store_true", help="for a program")
    return parser


async def _run(options: argparse.Namespace) -> int:
    spec = _spec(options)
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    if not words:
        raise ValueError("There is no command to run; give one after the image.")
    command: str | list[str] = words[0] if len(words) == 1 else words
    async with DockerEngine(options.engine) as engine, Sandbox.open(engine, spec) as box:
        began = time.perf_counter()
        if options.json:
            result = await box.run(command, timeout=options.timeout)
            _print_json(_result_facts(result, box.container_id, time.perf_counter() - began))
        else:
            # What was printed need not be kept too.
            result = await box.run(command, timeout=options.timeout, output_limit=0, on_output=_pass_on)
    if result.status != "exited" and not options.json:
        sys.stderr.write(f"python -m sandbox: the command ended as {result.status}. {result.reason}".rstrip() + "\n")
    return result.exit_code


def _spec(options: argparse.Namespace) -> SandboxSpec:
    """Only what was given: everything else is the spec's own default."""
    limits = {name: getattr(options, name) for name in ("memory", "pids", "cpus", "disk")}
    capabilities = options.capabilities
    if capabilities not in (None, "minimal", "docker"):
        capabilities = capabilities.split(",")
    given = {
        "image": options.image,
        "platform": options.platform,
        "user": options.user,
        "workdir": options.cwd,
        "env": dict(pair for text in options.env if (pair := _variable(text)) is not None),
        "limits": {name: value for name, value in limits.items() if value is not None},
        "network": options.network,
        "runtime": options.runtime,
        "read_only": options.read_only,
        "capabilities": capabilities,
    }
    return SandboxSpec.model_validate({name: value for name, value in given.items() if value is not None})


def _variable(text: str) -> tuple[str, str] | None:
    """``NAME=VALUE``, or ``NAME`` alone for this process's own, if it has it."""
    name, sign, value = text.partition("=")
    if sign:
        return name, value
    return (name, os.environ[name]) if name in os.environ else None


async def _pass_on(stream: str, data: bytes) -> None:
    # In a thread: a reader that is slow or stopped must not hold up the event loop, which keeps the lease.
    await anyio.to_thread.run_sync(_write, sys.stdout if stream == "stdout" else sys.stderr, data)


def _write(file: Any, data: bytes) -> None:
    file.buffer.write(data)
    file.buffer.flush()


def _result_facts(result: ExecResult, container_id: str, seconds: float) -> dict[str, Any]:
    return {
        "status": result.status,
        "exit_code": result.exit_code,
        "signal": result.signal,
        "reason": result.reason,
        "stdout": _output_facts(result.stdout),
        "stderr": _output_facts(result.stderr),
        "background": result.background,
        "seconds": round(seconds, 6),
        "container_id": container_id,
    }


def _output_facts(output: Output) -> dict[str, Any]:
    return {"text": output.text, "total_bytes": output.total_bytes, "truncated": output.truncated}


async def _ps(options: argparse.Namespace) -> int:
    async with DockerEngine(options.engine, sweeping=False) as engine:
        listed = [_facts(each) for each in sorted(await engine.containers(), key=lambda each: each.created)]
    if options.json:
        _print_json(listed)
        return 0
    table = Table("container", "image", "state", "age", "owner", box=None, pad_edge=False)
    for facts in listed:
        owner = f"{facts['pid'] or '?'}@{facts['host'] or '?'} ({facts['owner']})"
        age = f"{facts['age']:.0f} s"
        table.add_row(*(Text(_plain(text)) for text in (facts["name"], facts["image"], facts["state"], age, owner)))
    console = Console()
    console.print(table if listed else "No sandboxes.")
    return 0


def _facts(container: ContainerInfo) -> dict[str, Any]:
    owner = Owner.from_labels(container.labels)
    return {
        "id": container.id,
        "name": container.name,
        "image": container.image,
        "state": container.state,
        "age": round(max(0.0, time.time() - container.created), 1),
        "owner": owner.liveness(),
        "pid": owner.pid,
        "host": owner.host,
        "labels": dict(container.labels),
    }


async def _sweep(options: argparse.Namespace) -> int:
    async with DockerEngine(options.engine, sweeping=False) as engine:
        swept = await sweep(engine)
    if options.json:
        _print_json({"removed": swept.removed, "failed": swept.failed})
    else:
        console = Console()
        for name in swept.removed:
            console.print(Text(f"removed {_plain(name)}"))
        if not swept.removed and not swept.failed:
            console.print("Nothing to remove.")
        for sentence in swept.failed:
            _complain(sentence, FAILED)
    return FAILED if swept.failed else 0


async def _doctor(options: argparse.Namespace) -> int:
    diagnosis = await doctor(options.engine)
    if options.json:
        _print_json(diagnosis.facts())
    else:
        Console().print(diagnosis.table())
    return 0 if diagnosis.ok else FAILED


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def _plain(text: str) -> str:
    """Labels and names may hold anything, escape sequences for the terminal too."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _complain(sentence: str, status: int) -> int:
    sys.stderr.write(f"python -m sandbox: {_plain(sentence)}\n")
    return status


def _in_one_sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{place}: {message}." if place else f"{message}."


def _is_our_reader_gone(error: BaseException) -> bool:
    """Whether whoever read our output has left; then the interpreter's own last flush must not complain either."""
    if not isinstance(error, BrokenPipeError):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True
