"""Files and trees, in and out, as the user."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from sandbox.errors import FileTooLarge, NotAFile, UserUnknown
from sandbox.testing.contract.base import OpenBox, raises


async def files_go_in_and_come_out(open_box: OpenBox) -> None:
    """Small and large, with their modes, parents made."""
    async with open_box() as box:
        for content in (b"", b"text\n", bytes(range(256)) * 8192):
            await box.write_file("/tmp/new/place/file", content)
            assert await box.read_file("/tmp/new/place/file") == content
        await box.write_file("/tmp/tool", "#!/bin/sh\n", mode=0o750)
        await box.write_file("/tmp/tool", "#!/bin/sh\nexit 3\n")
        assert (await box.run("stat -c %a /tmp/tool")).stdout.text == "750\n"
        await box.run("echo printed > /tmp/printed")
        assert await box.read_file("/tmp/printed") == b"printed\n"


async def relative_paths_begin_at_the_working_directory(open_box: OpenBox) -> None:
    """As a command's do."""
    async with open_box(workdir="/tmp") as box:
        await box.write_file("here", b"1")
        assert await box.read_file("/tmp/here") == b"1"
        assert await box.read_file("./here") == b"1"


async def file_errors_are_pythons_own(open_box: OpenBox) -> None:
    """With the path; what Python has no error for has one of ours."""
    async with open_box() as box:
        error = await raises(FileNotFoundError, box.read_file("/no/such/file"))
        assert error.filename == "/no/such/file"
        await raises(IsADirectoryError, box.read_file("/tmp"))
        await raises(NotADirectoryError, box.read_file("/etc/passwd/x"))
        await raises(NotAFile, box.read_file("/dev/null"))
        await box.write_file("/tmp/ten", b"0123456789")
        await raises(FileTooLarge, box.read_file("/tmp/ten", max_bytes=9))
        assert await box.read_file("/tmp/ten", max_bytes=10) == b"0123456789"
        await raises(IsADirectoryError, box.write_file("/tmp", b""))
        await raises(UserUnknown, box.read_file("/tmp/ten", user="nobody-has-this-name"))
        await raises(ValueError, box.read_file("/tmp/\0"))


async def file_calls_are_the_users(open_box: OpenBox) -> None:
    """No file that he may not reach, not through a link either."""
    async with open_box(user="1000:1000") as box:
        await box.write_file("/tmp/private", b"secret", mode=0o600, user="0:0")
        await raises(PermissionError, box.read_file("/tmp/private"))
        await box.run("ln -s /tmp/private /tmp/link")
        await raises(PermissionError, box.read_file("/tmp/link"))
        await raises(PermissionError, box.write_file("/etc/new", b""))


async def trees_go_in_and_come_out(open_box: OpenBox) -> None:
    """Directories, files with modes and times, links as links; a link that leads out stays behind."""
    with TemporaryDirectory() as folder:
        local = Path(folder, "tree")
        (local / "sub" / "empty").mkdir(parents=True)
        (local / "sub" / "file").write_bytes(b"x" * 300_000)
        (local / "tool").write_text("#!/bin/sh\n")
        (local / "tool").chmod(0o755)
        (local / "sub" / "up").symlink_to("../tool")
        (local / "out").symlink_to("/etc/passwd")
        async with open_box() as box:
            await box.upload(local, "/tmp/tree")
            assert (await box.run("stat -c %a /tmp/tree/tool")).stdout.text == "755\n"
            assert (await box.run("readlink /tmp/tree/out")).stdout.text == "/etc/passwd\n"
            result = await box.download("/tmp/tree", Path(folder, "back"))
            await box.upload(local / "tool", "/tmp/one")
            await box.download("/tmp/one", Path(folder, "one"))
            await raises(FileNotFoundError, box.download("/tmp/none", Path(folder, "none")))
            await raises(FileTooLarge, box.download("/tmp/tree", Path(folder, "none"), max_bytes=1000))
        back = Path(folder, "back")
        assert (result.files, result.bytes, result.left_out) == (2, 300_010, ("out",))
        assert (back / "sub" / "file").read_bytes() == b"x" * 300_000
        assert (back / "sub" / "empty").is_dir()
        assert (back / "sub" / "up").readlink() == Path("../tool")
        assert (back / "tool").stat().st_mode & 0o777 == 0o755
        assert abs((back / "tool").stat().st_mtime - (local / "tool").stat().st_mtime) < 2
        assert (back.parent / "one").read_text() == "#!/bin/sh\n"
        assert sorted(path.name for path in back.parent.iterdir()) == ["back", "one", "tree"]
