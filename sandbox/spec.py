"""What a sandbox is asked to be, and what a call in it gives back: frozen models, validation only.

Nothing here talks to an engine. A spec that validates can still be refused by a given host (a disk limit without
quotas, an image of another architecture); :mod:`sandbox.plan` and the engine say that, before anything is started.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

KIB = 1024
MIB = 1024 * KIB

MIN_MEMORY = 16 * MIB
"""The least memory with which the guest, a supervisor and a shell have room, and above every engine's own minimum."""

MIN_PIDS = 8
"""PID 1, one supervisor, one shell, and room for what the shell starts."""

MAX_PIDS = 4194304
"""Linux has no more process ids than that."""

MAX_SECONDS = 30 * 24 * 3600.0
"""Of a lease and a lifetime: what is longer is a mistake, and the guest counts milliseconds."""

MAX_OUTPUT = 64 * MIB
"""The largest ``output_limit``: bytes kept of each stream, held in the sandbox until its call ends."""

DOCKER_CAPABILITIES = frozenset(
    {
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    }
)
"""Docker's default set without NET_RAW and MKNOD."""

FORBIDDEN_CAPABILITIES = frozenset(
    {
        "ALL",
        "AUDIT_CONTROL",  # the host's audit rules
        "BPF",
        "CHECKPOINT_RESTORE",
        "DAC_READ_SEARCH",  # opens any file of the host by its handle (open_by_handle_at)
        "MAC_ADMIN",
        "MAC_OVERRIDE",
        "PERFMON",
        "SYSLOG",  # the host's kernel log
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_MODULE",
        "SYS_NICE",  # sets PID 1 behind everything that spins, and no timeout is kept
        "SYS_PTRACE",
        "SYS_RAWIO",
        "SYS_RESOURCE",  # sets PID 1's limits, and evades the OOM killer, which then takes PID 1
        "SYS_TIME",  # the host's clock
    }
)
"""Each of them reaches the guest or the host, so a command could forge its own result."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CAPABILITY = re.compile(r"[A-Z_]+")


def _read_size(value: object, read: ValidatorFunctionWrapHandler) -> ByteSize:
    """Pydantic's own words name neither what is wrong with a size nor how to write one."""
    hint = "write a number of bytes, or text such as '512MiB'"
    if isinstance(value, int | float) and value < 0:
        raise ValueError(f"{value} is negative; {hint}")
    try:
        return ByteSize(read(value))
    except ValidationError:
        raise ValueError(f"{value!r} is no size; {hint}") from None


Size = Annotated[ByteSize, WrapValidator(_read_size)]
Bytes = Annotated[Size, Field(gt=0)]


class _Frozen(BaseModel):
    # Without the input: an error may be logged, and an environment may hold secrets.
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)


class Network(StrEnum):
    """What a sandbox's network reaches."""

    NONE = "none"
    """Nothing: the loopback interface only."""

    OPEN = "open"
    """A bridge network of our own without traffic between containers. The host's own addresses, its local network
    and the internet stay reachable; ``docs/threat-model.md`` says what that means."""


class Limits(_Frozen):
    """What a sandbox may use. Sizes are bytes, or text such as ``"512MiB"`` (1024) and ``"1GB"`` (1000)."""

    cpus: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="CPU cores' worth of time")
    memory: Bytes = Field(default=ByteSize(512 * MIB), description="of all processes and tmpfs together; no swap")
    pids: int = Field(default=256, le=MAX_PIDS, description="processes and threads, the guest's own included")
    disk: Bytes | None = Field(default=None, description="of the root file system; needs an engine with quotas")
    open_files: int = Field(default=4096, ge=16, le=1048576, description="file descriptors of one process")
    file_size: Bytes | None = Field(default=None, description="the largest file that a command may write")
    cpu_time: int | None = Field(default=None, gt=0, description="CPU seconds of one process")
    output: Size = Field(default=ByteSize(256 * KIB), description="bytes kept of each stream of a call")

    @field_validator("memory")
    @classmethod
    def _enough_memory(cls, value: ByteSize) -> ByteSize:
        if value < MIN_MEMORY:
            raise ValueError(f"memory is {value} bytes; the least is 16MiB, so that the guest and a shell have room")
        return value

    @field_validator("pids")
    @classmethod
    def _enough_pids(cls, value: int) -> int:
        if value < MIN_PIDS:
            raise ValueError(f"pids is {value}; the least is {MIN_PIDS}, so that the guest and a shell have room")
        return value

    @field_validator("output")
    @classmethod
    def _bounded_output(cls, value: ByteSize) -> ByteSize:
        check_output_limit(value)
        return value


def check_output_limit(value: int) -> None:
    """Raise ``ValueError`` unless ``value`` bytes can be kept of a stream."""
    if not 0 <= value <= MAX_OUTPUT:
        raise ValueError(f"an output limit of {value} bytes is outside 0..{MAX_OUTPUT}; choose one within")


class Mount(_Frozen):
    """A named volume of the engine, read-only in the sandbox: a data set, a cache of wheels."""

    volume: str = Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]+$")
    target: str

    @field_validator("target")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return _absolute_path(value, "a mount's target")


class SandboxSpec(_Frozen):
    """Everything that makes one sandbox. The defaults are the safe ones."""

    image: str = Field(min_length=1, description="a reference or an image id")
    platform: str | None = Field(default=None, description="such as linux/arm64; None: the engine's own")
    user: str | None = Field(default=None, description="name, uid, name:group or uid:gid; None: the image's")
    workdir: str | None = Field(default=None, description="None: the image's, else /; it must exist")
    env: Mapping[str, str] = Field(default_factory=dict, description="added to the image's environment")
    limits: Limits = Limits()
    network: Network = Network.NONE
    runtime: str | None = Field(default=None, description="an OCI runtime that the engine knows, such as runsc")
    read_only: bool = Field(default=False, description="a read-only root; /tmp is then a tmpfs")
    tmpfs: Mapping[str, Size] = Field(default_factory=dict, description="path to size; counts as memory")
    mounts: tuple[Mount, ...] = ()
    shm_size: Bytes | None = Field(default=None, description="of /dev/shm; None: 64MiB, or a quarter of less memory")
    capabilities: Literal["minimal", "docker"] | frozenset[str] = "minimal"
    labels: Mapping[str, str] = Field(default_factory=dict, description="put on the container")
    lifetime: float | None = Field(
        default=None, gt=0, le=MAX_SECONDS, description="seconds until it is gone whatever its owner does"
    )
    lease: float = Field(
        default=120.0, ge=1, le=MAX_SECONDS, description="seconds without a word from the controller until it exits"
    )
    grace: float = Field(default=0.5, ge=0, le=60, description="seconds between SIGTERM and SIGKILL at a timeout")
    disk_reserve: Size = Field(
        default=ByteSize(256 * MIB), description="free bytes of / below which calls are refused; 0: no guard"
    )

    @field_validator("env")
    @classmethod
    def _environment(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        return check_env(value)

    @field_validator("workdir")
    @classmethod
    def _workdir(cls, value: str | None) -> str | None:
        return None if value is None else _absolute_path(value, "workdir")

    @field_validator("tmpfs")
    @classmethod
    def _tmpfs(cls, value: Mapping[str, ByteSize]) -> Mapping[str, ByteSize]:
        for path, size in value.items():
            _absolute_path(path, "a tmpfs path")
            if size <= 0:
                raise ValueError(f"the tmpfs at {path} has {size} bytes; give it more than 0")
        return value

    @field_validator("capabilities", mode="before")
    @classmethod
    def _capability_names(cls, value: object) -> object:
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, list | tuple | set | frozenset):
            return frozenset(str(name).upper().removeprefix("CAP_") for name in value)
        return value

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        for name in value:
            if name.startswith(LABEL_PREFIX):
                raise ValueError(f"the label {name!r} is ours; choose a name that does not begin with {LABEL_PREFIX}")
        return value

    @model_validator(mode="after")
    def _protects_the_guest(self) -> Self:
        names = self.capability_names
        bad = sorted(names & FORBIDDEN_CAPABILITIES)
        if bad:
            raise ValueError(
                f"capabilities {', '.join(bad)} would let a command reach the guest or the host and forge results; "
                "leave them out"
            )
        for name in names:
            if not _CAPABILITY.fullmatch(name):
                raise ValueError(f"{name!r} is not the name of a capability; see capabilities(7)")
        return self

    @property
    def capability_names(self) -> frozenset[str]:
        """The capabilities that a root call keeps, without ``CAP_``."""
        if self.capabilities == "minimal":
            return frozenset()
        if self.capabilities == "docker":
            return DOCKER_CAPABILITIES
        return frozenset(self.capabilities)


LABEL_PREFIX = "shell-agent-sandbox."


def check_env(env: Mapping[str, str]) -> Mapping[str, str]:
    """Return ``env``, or raise ``ValueError`` for a name or value that no process can have."""
    for name, value in env.items():
        if not name or "=" in name or "\0" in name:
            raise ValueError(f"{name!r} can't be the name of an environment variable; remove '=' and NUL")
        if "\0" in value:
            raise ValueError(f"the value of the environment variable {name} has a NUL byte; remove it")
    return env


def _absolute_path(value: str, what: str) -> str:
    if not value.startswith("/") or "\0" in value:
        raise ValueError(f"{what} is {value!r}; it must be an absolute path")
    return posixpath.normpath(value)


Status = Literal["exited", "signaled", "timed_out", "out_of_memory", "refused", "killed"]


@dataclass(frozen=True, slots=True)
class Output:
    """One stream of one call: bytes in, bytes kept.

    ``head`` and ``tail`` are what was kept; ``total_bytes`` is what was written. Nothing was left out unless
    ``truncated``.
    """

    head: bytes = b""
    tail: bytes = b""
    total_bytes: int = 0

    @property
    def data(self) -> bytes:
        """The kept bytes, head and tail joined with nothing between them."""
        return self.head + self.tail

    @property
    def omitted_bytes(self) -> int:
        """How many bytes were written and not kept."""
        return self.total_bytes - len(self.head) - len(self.tail)

    @property
    def truncated(self) -> bool:
        """Whether bytes were left out."""
        return self.omitted_bytes > 0

    @property
    def text(self) -> str:
        """The kept bytes as UTF-8, bad ones replaced; a note stands where bytes were left out. Never fails."""
        if not self.truncated:
            return self.data.decode("utf-8", "replace")
        note = f"\n[... {self.omitted_bytes} bytes omitted ...]\n"
        return self.head.decode("utf-8", "replace") + note + self.tail.decode("utf-8", "replace")

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call used, of its shell and every child that the shell waited for (``getrusage(2)``)."""

    wall: float = 0.0
    """Seconds, measured in the sandbox."""
    user: float = 0.0
    """CPU seconds in user mode."""
    system: float = 0.0
    """CPU seconds in the kernel."""
    max_rss: int = 0
    """Bytes: the largest resident set of any one process."""


@dataclass(frozen=True, slots=True)
class ExecResult:
    """How one command ended. Whatever the command did, this is data and no exception."""

    status: Status
    exit_code: int
    """0..255; 128+n for signal n; 124 when timed out; 125 when refused; 137 when killed."""
    stdout: Output = field(default_factory=Output)
    stderr: Output = field(default_factory=Output)
    signal: int | None = None
    """The signal that ended the shell, where one did."""
    background: bool = False
    """Children of this call still run."""
    reason: str = ""
    """For ``refused`` and ``killed``, and where the sandbox itself was ended by ``out_of_memory``: one sentence."""
    oom_known: bool = True
    """False where the runtime has no OOM counter, so ``out_of_memory`` can't be told from a SIGKILL."""
    collateral: bool = False
    """Another call's timeout needed a uid-wide kill while this call ran, so this call's processes may have been hit."""
    swept: bool = False
    """This call's own end needed a uid-wide kill: it was a fork bomb, or close to one."""
    survivors: int = 0
    """Processes of a timed-out call that the kernel would not let die (uninterruptible sleep); 0 but for that."""
    usage: Usage = field(default_factory=Usage)

    @property
    def ok(self) -> bool:
        """Whether the command exited with status 0."""
        return self.status == "exited" and self.exit_code == 0
