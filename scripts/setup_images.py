"""``make images`` and ``make images-debian``: see that the engine holds the images that tests and selftest use.

Base images are pulled where a registry answers, else made from Debian's packages. Either way the minimal image comes
from the same Dockerfile; only where its busybox comes from differs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlencode

import docker
import requests
from docker.errors import BuildError, DockerException, ImageNotFound

from scripts.console import ROOT, SetupError, alone, command_line, guest_build, run_logged, say
from scripts.find_engine import connection
from scripts.setup_engine import Use, look, plan

MINIMAL = "shell-agent-sandbox/minimal:latest"
DEBIAN = "debian:bookworm-slim"
RECIPE = ROOT / "images/minimal"
RECIPE_LABEL = "org.opencontainers.image.version"
BUSYBOX = "busybox:1.37-musl"
LOCAL_BUSYBOX = "shell-agent-sandbox/busybox:local"

SILENCE = 8
"""Seconds without a word from the engine after which a pull counts as failed: no registry answers there."""

WORK = 600
"""Seconds that the engine may take over one step of its own, such as unpacking an image."""

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def minimal(client: docker.DockerClient) -> None:
    """The minimal image, of the recipe as it stands now."""
    recipe = recipe_digest(RECIPE)
    if _label(client, MINIMAL) == recipe:
        return
    base = BUSYBOX if pull(client, BUSYBOX) else import_busybox(client)
    say("images", f"building {MINIMAL} from {base}")
    try:
        client.images.build(
            path=str(RECIPE),
            tag=MINIMAL,  # set by the engine when the build is whole
            buildargs={"BUSYBOX": base},
            labels={RECIPE_LABEL: recipe},
            network_mode="none",
            rm=True,
            forcerm=True,
        )
    except BuildError as error:
        log = "".join(str(line.get("stream", "")) for line in error.build_log)
        raise SetupError(f"{MINIMAL} can't be built: {error.msg}\n{log}") from error
    finally:
        if base == LOCAL_BUSYBOX:
            client.images.remove(LOCAL_BUSYBOX)


def debian(client: docker.DockerClient) -> None:
    """``debian:bookworm-slim`` under its usual name."""
    if _label(client, DEBIAN) is not None or pull(client, DEBIAN):
        return
    need_same_architecture(client, DEBIAN)
    need_mmdebstrap()
    with tempfile.TemporaryDirectory(prefix="debian-") as folder:
        tarball = str(Path(folder, "root.tar"))
        say("images", "making Debian's root with mmdebstrap (about half a minute)")
        slim = [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "info", "locale", "man")]
        slim.append("--dpkgopt=path-include=/usr/share/doc/*/copyright")
        run_logged("mmdebstrap", ["mmdebstrap", "--variant=minbase", *slim, "bookworm", tarball])
        say("images", f"importing {DEBIAN}")
        repository, _, tag = DEBIAN.partition(":")
        client.api.import_image_from_file(
            tarball, repository=repository, tag=tag, changes=[f"ENV {PATH}", 'CMD ["bash"]']
        )
    if _label(client, DEBIAN) is None:
        raise SetupError(f"the engine took {DEBIAN} but doesn't know it; look at the engine's own log")


def pull(client: docker.DockerClient, reference: str) -> bool:
    """Whether the image is here now: it was, or a registry gave it."""
    if _label(client, reference) is not None:
        return True
    say("images", f"asking a registry for {reference}")
    try:
        refusal = ask_registry(engine_address(), reference)
    except (OSError, HTTPException, ValueError) as error:
        refusal = str(error) or type(error).__name__
    if refusal:
        say("images", f"none answers: {refusal}")
    return _label(client, reference) is not None


def ask_registry(address: str, reference: str, silence: float = SILENCE) -> str | None:
    """Have the engine pull; what kept it from that, if anything. Progress may take its time, silence may not.

    Not through the SDK: its pull waits for ever.
    """
    repository, _, tag = reference.partition(":")
    with contextlib.closing(connection(address, silence)) as engine:
        engine.request("POST", f"/images/create?{urlencode({'fromImage': repository, 'tag': tag})}")
        response = engine.getresponse()
        for line in response:
            event = json.loads(line)
            problem = event.get("error") or (event.get("message") if response.status != HTTPStatus.OK else None)
            if problem:
                return str(problem)
    return None if response.status == HTTPStatus.OK else f"HTTP status {response.status}"


def import_busybox(client: docker.DockerClient) -> str:
    """An image that holds Debian's static busybox and nothing else."""
    need_same_architecture(client, MINIMAL)
    with tempfile.TemporaryDirectory(prefix="busybox-") as folder:
        program = find_busybox() or unpack_busybox(Path(folder))
        root = Path(folder, "root")
        (root / "bin").mkdir(parents=True)
        shutil.copy(program, root / "bin/busybox")
        tarball = shutil.make_archive(str(Path(folder, "root")), "tar", root)
        repository, _, tag = LOCAL_BUSYBOX.partition(":")
        client.api.import_image_from_file(tarball, repository=repository, tag=tag)
    return LOCAL_BUSYBOX


def find_busybox() -> Path | None:
    """This machine's own busybox, if it needs no libc."""
    build = guest_build()
    installed = shutil.which("busybox")
    return Path(installed) if installed and build.elf_problem(Path(installed), build.machine()) is None else None


def unpack_busybox(folder: Path) -> Path:
    """Debian's package, downloaded and unpacked but not installed: that needs no root."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise SetupError(
            f"no registry gives {BUSYBOX} and there is no apt-get to make it from Debian's packages: "
            f"install a static busybox, or load that image with `docker load`"
        )
    say("images", "downloading Debian's busybox-static")
    with _inside(folder):
        apt = ["apt-get", "-q", "-o", "APT::Sandbox::User=root"]
        try:
            run_logged("apt-download", [*apt, "download", "busybox-static"])
        except SetupError:
            # Lists of our own, since the system's are missing or old and a plain user can't renew them.
            for part in ("lists", "cache"):
                (folder / part).mkdir()
            apt += ["-o", f"Dir::State::Lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"]
            with contextlib.suppress(SetupError):
                run_logged("apt-update", [*apt, "update"])
            run_logged("apt-download", [*apt, "download", "busybox-static"])
        run_logged("dpkg-deb", ["dpkg-deb", "-x", *map(str, folder.glob("busybox-static_*.deb")), str(folder / "deb")])
    return next(folder.glob("deb/**/bin/busybox"))


def need_mmdebstrap() -> None:
    """Install it where that is ours to do."""
    if shutil.which("mmdebstrap"):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise SetupError(f"no registry gives {DEBIAN}; install mmdebstrap (`sudo apt-get install mmdebstrap`)")
    say("images", "installing mmdebstrap")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    with contextlib.suppress(SetupError):
        run_logged("apt-update", ["apt-get", "-q", "update"], env=quiet)
    run_logged("apt-install", ["apt-get", "install", "-q", "-y", "--no-install-recommends", "mmdebstrap"], env=quiet)


def need_same_architecture(client: docker.DockerClient, image: str) -> None:
    """What is made from this machine's packages runs only on an engine of its kind."""
    build = guest_build()
    here, there = build.machine(), client.version()["Arch"]
    if build.normalize(there) != here:
        raise SetupError(
            f"no registry gives the engine what {image} is made from, and this machine ({here}) "
            f"can't make it for an engine on {there}"
        )


def recipe_digest(folder: Path) -> str:
    """What the image is made from, in short; kept as a label, so that a change makes it anew."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(folder)}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def engine_address() -> str:
    """Where the docker CLI would find its engine."""
    step = plan(look())
    if not isinstance(step, Use):
        raise SetupError("no container engine answers; run `make engine`")
    return step.place.address


def _label(client: docker.DockerClient, reference: str) -> str | None:
    """The image's recipe; empty if it has none, None if there is no such image."""
    try:
        return str(client.images.get(reference).labels.get(RECIPE_LABEL, ""))
    except ImageNotFound:
        return None


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def main(arguments: Sequence[str]) -> None:
    """Make the images named on the command line."""
    makers = {"minimal": minimal, "debian": debian}
    with alone("images"), contextlib.closing(docker.DockerClient(engine_address(), timeout=WORK)) as client:
        for name in arguments:
            try:
                makers[name](client)
            except (DockerException, requests.RequestException) as error:
                raise SetupError(f"the engine failed while the {name} image was made: {error}") from error


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(command_line("images", lambda: main(sys.argv[1:])))
