"""READ, GET and PUT, as the call's user."""

from __future__ import annotations

import errno
import os
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.guest import driver as d


def read(guest: d.Guest, path: str | bytes, **options) -> d.Call:
    return guest.do([path], kind=d.READ, **options)


def get(guest: d.Guest, path: str | bytes, **options) -> d.Call:
    return guest.do([path], kind=d.GET, **options)


def put(guest: d.Guest, path: str | bytes, tree: bytes, **options) -> d.Call:
    return guest.do([path], kind=d.PUT, tree=tree, **options)


def refused(call: d.Call) -> int:
    assert (call.end.status, call.end.stage) == (d.FAILED, d.FILE), call
    return call.end.error


def done(call: d.Call) -> d.Call:
    assert call.end.outcome == (d.EXITED, 0, 0), call
    return call


class TestRead:
    @pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 1_000_000])
    def test_every_byte(self, guest, size):
        guest.run(f"head -c {size} /dev/urandom >/tmp/f; chmod 640 /tmp/f")
        call = done(read(guest, "/tmp/f"))
        assert call.end.total_out == size == len(call.data)
        assert call.end.mode & 0o7777 == 0o640
        assert call.data == guest.run("cat /tmp/f", limit=1 << 21).out

    def test_no_more_than_the_bound(self, guest):
        guest.run("head -c 1000 /dev/zero >/tmp/f")
        assert len(done(read(guest, "/tmp/f", max_bytes=1000)).data) == 1000
        call = read(guest, "/tmp/f", max_bytes=999)
        assert refused(call) == errno.EFBIG and call.end.total_out == 1000 and call.data == b""

    @pytest.mark.parametrize(
        "path, number",
        [
            ("/none", errno.ENOENT),
            ("/etc", errno.EISDIR),
            ("/dev/null", errno.EINVAL),
            ("/tmp/fifo", errno.EINVAL),
            ("/tmp/socket", errno.EINVAL),
            ("/etc/hosts/x", errno.ENOTDIR),
            ("/tmp/secret", errno.EACCES),
            ("/tmp/loop", errno.ELOOP),
            ("", errno.ENOENT),
            ("/" + "n" * 300, errno.ENAMETOOLONG),
            ("/tmp/to-secret", errno.EACCES),
        ],
    )
    def test_what_can_not_be_read(self, guest, path, number):
        guest.run(
            "mkfifo /tmp/fifo; ln -s loop /tmp/loop; ln -s secret /tmp/to-secret;"
            "echo s >/tmp/secret; chmod 600 /tmp/secret"
        )
        guest.run("perl -e 'use IO::Socket::UNIX; IO::Socket::UNIX->new(Local => \"/tmp/socket\", Listen => 1)'")
        assert refused(read(guest, path, user="agent")) == number

    def test_follows_links(self, guest):
        guest.run("echo data >/tmp/f; ln -s f /tmp/l")
        assert done(read(guest, "/tmp/l")).data == b"data\n"

    def test_relative_to_the_directory_of_the_call(self, guest):
        guest.run("mkdir /tmp/d; echo data >/tmp/d/f")
        assert done(read(guest, "f", cwd="/tmp/d")).data == b"data\n"
        call = read(guest, "f", cwd="/tmp/none")
        assert (call.end.stage, call.end.error) == (d.CWD, errno.ENOENT)

    def test_files_of_proc(self, guest):
        assert done(read(guest, "/proc/self/status")).data.startswith(b"Name:")

    def test_one_that_grows_without_end(self, guest):
        guest.run("/mnt/probe churn /tmp/f grow & sleep 0.05")
        assert refused(read(guest, "/tmp/f", max_bytes=3_000_000)) == errno.EFBIG
        guest.reset()

    def test_one_that_shrinks(self, guest):
        guest.run("/mnt/probe churn /tmp/f shrink & sleep 0.05")
        for _ in range(5):
            assert len(done(read(guest, "/tmp/f", max_bytes=1 << 30)).data) <= 8 << 20
        guest.reset()

    def test_sparse(self, guest):
        guest.run("truncate -s 3000000 /tmp/f")
        assert done(read(guest, "/tmp/f")).data == bytes(3_000_000)
        guest.run("truncate -s 1T /tmp/f")
        assert refused(read(guest, "/tmp/f", max_bytes=1 << 20)) == errno.EFBIG

    def test_stalls_nobody_while_nobody_takes_it(self, guest):
        guest.run("head -c 2000000 /dev/zero >/tmp/f")
        call = guest.open(["/tmp/f"], kind=d.READ, credit=False)
        guest.until(lambda: call.taken == d.WINDOW)
        assert guest.run("echo on").out == b"on\n"
        guest.grant(call, 1 << 21)
        assert len(done(guest.wait(call)).data) == 2_000_000

    def test_a_timeout_ends_it(self, guest):
        guest.run("head -c 2000000 /dev/zero >/tmp/f")
        call = guest.open(["/tmp/f"], kind=d.READ, credit=False, timeout=0.3)
        assert guest.wait(call).end.status == d.TIMED_OUT

    OWN_CALLS = "$(cd /proc; grep -l '^Name:.guest' [0-9]*/status | xargs grep -l '^Uid:.1000' | cut -d/ -f1)"

    @pytest.mark.parametrize("act", ["kill -9", "kill -STOP"])
    def test_a_process_of_the_same_user_can_only_spoil_it(self, guest, act):
        guest.run("head -c 2000000 /dev/zero >/tmp/f", user="agent")
        call = guest.open(["/tmp/f"], kind=d.READ, credit=False, user="agent", timeout=1.0)
        guest.until(lambda: call.taken == d.WINDOW)
        guest.run(f"for p in {self.OWN_CALLS}; do {act} $p; done; :", user="agent")
        assert guest.wait(call).end.status == (d.KILLED if act == "kill -9" else d.TIMED_OUT)
        assert guest.run("echo on").out == b"on\n"

    def test_its_memory_is_closed_to_the_same_user(self, guest):
        guest.run("head -c 2000000 /dev/zero >/tmp/f", user="agent")
        call = guest.open(["/tmp/f"], kind=d.READ, credit=False, user="agent")
        guest.until(lambda: call.taken == d.WINDOW)
        found = guest.run(f"echo {self.OWN_CALLS}", user="agent").out.split()
        assert len(found) == 1
        answers = guest.run(f"/mnt/probe reach {int(found[0])}", user="agent").out.decode()
        for what in ("environ", "mem", "maps", "fd", "write mem", "vm_readv", "vm_writev", "seize", "pidfd_getfd"):
            assert f"\n{what}: ok" not in "\n" + answers, answers


class TestGet:
    def test_a_tree(self, guest):
        guest.run(
            "mkdir -p /tmp/t/a/b; cd /tmp/t; echo one >one; echo two >a/two; chmod 750 a; chmod 4755 one;"
            "ln -s ../x a/link; mkfifo fifo; touch -d @1000000 one; : >a/b/empty"
        )
        tree = d.parse_tree(done(get(guest, "/tmp/t")).data)
        assert set(tree) == {b"", b"a", b"a/b", b"one", b"a/two", b"a/link", b"a/b/empty"}
        assert (tree[b"one"].kind, tree[b"one"].mode, tree[b"one"].mtime, tree[b"one"].data) == (
            "F",
            0o4755,
            1_000_000,
            b"one\n",
        )
        assert (tree[b"a"].kind, tree[b"a"].mode) == ("D", 0o750)
        assert (tree[b"a/link"].kind, tree[b"a/link"].data) == ("L", b"../x")

    def test_one_file(self, guest):
        guest.run("echo data >/tmp/f; ln -s f /tmp/l")
        for path in ("/tmp/f", "/tmp/l"):
            assert d.parse_tree(done(get(guest, path)).data)[b""].data == b"data\n"

    def test_names_of_any_bytes(self, guest):
        names = [b"new\nline", b"\xff\xfe", b" ", b"-rf", b"a" * 255, b"\x01\x7f", b"...", b'"\\']
        tree = d.entry("D", mode=0o755) + b"".join(d.entry("F", name) + d.chunks(name) for name in names)
        done(put(guest, "/tmp/t", tree + d.entry("E", mode=0)))
        found = d.parse_tree(done(get(guest, "/tmp/t")).data)
        assert {name: found[name].data for name in names} == {name: name for name in names}

    def test_deep(self, guest):
        guest.run(
            "mkdir -p /tmp/t; cd /tmp/t; i=0; while [ $i -lt 200 ]; do mkdir d; cd d; i=$((i+1)); done; echo deep >f"
        )
        assert d.parse_tree(done(get(guest, "/tmp/t")).data)[b"d/" * 200 + b"f"].data == b"deep\n"

    def test_too_deep(self, guest):
        guest.run("mkdir -p /tmp/t; cd /tmp/t; i=0; while [ $i -lt 300 ]; do mkdir d; cd d; i=$((i+1)); done")
        assert refused(get(guest, "/tmp/t")) == errno.ENAMETOOLONG
        name = "n" * 200
        guest.run(f"mkdir -p /tmp/u; cd /tmp/u; i=0; while [ $i -lt 30 ]; do mkdir {name}; cd {name}; i=$((i+1)); done")
        assert refused(get(guest, "/tmp/u")) == errno.ENAMETOOLONG

    def test_a_loop_of_links_is_no_loop(self, guest):
        guest.run("mkdir -p /tmp/t/a; ln -s .. /tmp/t/a/up; ln -s . /tmp/t/self")
        assert set(d.parse_tree(done(get(guest, "/tmp/t")).data)) == {b"", b"a", b"a/up", b"self"}

    def test_links_lead_nowhere(self, guest):
        guest.run("mkdir /tmp/t; ln -s /etc /tmp/t/etc; ln -s /etc/passwd /tmp/t/p")
        tree = d.parse_tree(done(get(guest, "/tmp/t")).data)
        assert {path: member.kind for path, member in tree.items()} == {b"": "D", b"etc": "L", b"p": "L"}

    @pytest.mark.parametrize(
        "path, number",
        [("/none", errno.ENOENT), ("/dev/null", errno.EINVAL), ("/tmp/secret", errno.EACCES), ("/tmp/t", errno.EACCES)],
    )
    def test_what_can_not_be_read(self, guest, path, number):
        guest.run("mkdir -m 700 /tmp/secret; mkdir /tmp/t; echo x >/tmp/t/f; chmod 600 /tmp/t/f")
        assert refused(get(guest, path, user="agent")) == number

    def test_bound(self, guest):
        guest.run("mkdir /tmp/t; head -c 600 /dev/zero >/tmp/t/a; head -c 600 /dev/zero >/tmp/t/b")
        done(get(guest, "/tmp/t", max_bytes=1200))
        assert refused(get(guest, "/tmp/t", max_bytes=1199)) == errno.EFBIG

    def test_a_tree_that_changes_meanwhile(self, guest):
        guest.run(
            "mkdir /tmp/t; cd /tmp/t; (while :; do"
            " for i in 1 2 3 4 5 6 7 8 9; do echo x >f$i; mkdir -p d$i/e; ln -sf x l$i; done;"
            " rm -rf /tmp/t/*; done) 2>/dev/null & sleep 0.05"
        )
        for _ in range(60):
            d.parse_tree(done(get(guest, "/tmp/t")).data)
        guest.reset()


class TestPut:
    def test_a_new_file(self, guest):
        done(put(guest, "/tmp/f", d.file_tree(b"data")))
        assert guest.run("cat /tmp/f; stat -c %a:%U:%G /tmp/f").out == b"data644:root:root\n"

    def test_as_the_user_and_with_a_mode(self, guest):
        done(put(guest, "/tmp/f", d.file_tree(b"#!/bin/sh\necho ran\n", mode=0o750), user="agent"))
        assert guest.run("/tmp/f; stat -c %a:%U:%G /tmp/f", user="agent").out == b"ran\n750:agent:agent\n"

    def test_missing_parents_are_made(self, guest):
        done(put(guest, "/tmp/a/b/c/f", d.file_tree(b"x"), user="agent"))
        assert guest.run("stat -c %a:%U /tmp/a/b/c").out == b"755:agent\n"

    def test_mode_of_an_existing_file_is_kept(self, guest):
        guest.run("echo old >/tmp/f; chmod 4711 /tmp/f")
        done(put(guest, "/tmp/f", d.file_tree(b"new")))
        assert guest.run("cat /tmp/f; stat -c %a /tmp/f").out == b"new4711\n"

    def test_time_of_writing_unless_a_time_is_given(self, guest):
        done(put(guest, "/tmp/f", d.file_tree(b"x")))
        done(put(guest, "/tmp/g", d.file_tree(b"x", mtime=1_000_000)))
        times = guest.run("stat -c %Y /tmp/f; stat -c %Y /tmp/g; date +%s").out.split()
        assert int(times[2]) - int(times[0]) < 5 and int(times[1]) == 1_000_000

    def test_a_large_one(self, guest):
        data = os.urandom(3_000_001)
        done(put(guest, "/tmp/f", d.file_tree(data)))
        assert done(read(guest, "/tmp/f")).data == data

    def test_a_reader_sees_the_old_or_the_new(self, guest):
        old, new = b"o" * 300_000, b"n" * 300_000
        done(put(guest, "/tmp/f", d.file_tree(old)))
        watcher = guest.sh("while :; do cat /tmp/f | tr -s on >>/tmp/seen; echo >>/tmp/seen; done")
        for data in (new, old) * 10:
            done(put(guest, "/tmp/f", d.file_tree(data)))
        guest.cancel(watcher)
        guest.wait(watcher)
        seen = set(guest.run("sort -u /tmp/seen").out.split())
        assert seen <= {b"o", b"n"} and seen

    def test_cut_off_leaves_the_old_and_no_litter(self, guest):
        done(put(guest, "/tmp/d/f", d.file_tree(b"old")))
        whole = d.file_tree(bytes(500_000))
        for part in (0, 10, 100_000, len(whole) - 30):
            call = put(guest, "/tmp/d/f", whole[:part])
            assert refused(call) == errno.EPROTO
        assert guest.run("cat /tmp/d/f; ls -A /tmp/d").out == b"oldf\n"

    @pytest.mark.parametrize("way", ["cancel", "timeout"])
    @pytest.mark.parametrize("part", [5, 60_000, 140_000])
    def test_a_cancel_or_timeout_leaves_the_old_and_no_litter(self, guest, way, part):
        done(put(guest, "/tmp/d/f", d.file_tree(b"old")))
        call = guest.open(["/tmp/d/f"], kind=d.PUT, more=True, timeout=0.4 if way == "timeout" else 0)
        guest.feed(call, d.file_tree(bytes(500_000))[:part])
        guest.idle(0.15)
        if way == "cancel":
            guest.cancel(call)
        assert guest.wait(call, timeout=3).end.status == (d.CANCELLED if way == "cancel" else d.TIMED_OUT)
        guest.idle(0.1)
        assert guest.run("cat /tmp/d/f; ls -A /tmp/d").out == b"oldf\n"

    @pytest.mark.parametrize(
        "path, number",
        [
            ("/tmp/ro/f", errno.EACCES),
            ("/tmp", errno.EISDIR),
            ("/dev/null", errno.EINVAL),
            ("/tmp/fifo", errno.EINVAL),
            ("/etc/hosts/f", errno.ENOTDIR),
            ("", errno.ENOENT),
            ("/", errno.EISDIR),
            ("/tmp/f/", errno.EISDIR),
            ("/tmp/" + "n" * 300, errno.ENAMETOOLONG),
            ("/" + "d/" * 2100 + "f", errno.ENAMETOOLONG),
        ],
    )
    def test_where_it_can_not_be(self, guest, path, number):
        guest.run("mkdir -m 755 /tmp/ro; mkfifo -m 666 /tmp/fifo")
        assert refused(put(guest, path, d.file_tree(b"x"), user="agent")) == number
        assert guest.run("ls -A /tmp | sort").out == b"fifo\nro\n"

    def test_a_link_gives_way_and_its_target_stays(self, guest):
        guest.run("echo precious >/tmp/target; ln -s target /tmp/l; ln -s /nowhere /tmp/dangling")
        done(put(guest, "/tmp/l", d.file_tree(b"new")))
        done(put(guest, "/tmp/dangling", d.file_tree(b"new")))
        assert (
            guest.run("cat /tmp/target /tmp/l /tmp/dangling; test -L /tmp/l || echo file").out
            == b"precious\nnewnewfile\n"
        )

    def test_a_full_disk(self, start):
        guest = start(mounts="mkdir /tmp/small; mount -t tmpfs -o size=100k,mode=1777 none /tmp/small")
        assert refused(put(guest, "/tmp/small/f", d.file_tree(bytes(300_000)))) == errno.ENOSPC
        assert guest.run("ls -A /tmp/small").out == b""

    def test_file_size_limit(self, start):
        guest = start("--fsize=65536")
        assert refused(put(guest, "/tmp/f", d.file_tree(bytes(100_000)))) == errno.EFBIG
        assert guest.run("ls -A /tmp").out == b""

    def test_bound(self, guest):
        assert refused(put(guest, "/tmp/f", d.file_tree(bytes(1000)), max_bytes=999)) == errno.EFBIG
        done(put(guest, "/tmp/f", d.file_tree(bytes(1000)), max_bytes=1000))

    def test_a_tree(self, guest):
        tree = (
            d.entry("D", mode=0o755)
            + d.entry("D", b"ro", 0o555)
            + d.entry("F", b"ro/f", 0o640, 1_000_000)
            + d.chunks(b"x" * 100_000)
            + d.entry("D", b"ro/deep/er", 0o711)
            + d.entry("L", b"link")
            + d.chunks(b"ro/f")
            + d.entry("F", b"deep/new/f")
            + d.chunks(b"y")
            + d.entry("E", mode=0)
        )
        done(put(guest, "/tmp/t", tree, user="agent"))
        found = d.parse_tree(done(get(guest, "/tmp/t", user="agent")).data)
        assert {path: member.kind for path, member in found.items()} == {
            b"": "D",
            b"ro": "D",
            b"ro/f": "F",
            b"ro/deep": "D",
            b"ro/deep/er": "D",
            b"link": "L",
            b"deep": "D",
            b"deep/new": "D",
            b"deep/new/f": "F",
        }
        assert (found[b"ro"].mode, found[b"ro/deep/er"].mode, found[b"ro/f"].mode) == (0o555, 0o711, 0o640)
        assert found[b"ro/f"].mtime == 1_000_000 and found[b"link"].data == b"ro/f"

    def test_into_a_tree_that_is_there(self, guest):
        guest.run("mkdir -p -m 701 /tmp/t/a; echo old >/tmp/t/a/f; echo stays >/tmp/t/a/g; ln -s x /tmp/t/l")
        tree = (
            d.entry("D")
            + d.entry("D", b"a", 0o755)
            + d.entry("F", b"a/f")
            + d.chunks(b"new\n")
            + d.entry("L", b"l")
            + d.chunks(b"y")
        )
        done(put(guest, "/tmp/t", tree + d.entry("E", mode=0)))
        assert (
            guest.run("cat /tmp/t/a/f /tmp/t/a/g; readlink /tmp/t/l; stat -c %a /tmp/t/a").out
            == b"new\nstays\ny\n701\n"
        )

    @pytest.mark.parametrize(
        "path", [b"..", b"../x", b"a/../b", b"/x", b"a//b", b"a/", b".", b"./a", b"a/./b", b"a\0b"]
    )
    def test_a_path_that_leads_out(self, guest, path):
        assert refused(put(guest, "/tmp/t", d.entry("F", path) + d.chunks(b"x") + d.entry("E"))) == errno.EPROTO
        assert guest.run("ls -A /tmp").out in (b"", b"t\n")

    @pytest.mark.parametrize("linked", ["t", "t/sub", "t/sub/deeper"])
    def test_a_link_inside_the_destination_leads_nowhere(self, guest, linked):
        """Root puts a tree where a user may write: a link of that user's must not make root write elsewhere."""
        guest.run(
            "mkdir -p /tmp/victim/sub/deeper; chmod 700 /tmp/victim;"
            f"mkdir -p $(dirname /tmp/{linked}); ln -s /tmp/victim /tmp/{linked}"
        )
        tree = (
            d.entry("D")
            + d.entry("D", b"sub", 0o777)
            + d.entry("D", b"sub/deeper", 0o777)
            + d.entry("F", b"sub/deeper/f")
            + d.chunks(b"x")
        )
        call = put(guest, "/tmp/t", tree + d.entry("E"))
        if linked != "t":
            assert refused(call) in (errno.ELOOP, errno.ENOTDIR)
            assert guest.run("ls -A /tmp/victim/sub/deeper; stat -c %a /tmp/victim").out == b"700\n"

    def test_a_directory_that_becomes_a_link_meanwhile(self, guest):
        """The directories' modes come last: not to what stands in their place by then."""
        guest.run("mkdir -m 700 /tmp/victim; mkdir -m 777 /tmp/t")
        call = guest.open(["/tmp/t"], kind=d.PUT, more=True)
        guest.feed(call, d.entry("D") + d.entry("D", b"sub", 0o777) + d.entry("F", b"f") + d.chunks(b"x"))
        guest.idle(0.2)
        guest.run("rmdir /tmp/t/sub && ln -s /tmp/victim /tmp/t/sub", user="agent")
        guest.feed(call, d.entry("E"), last=True)
        guest.wait(call)
        assert guest.run("stat -c %a /tmp/victim").out == b"700\n"

    def test_a_name_that_is_taken_for_the_time_being(self, guest):
        """Whoever guesses the temporary name must not be able to keep files from being written."""
        guest.run("i=0; while [ $i -lt 300 ]; do : >/tmp/.sandbox-put-$i-0; i=$((i+1)); done")
        done(put(guest, "/tmp/f", d.file_tree(b"x")))

    @pytest.mark.parametrize("target", [b"", b"t" * 4096, b"t" * 65536, b"a\0b"])
    def test_an_impossible_link(self, guest, target):
        assert refused(put(guest, "/tmp/l", d.entry("L") + d.chunks(target) + d.entry("E"))) in (
            errno.EPROTO,
            errno.ENAMETOOLONG,
        )

    def test_a_link_in_pieces(self, guest):
        done(put(guest, "/tmp/l", d.entry("L") + d.chunks(b"some/target", 3) + d.entry("E")))
        assert guest.run("readlink /tmp/l").out == b"some/target\n"

    def test_a_link_whose_pieces_are_endless(self, guest):
        pieces = b"".join(b"\0\0\1\0" + bytes([65]) * 65536 for _ in range(20))
        assert refused(put(guest, "/tmp/l", d.entry("L") + pieces)) in (errno.EPROTO, errno.ENAMETOOLONG)

    def test_the_longest_path(self, guest):
        path = b"/".join([b"p" * 250] * 16)[:4000]
        done(put(guest, "/tmp", d.entry("F", path) + d.chunks(b"x") + d.entry("E")))
        call = put(guest, "/tmp", d.entry("F", b"p" * 4097))
        assert refused(call) == errno.EPROTO

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        data=st.one_of(
            st.binary(max_size=200),
            st.lists(
                st.one_of(
                    st.builds(
                        d.entry,
                        st.sampled_from("DFLEX"),
                        st.binary(max_size=6),
                        st.integers(0, 0xFFFF),
                        st.integers(0, 2**64 - 1),
                    ),
                    st.builds(d.chunks, st.binary(max_size=20)),
                    st.binary(max_size=20),
                ),
                max_size=6,
            ).map(b"".join),
        )
    )
    def test_any_bytes_at_all(self, guest, data):
        call = put(guest, "/tmp/fuzz", data, user="agent", max_bytes=1000)
        assert call.end.status in (d.EXITED, d.FAILED)


class TestCheck:
    def test_runs_nothing(self, guest):
        done(guest.do(["/bin/touch", "/tmp/x"], kind=d.CHECK))
        done(guest.do([], kind=d.CHECK))
        assert guest.run("ls /tmp").out == b""

    def test_cwd(self, guest):
        call = guest.do([], kind=d.CHECK, cwd="/none")
        assert (call.end.status, call.end.stage, call.end.error) == (d.FAILED, d.CWD, errno.ENOENT)


class TestDiskReserve:
    def test_calls_are_refused_below_it(self, start):
        guest = start(f"--disk-reserve={1 << 60}")
        call = guest.run("echo ran")
        assert (call.end.status, call.end.stage, call.end.error) == (d.REFUSED, d.DISK, errno.ENOSPC)
        call = put(guest, "/tmp/f", d.file_tree(b"x"))
        assert call.end.error == errno.ENOSPC
        assert done(read(guest, "/etc/hosts")).data

    SMALL_ROOT = """
        mkdir /tmp/disk; mount -t tmpfs -o size=64m none /tmp/disk; cd /tmp/disk; mkdir upper work root
        mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work none root
        for place in proc dev mnt; do mount --rbind /$place root/$place; done
        set -- chroot /tmp/disk/root "$@"
    """

    def test_a_running_call_is_stopped(self, start):
        guest = start(f"--disk-reserve={32 << 20}", mounts=self.SMALL_ROOT)
        assert guest.run("echo enough").out == b"enough\n"
        began = time.monotonic()
        call = guest.run("trap '' TERM; head -c 40M /dev/zero >/var/filler; sleep 30; sleep 30")
        assert (call.end.status, call.end.stage, call.end.error) == (d.REFUSED, d.DISK, errno.ENOSPC)
        assert time.monotonic() - began < 10
        assert guest.run("echo ran").end.stage == d.DISK
