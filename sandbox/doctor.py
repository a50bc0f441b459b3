"""What can be told about an engine without starting anything: its facts, what it can enforce, what is wrong with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sandbox.docker import DockerEngine
from sandbox.engine import EngineInfo, ImageInfo
from sandbox.errors import SandboxError
from sandbox.guest import guest_binary
from sandbox.plan import plan_container
from sandbox.spec import SandboxSpec


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found. ``problems`` are sentences, each with what to do; one of them hinders every start."""

    engine: EngineInfo | None
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    guest_built: bool = False
    guest_on_engine: bool = False
    sandboxes: int = 0

    @property
    def ok(self) -> bool:
        """Whether a sandbox can be started here."""
        return not self.problems

    def limits(self) -> dict[str, bool]:
        """Which limits the engine enforces."""
        if self.engine is None:
            return {}
        return {
            "memory": self.engine.memory_limit,
            "pids": self.engine.pids_limit,
            "cpus": self.engine.cpu_limit,
            "disk": self.engine.disk_quota,
        }

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "ok": self.ok,
            "engine": asdict(self.engine) if self.engine is not None else None,
            "limits": self.limits(),
            "guest": {"built": self.guest_built, "on_engine": self.guest_on_engine},
            "sandboxes": self.sandboxes,
            "problems": self.problems,
            "notes": self.notes,
        }

    def table(self) -> RenderableType:
        """For people."""
        table = Table(box=None, show_header=False, pad_edge=False)
        for name, value in self._rows():
            table.add_row(Text(name, "dim"), Text(value))
        sentences = [Text(f"✘ {problem}", "red") for problem in self.problems]
        sentences += [Text(f"! {note}", "yellow") for note in self.notes]
        verdict = Text("✔ A sandbox can be started here.", "green") if self.ok else Text("")
        return Group(table, *sentences, verdict)

    def _rows(self) -> list[tuple[str, str]]:
        engine = self.engine
        if engine is None:
            return []
        return [
            ("engine", f"{engine.name} {engine.version}, API {engine.api_version}"),
            ("address", engine.address),
            ("host", f"{engine.operating_system}, Linux {engine.kernel}, {engine.architecture}"),
            ("size", f"{engine.cpus} cores, {engine.memory / 2**30:.1f} GiB"),
            ("storage driver", engine.storage_driver),
            ("cgroup version", engine.cgroup_version),
            ("runtimes", ", ".join(engine.runtimes)),
            ("security", ", ".join(engine.security) or "none"),
            ("limits", ", ".join(f"{name}: {_enforced(yes)}" for name, yes in self.limits().items())),
            ("guest", f"{_yes(self.guest_built)} here, {_yes(self.guest_on_engine)} on the engine"),
            ("sandboxes", str(self.sandboxes)),
        ]


async def doctor(address: str | None = None) -> Diagnosis:
    """Examine the engine at ``address``, or the one that the docker command would use."""
    try:
        async with DockerEngine(address, sweeping=False) as engine:
            info = engine.info
            return Diagnosis(
                engine=info,
                problems=_problems(info),
                notes=_notes(info),
                guest_built=_guest_problem(info) is None,
                guest_on_engine=await engine.guest_is_present(),
                sandboxes=len(await engine.containers()),
            )
    except SandboxError as error:
        return Diagnosis(engine=None, problems=(str(error),))


def _problems(info: EngineInfo) -> tuple[str, ...]:
    """What a plan of the default spec refuses, and a guest that isn't there."""
    found = []
    try:
        plan_container(SandboxSpec(image="any"), ImageInfo(id="", architecture=info.architecture), info)
    except SandboxError as error:
        found.append(str(error))
    guest = _guest_problem(info)
    return (*found, guest) if guest is not None else tuple(found)


def _notes(info: EngineInfo) -> tuple[str, ...]:
    notes = []
    if not info.disk_quota:
        notes.append("limits.disk can't be enforced here; disk_reserve keeps the host's last bytes free instead.")
    if "seccomp" not in info.security:
        notes.append("The engine has no seccomp; use a kernel with it, since it is one of the walls of a sandbox.")
    return tuple(notes)


def _guest_problem(info: EngineInfo) -> str | None:
    try:
        guest_binary(info.architecture)
    except FileNotFoundError as error:
        return f"{str(error).rstrip('.')}."
    return None


def _enforced(yes: bool) -> str:
    return "enforced" if yes else "not enforced"


def _yes(yes: bool) -> str:
    return "present" if yes else "not yet"
