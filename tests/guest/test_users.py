"""Who a call runs as: by the image's files, whatever a command has made of them."""

from __future__ import annotations

import os
import time

import pytest

from tests.guest import driver as d

WHO = "id -u; id -g; id -G; echo $HOME:$USER"


def who(guest: d.Guest, user: str) -> bytes:
    call = guest.run(WHO, user=user)
    assert call.end.status == d.EXITED, call.end
    return call.out.replace(b"\n", b" ").strip()


class TestKnown:
    @pytest.mark.parametrize(
        "user, expected",
        [
            ("", b"0 0 0 /root:root"),
            ("root", b"0 0 0 /root:root"),
            ("0", b"0 0 0 /root:root"),
            ("0:0", b"0 0 0 /root:root"),
            ("agent", b"1000 1000 1000 29 44 /home/agent:agent"),
            ("1000", b"1000 1000 1000 29 44 /home/agent:agent"),
            ("agent:", b"1000 1000 1000 29 44 /home/agent:agent"),
            ("agent:daemon", b"1000 1 1 /home/agent:agent"),
            ("agent:29", b"1000 29 29 /home/agent:agent"),
            ("1000:4242", b"1000 4242 4242 /home/agent:agent"),
            ("4242", b"4242 0 0 /:"),
            ("4242:4343", b"4242 4343 4343 /:"),
            ("4294967294:4294967294", b"4294967294 4294967294 4294967294 /:"),
        ],
    )
    def test_numbers_groups_and_home(self, guest, user, expected):
        assert who(guest, user) == expected


class TestUnknown:
    @pytest.mark.parametrize(
        "user",
        [
            "ghost",
            "agent:ghost",
            ":",
            ":0",
            "-1",
            "+1",
            " 0",
            "0x0",
            "4294967295",
            "99999999999",
            "1000:-1",
            "a" * 600,
            "agent:0:0",
            "root\n",
            "1000 ",
        ],
    )
    @pytest.mark.parametrize("kind", [d.RUN, d.READ, d.CHECK])
    def test_is_told_and_nothing_runs(self, guest, user, kind):
        call = guest.do(["/etc/hosts"] if kind == d.READ else ["/bin/true"], user=user, kind=kind)
        assert (call.end.status, call.end.stage, call.end.error) == (d.FAILED, d.USER, 2)

    def test_with_input_that_nobody_takes(self, guest):
        """The unread input must not hide the answer."""
        for _ in range(20):
            call = guest.run("cat", user="ghost", stdin=bytes(200_000))
            assert (call.end.status, call.end.stage) == (d.FAILED, d.USER)

    def test_the_guests_own_uid_is_nobodys(self, guest):
        own = guest.own_uid
        if own == 0:
            pytest.skip("the guest runs as root here")
        assert guest.run("id", user=str(own)).end.stage == d.USER
        assert guest.run("id", user=f"{own}:0").end.stage == d.USER


class TestHostileFiles:
    """Root inside can make /etc/passwd anything: the next call is answered at once all the same."""

    def answered_soon(self, guest, **options):
        began = time.monotonic()
        call = guest.run("echo ran", **options)
        assert time.monotonic() - began < 2
        return call

    @pytest.mark.parametrize("name", ["passwd", "group"])
    @pytest.mark.parametrize(
        "kind", ["absent", "fifo", "directory", "empty", "binary", "loop", "device", "stdin", "tty"]
    )
    def test_of_any_kind(self, start, etc, name, kind):
        path = etc / name
        path.unlink()
        match kind:
            case "fifo":
                os.mkfifo(path)
            case "directory":
                path.mkdir()
            case "empty":
                path.touch()
            case "binary":
                path.write_bytes(bytes(range(256)) * 300)
            case "loop":
                path.symlink_to(name)
            case "device":
                path.symlink_to("/dev/zero")
            case "stdin":
                path.symlink_to("/proc/self/fd/3")
            case "tty":
                path.symlink_to("/dev/console")
        guest = start(etc=etc)
        assert self.answered_soon(guest, user="0:0").out == b"ran\n"
        assert self.answered_soon(guest, user="1000:1000").out == b"ran\n"
        call = self.answered_soon(guest, user="agent:audio")
        assert call.end.stage == d.USER

    @pytest.mark.parametrize(
        "line",
        [
            "agent",
            "agent:x",
            "agent:x:1000",
            "agent:x:1000:1000",
            "agent:x:1000:1000:c:h",
            "agent:x::1000:c:/h:s",
            "agent:x:1000:-1:c:/h:s",
            "agent:x:4294967295:0:c:/h:s",
            ":x:1000:1000:c:/h:s",
            "agent:x:1000 :1000:c:/h:s",
            "agent:x:99999999999999999999:0:c:/h:s",
        ],
    )
    def test_broken_lines_are_passed_over(self, start, etc, line):
        (etc / "passwd").write_text(f"{line}\nagent:x:1234:1235:c:/home:/bin/sh\nlast:x:1:1:c:/l:/bin/sh")
        guest = start(etc=etc)
        assert who(guest, "agent").startswith(b"1234 1235")
        assert who(guest, "last").startswith(b"1 1")

    def test_a_name_that_is_a_number(self, start, etc):
        (etc / "passwd").write_text("77:x:0:0:a trap:/root:/bin/sh\nagent:x:77:77::/home/agent:/bin/sh\n")
        assert who(start(etc=etc), "77:77").startswith(b"77 77")

    def test_very_long_fields(self, start, etc):
        (etc / "passwd").write_text(f"{'n' * 5000}:x:5:5:c:{'/h' * 5000}:/bin/sh\nagent:x:1:1:c:{'/h' * 5000}:s\n")
        guest = start(etc=etc)
        assert guest.run("echo ran", user="agent").out == b"ran\n"
        assert guest.run("echo ran", user="5").out == b"ran\n"

    def test_more_groups_than_are_taken(self, start, etc):
        (etc / "group").write_text("".join(f"g{n}:x:{n + 100}:agent\n" for n in range(500)))
        assert self.answered_soon(start(etc=etc), user="agent").out == b"ran\n"

    def test_a_huge_one_is_as_none(self, start, etc):
        (etc / "passwd").write_text("agent:x:1000:1000::/home/agent:/bin/sh\n" * 60_000)
        guest = start(etc=etc)
        assert self.answered_soon(guest, user="agent").end.stage == d.USER
        assert self.answered_soon(guest, user="1000").out == b"ran\n"

    def test_one_that_only_root_may_read(self, start, etc):
        (etc / "passwd").chmod(0o600)
        assert who(start(etc=etc), "agent").startswith(b"1000 1000")


class TestHosts:
    """/etc/hosts is written at the start, on the image's own files, which an earlier episode may have left."""

    @pytest.mark.parametrize("kind", ["absent", "fifo", "directory", "stdout", "stdin", "elsewhere", "dangling"])
    def test_of_any_kind(self, start, etc, kind, tmp_path):
        path = etc / "hosts"
        path.unlink()
        match kind:
            case "fifo":
                os.mkfifo(path)
            case "directory":
                path.mkdir()
            case "stdout":
                path.symlink_to("/proc/self/fd/1")
            case "stdin":
                path.symlink_to("/proc/self/fd/0")
            case "elsewhere":
                (etc / "other").write_text("precious\n")
                path.symlink_to("other")
            case "dangling":
                path.symlink_to("new")
        guest = start(etc=etc)
        guest.ping()
        assert guest.run("echo on").out == b"on\n"
        if kind == "absent":
            assert b"localhost" in guest.run("cat /etc/hosts").out
        if kind == "elsewhere":
            assert (etc / "other").read_text() == "precious\n"
        assert not (etc / "new").exists()

    def test_what_was_there_stays(self, start, etc):
        (etc / "hosts").write_text("10.0.0.1 db")
        guest = start(etc=etc)
        assert guest.run("cat /etc/hosts").out.splitlines()[0] == b"10.0.0.1 db"
        assert b"127.0.0.1\tlocalhost" in guest.run("cat /etc/hosts").out.splitlines()
