"""The benchmark's machinery: its arithmetic, what it prints, that it measures, and that it leaves nothing behind.

No test asserts on a time or on a bar's being met: that is the benchmark's own affair, on the user's machine.
"""

from __future__ import annotations

import io
import json
import math
import os
import signal
import struct
import subprocess
import sys
import time

import anyio
import pytest
from rich.console import Console

from sandbox.bench.adversaries import ADVERSARIES
from sandbox.bench.bench import Bench, Figure, Silent, in_turns, measure_all
from sandbox.bench.figure import Bar, Line, NotHere, Row, Samples, Seen, times_as_much, times_less
from sandbox.bench.figures import FIGURES
from sandbox.bench.kills import _Kill
from sandbox.bench.kills import _seen as kills_seen
from sandbox.bench.machine import Machine
from sandbox.bench.proc import cpu_seconds, engine_processes, marked, resident
from sandbox.bench.report import LiveTable, amount, cells, document, markdown
from sandbox.bench.shell import why_it_cant_run_here
from sandbox.bench.survivors import _count, _Tally
from sandbox.docker import DockerEngine
from sandbox.engine import EngineInfo
from sandbox.owner import OWNER
from sandbox.spec import LABEL_PREFIX
from tests.real_engine import MINIMAL

pytest_plugins = ["tests.engine_fixtures"]

INFO = EngineInfo(address="unix:///nowhere.sock", name="E", version="1", api_version="1.41", architecture="x86_64")

UNOPENED = DockerEngine(INFO.address)


@pytest.fixture
def anyio_backend():
    return "asyncio"


def seconds(*values, label="ours"):
    return Samples.of(label, "s", values)


def row(value, bar, **more):
    return Row("figure", Line("what", bar), Seen(value, seconds(value), **more))


class TestArithmetic:
    def test_the_median_lies_in_the_middle(self):
        assert seconds(3, 1, 2).median == 2
        assert seconds(4, 1, 2, 3).median == 2.5

    @pytest.mark.parametrize("count, rank", [(1, 1), (2, 2), (9, 9), (10, 9), (11, 10), (100, 90)])
    def test_p90_is_a_measured_value_at_the_nearest_rank(self, count, rank):
        assert seconds(*range(count, 0, -1)).p90 == rank

    def test_nothing_measured_is_an_error_and_no_zero(self):
        with pytest.raises(ValueError, match="nothing was measured"):
            seconds()

    def test_ratios_are_of_medians_and_say_which_way(self):
        ours, other = seconds(1, 2, 90), seconds(8, 8, 8)
        assert times_as_much(ours, other).value == 0.25
        assert times_less(ours, other).value == 4
        assert times_less(seconds(0), other).value == math.inf

    def test_the_bound_itself_meets_the_bar(self):
        assert [Bar("at most", 2.5).is_met(value) for value in (2.4, 2.5, 2.6)] == [True, True, False]
        assert [Bar("at least", 25).is_met(value) for value in (24, 25, 26)] == [False, True, True]

    def test_verdicts(self):
        bar = Bar("at most", 2)
        assert row(1, bar).verdict == "met"
        assert row(3, bar).verdict == "not met"
        assert Row("figure", Line("what", bar), reason="no engine here").verdict == "n/a"
        assert Row("figure", Line("what", bar), reason="it broke", failed=True).verdict == "failed"

    def test_json_keeps_every_value_and_no_infinity(self):
        told = row(2, Bar("at least", 1), other=seconds(4, 5, label="beside"), note="so").as_dict()
        assert (told["verdict"], told["value"], told["note"]) == ("met", 2, "so")
        assert (told["ours"]["values"], told["other"]["values"], told["other"]["median"]) == ([2], [4, 5], 4.5)
        assert row(math.inf, Bar("at least", 1)).as_dict()["value"] is None


class TestCounting:
    def test_the_worst_kill_counts_and_every_container_left(self):
        kills = [_Kill(7, True, 0.1, 0), _Kill(8, False, None, 0), _Kill(9, False, 1.5, 1)]
        gone, left = kills_seen(kills, late=1)
        assert (gone.value, gone.ours.values) == (1.5, (0.1, 1.5))
        assert "2 of them during create and start" in gone.note
        assert left.value == 2

    def test_a_bystander_of_a_bomb_is_excepted_only_if_its_outcome_says_so(self):
        bomb = next(one for one in ADVERSARIES if one.is_bomb)
        other = next(one for one in ADVERSARIES if not one.is_bomb)
        tally = _Tally()
        _count(tally, bomb, 0, hits=[True, True], told=[True, False])
        _count(tally, other, 2, hits=[True, False], told=[True, True])
        assert (tally.survivors, tally.hit, tally.told) == ([0, 2], [1, 1], 1)
        assert set(tally.kinds) == {bomb.name, other.name}


async def measured(*figures, quick=True):
    rows: list[Row] = []
    # No figure of these tests asks for the engine.
    await measure_all(figures, UNOPENED, "image", Silent(), rows, quick=quick)
    return rows


def figure(measure, lines=1):
    return Figure("figure", tuple(Line(f"line {number}", Bar("at most", 1)) for number in range(lines)), measure)


class TestRunning:
    pytestmark = pytest.mark.anyio

    async def test_one_that_breaks_or_is_not_here_costs_the_others_nothing(self):
        async def breaks(bench):
            raise KeyError("a measurement's own mistake")

        async def not_here(bench):
            raise NotHere("another host's engine")

        async def works(bench: Bench):
            return [Seen(bench.count(1000, 1), seconds(1))]

        rows = await measured(figure(breaks, lines=2), figure(not_here), figure(works))
        assert [one.verdict for one in rows] == ["failed", "failed", "n/a", "met"]
        assert rows[2].reason == "another host's engine"

    async def test_an_interrupted_run_keeps_what_it_has(self):
        async def works(bench):
            return [Seen(0, seconds(1))]

        async def hangs(bench):
            await anyio.sleep_forever()

        rows: list[Row] = []
        with anyio.move_on_after(0.1):
            await measure_all([figure(works), figure(hangs)], UNOPENED, "image", Silent(), rows, quick=True)
        assert len(rows) == 1

    async def test_sides_take_turns(self):
        order = []

        async def a():
            order.append("a")

        async def b():
            order.append("b")

        times = await in_turns(3, a, b, tick=lambda done, total: None, warm_up=1)
        assert "".join(order) == "abababab"
        assert [len(side) for side in times] == [3, 3]


class TestPrinting:
    @pytest.mark.parametrize(
        "value, unit, text",
        [
            (0.0024, "s", "2.40 ms"),
            (0.25, "s", "250 ms"),
            (1.5, "s", "1.50 s"),
            (2.04, "x", "2.04 x"),
            (41.4, "x", "41 x"),
            (524288, "B", "512 KiB"),
            (3 * 2**20, "B", "3.00 MiB"),
            (0, "", "0"),
        ],
    )
    def test_amounts_read_well(self, value, unit, text):
        assert amount(value, unit) == text

    def test_a_row_shows_both_sides_and_the_verdict(self):
        bar = Bar("at most", 2.5)
        texts = cells(
            Row("call", Line("a call", bar), times_as_much(seconds(0.002, 0.002), seconds(0.001, label="host")))
        )
        assert texts == (
            "call",
            "a call",
            "≤ 2.5 x",
            "2.00 x",
            "ours: 2.00 ms (p90 2.00 ms, n 2)",
            "host: 1.00 ms",
            "met",
        )

    def test_what_can_not_be_told_gives_its_reason(self):
        assert cells(Row("cpu", Line("CPU", Bar("at least", 20)), reason="remote"))[3:] == ("", "remote", "", "n/a")

    def test_the_document_names_the_machine_and_keeps_its_table_whole(self):
        machine = Machine.read(INFO, "image:tag")
        rows = [row(1, Bar("at most", 2), note="a note"), Row("figure", Line("what", Bar("at most", 1)), reason="a|b")]
        text = document(machine, rows)
        table = [line for line in text.splitlines() if line.startswith("|")]
        assert {line.replace("\\|", "").count("|") for line in table} == {7}
        assert text.count("image:tag") == 1
        assert f"{os.cpu_count()} cores" in text
        assert "- what: a note." in text
        assert markdown(machine, rows) in text

    def test_the_live_table_ends_with_every_row(self):
        output = io.StringIO()
        with LiveTable(Console(file=output, width=200), "title") as table:
            table.began(figure(None))
            table.tick(1, 2)
            table.ended([row(1, Bar("at most", 2), note="a note")])
        assert "what: a note." in output.getvalue()

    def test_every_figure_of_the_issue_is_there_once(self):
        names = [one.name for one in FIGURES]
        assert names == ["call", "exec", "cpu", "start", "idle", "kill", "survivors", "flood"]


def elf(machine=62, kinds=(1,), ident=b"\x7fELF\x02\x01\x01" + bytes(9)):
    head = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, machine, 1, 0, 64, 0, 0, 64, 56, len(kinds), 0, 0, 0)
    return head + b"".join(struct.pack("<I52x", kind) for kind in kinds)


@pytest.mark.skipif(sys.platform != "linux", reason="programs of Linux")
class TestHost:
    @pytest.mark.parametrize(
        "program, why",
        [
            (b"#!/bin/busybox sh\n", "no ELF"),
            (b"\x7fELF", "no ELF"),
            (elf(machine=183), "aarch64"),
            (elf(machine=8), "machine 8"),
            (elf(kinds=(6, 3, 1)), "dynamically"),
            (elf(ident=b"\x7fELF\x01\x01\x01" + bytes(9)), "another system"),
        ],
    )
    def test_a_shell_that_can_not_run_here_is_told_why(self, program, why):
        assert why in why_it_cant_run_here(program, "x86_64")

    def test_a_static_shell_of_this_machine_can_run_here(self):
        assert why_it_cant_run_here(elf(kinds=(1, 1, 4)), "x86_64") == ""

    def test_cpu_time_counts_children_that_were_waited_for(self):
        before = cpu_seconds(os.getpid())
        subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.2: pass"], check=True)
        assert cpu_seconds(os.getpid()) - before > 0.15  # in ticks

    def test_a_process_of_another_host_is_not_here(self):
        gone = subprocess.Popen(["true"])
        gone.wait()
        for look in (cpu_seconds, resident, lambda pid: engine_processes(INFO.address, pid)):
            with pytest.raises(NotHere):
                look(gone.pid)

    def test_resident_memory_is_more_than_what_comes_from_no_file(self):
        whole, anonymous = resident(os.getpid())
        assert 0 < anonymous < whole

    def test_marked_processes_are_found_wherever_they_went(self):
        mark = f"SANDBOX_BENCH_TEST={os.getpid()}-{time.monotonic_ns()}"
        command = "setsid sleep 100 & (setsid sleep 100 &) ; sleep 0.3; kill 0"
        child = subprocess.Popen(["/bin/sh", "-c", command], env={**os.environ, "M": "1", **dict([mark.split("=")])})
        try:
            deadline = time.monotonic() + 10
            while len(marked(mark.encode())) < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert len(marked(mark.encode())) >= 3
        finally:
            child.kill()
            child.wait()
            for pid in marked(mark.encode()):
                os.kill(pid, signal.SIGKILL)


def bench(*arguments):
    command = [sys.executable, "-m", "sandbox.bench", "--image", MINIMAL, "--json", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def answer_of(process, timeout=300):
    output, errors = process.communicate(timeout=timeout)
    assert "Traceback" not in errors
    return json.loads(output) if output else {"errors": errors}


def parent_of(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def owners_of(docker, process):
    """The owners of containers that are this process, or a child of it."""
    pids = {int(one["Labels"][f"{LABEL_PREFIX}pid"]) for one in docker.containers(OWNER)}
    return {pid for pid in pids if process.pid in (pid, parent_of(pid))}


def wait_until(happens):
    deadline = time.monotonic() + 60
    while not (seen := happens()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return seen


@pytest.mark.engine
@pytest.mark.slow
class TestWhole:
    pytestmark = pytest.mark.usefixtures("nothing_left")

    def test_every_figure_is_measured(self, docker):
        process = bench("--quick")
        told = answer_of(process)
        assert process.returncode == 0, [one for one in told["rows"] if one["verdict"] == "failed"]
        assert told["finished"] and told["quick"]
        assert [one["what"] for one in told["rows"]] == [line.what for one in FIGURES for line in one.lines]
        for one in told["rows"]:
            assert one["verdict"] in ("met", "not met", "n/a")
            if one["verdict"] != "n/a":
                assert one["ours"]["n"] == len(one["ours"]["values"]) > 0
        assert {"cpu", "cores", "kernel", "engine", "load", "date", "storage_driver"} <= told["machine"].keys()

    @pytest.mark.parametrize("only, number", [("start", signal.SIGINT), ("kill", signal.SIGTERM)])
    def test_an_interrupted_run_leaves_nothing(self, docker, only, number):
        process = bench("--only", only)
        try:
            owners = wait_until(lambda: owners_of(docker, process))
            process.send_signal(number)
            told = answer_of(process, timeout=60)
        finally:
            process.kill()
            process.wait()
        assert (process.returncode, told["finished"]) == (130, False)
        assert not [pid for pid in owners - {process.pid} if parent_of(pid)]
        labels = [f"{LABEL_PREFIX}pid={pid}" for pid in owners]
        wait_until(lambda: not [label for label in labels if docker.containers(label)])

    def test_without_an_engine_it_says_so_in_one_sentence(self):
        environment = {**os.environ, "DOCKER_HOST": "unix:///nonexistent/docker.sock"}
        command = [sys.executable, "-m", "sandbox.bench", "--quick"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (1, "")
        assert len(done.stderr.strip().splitlines()) == 1
