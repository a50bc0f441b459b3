"""What a sandbox costs: in memory when it is idle, and nothing more however many calls it has served."""

from __future__ import annotations

import pytest

from tests.guest import driver as d


def serve_everything(guest: d.Guest, times: int) -> None:
    """Calls of every kind and end."""
    for _ in range(times):
        calls = [
            guest.sh("echo $$; exit 3", user="agent"),
            guest.sh("cat", stdin=bytes(3000)),
            guest.sh("sleep 0.01 & exit"),
            guest.sh("sleep 60", timeout=0.01, grace=0),
            guest.sh("echo never", user="ghost", stdin=bytes(200_000)),
            guest.sh("echo never", cwd="/none"),
            guest.open(["/etc/passwd"], kind=d.READ),
            guest.open(["/etc"], kind=d.GET),
            guest.open(["/tmp/f"], kind=d.PUT, tree=d.file_tree(b"x")),
            guest.open(["/none"], kind=d.READ),
            guest.raw_call(d.RUN, d.fixed(body=100)),
        ]
        guest.cancel(calls[-1])
        guest.wait(*calls)


class TestIdle:
    def test_a_mebibyte_holds_it(self, guest, stage):
        if stage.sanitized:
            pytest.skip("a sanitizer has a memory of its own")
        guest.idle(0.1)
        assert guest.memory() < 200
        assert guest.memory("Rss") < 1024

    def test_floods_leave_no_more_than_the_links_buffers(self, guest, stage):
        if stage.sanitized:
            pytest.skip("a sanitizer has a memory of its own")
        calls = [guest.sh("head -c 2000000 /dev/zero", flags=d.WATCH) for _ in range(5)]
        calls += [guest.sh("sleep 0.2; cat >/dev/null", stdin=bytes(1_000_000)) for _ in range(5)]
        guest.wait(*calls)
        guest.idle(0.2)
        assert guest.memory() < 600


class TestWear:
    def test_nothing_grows(self, guest, stage):
        serve_everything(guest, 10)
        guest.idle(0.3)
        memory_before, descriptors_before = guest.memory(), guest.descriptors
        serve_everything(guest, 40)
        guest.idle(0.3)
        assert guest.descriptors == descriptors_before
        assert guest.memory() - memory_before < (1024 if stage.sanitized else 64)
        zombies = guest.run("cat /proc/[0-9]*/stat | grep -c ') Z'").out
        assert zombies.strip() == b"0"
