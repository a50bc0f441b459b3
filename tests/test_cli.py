"""``python -m sandbox``: what it prints where, and its exit statuses. Never a traceback."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from sandbox.cli import _facts, _in_one_sentence, _parser, _plain, _spec, main
from sandbox.doctor import Diagnosis
from sandbox.engine import ContainerInfo, EngineInfo
from sandbox.owner import Owner
from sandbox.spec import Network, SandboxSpec

IMAGE = "shell-agent-sandbox/minimal:latest"
NOWHERE = "unix:///nonexistent/docker.sock"

INFO = EngineInfo(address=NOWHERE, name="E", version="1", api_version="1.41", architecture="x86_64", cpus=2)


def parsed(*arguments):
    return _parser().parse_args(["run", *arguments])


def call(*arguments, **more):
    return subprocess.run(
        [sys.executable, "-m", "sandbox", *arguments], capture_output=True, text=True, timeout=120, **more
    )


class TestArguments:
    def test_what_is_not_given_is_the_specs_own_default(self):
        assert _spec(parsed("i", "true")) == SandboxSpec(image="i")

    def test_everything_reaches_the_spec(self, monkeypatch):
        monkeypatch.setenv("MINE", "3")
        monkeypatch.delenv("GONE", raising=False)
        options = parsed(
            *shlex.split(
                "--user 1:2 --cwd /w --env A=b=c --env MINE --env GONE --network open --memory 64MiB --pids 9"
            ),
            *shlex.split("--cpus 0.5 --capabilities chown,cap_kill --read-only --runtime runsc --platform linux/amd64"),
            *shlex.split("i echo --user"),
        )
        spec = _spec(options)
        assert (spec.user, spec.workdir, dict(spec.env)) == ("1:2", "/w", {"A": "b=c", "MINE": "3"})
        assert (spec.limits.memory, spec.limits.pids, spec.limits.cpus) == (64 << 20, 9, 0.5)
        assert (spec.network, spec.read_only, spec.runtime) == (Network.OPEN, True, "runsc")
        assert spec.capability_names == {"CHOWN", "KILL"}
        assert options.words == ["echo", "--user"]

    @pytest.mark.parametrize(
        "arguments, says",
        [
            (["--memory", "1"], "limits.memory: memory is 1 bytes"),
            (["--pids", "-3"], "limits.pids: "),
            (["--cpus", "-1"], "limits.cpus: "),
            (["--capabilities", "SYS_PTRACE"], "would let a command reach the guest"),
            (["--cwd", "relative"], "absolute path"),
            (["--env", "=x"], "environment variable"),
        ],
    )
    def test_a_bad_value_is_one_sentence(self, arguments, says, capsys):
        assert main(["run", "--engine", NOWHERE, *arguments, "i", "true"]) == 125
        complaint = capsys.readouterr().err
        assert says in complaint
        assert complaint.count("\n") == 1 and "Traceback" not in complaint

    def test_a_missing_command_is_told(self, capsys):
        assert main(["run", "--engine", NOWHERE, "i"]) == 125
        assert "no command" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["ps"], ["sweep"], ["run", "i", "true"]])
def test_without_an_engine_one_sentence_and_a_status(command, capsys):
    assert main([command[0], "--engine", NOWHERE, *command[1:]]) == (125 if command[0] == "run" else 2)
    out, complaint = capsys.readouterr()
    assert out == ""
    assert "No container engine answers" in complaint
    assert complaint.count("\n") == 1


def test_doctor_without_an_engine_says_so_to_a_program_too(capsys):
    assert main(["doctor", "--engine", NOWHERE, "--json"]) == 2
    facts = json.loads(capsys.readouterr().out)
    assert facts["ok"] is False and facts["engine"] is None
    assert "No container engine answers" in facts["problems"][0]


def test_a_label_cannot_send_escape_sequences_to_the_terminal():
    assert _plain("a\x1b[31m\r\nb") == "a?[31m??b"


def test_ps_tells_whether_an_owner_lives():
    here = Owner.current()
    container = ContainerInfo("1", "n", "running", "i", time.time() - 5, here.labels())
    assert _facts(container)["owner"] == "alive"
    dead = replace(container, labels=replace(here, owner="x", pid="999999999").labels())
    assert _facts(dead)["owner"] == "dead"


def test_doctor_names_every_limit():
    diagnosis = Diagnosis(engine=replace(INFO, pids_limit=False), problems=())
    assert diagnosis.facts()["limits"] == {"memory": True, "pids": False, "cpus": True, "disk": False}


def test_a_validation_error_without_a_place_is_still_a_sentence():
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the model's own error is what is looked at
        SandboxSpec.model_validate({"image": "i", "capabilities": ["SYS_ADMIN"]})
    assert _in_one_sentence(caught.value).startswith("capabilities SYS_ADMIN would")  # type: ignore[arg-type]


@pytest.mark.engine
class TestOnAnEngine:
    def test_streams_and_status_are_the_commands(self):
        done = call("run", IMAGE, "echo out; echo err >&2; exit 7")
        assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 7)

    def test_several_words_are_a_program_and_its_arguments(self):
        done = call("run", IMAGE, "--", "echo", "$HOME", "a  b")
        assert done.stdout == "$HOME a  b\n"

    def test_output_comes_while_the_command_runs(self):
        command = [sys.executable, "-m", "sandbox", "run", IMAGE, "echo first; sleep 30"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "first\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
            assert process.stderr is not None
            assert "Traceback" not in process.stderr.read()

    def test_a_timeout_is_124(self):
        done = call("run", "--timeout", "0.2", IMAGE, "sleep 30")
        assert done.returncode == 124
        assert "timed_out" in done.stderr

    def test_json_is_the_whole_outcome(self):
        done = call("run", "--json", "--env", "A=b", IMAGE, "echo $A; kill -9 $$")
        facts = json.loads(done.stdout)
        assert done.returncode == 137
        assert (facts["status"], facts["signal"], facts["stdout"]["text"]) == ("signaled", 9, "b\n")

    def test_a_reader_that_leaves_is_no_traceback(self):
        command = [sys.executable, "-m", "sandbox", "run", IMAGE, "yes"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.read(1)
            process.stdout.close()
            assert process.wait(60) == 2
            assert process.stderr is not None
            assert process.stderr.read() == b""

    def test_the_sandboxs_own_failure_is_125(self):
        done = call("run", "--user", "nobody-of-that-name", IMAGE, "true")
        assert done.returncode == 125
        assert "nobody-of-that-name" in done.stderr and done.stderr.count("\n") == 1

    def test_ps_and_sweep_and_doctor_for_people_and_programs(self):
        assert isinstance(json.loads(call("ps", "--json").stdout), list)
        assert set(json.loads(call("sweep", "--json").stdout)) == {"removed", "failed"}
        facts = json.loads(call("doctor", "--json").stdout)
        assert facts["ok"] and facts["engine"]["version"]
        told = call("doctor", env={**os.environ, "COLUMNS": "200"}).stdout
        for word in ("engine", "storage driver", "cgroup version", "runtimes", "limits", "guest"):
            assert word in told

    def test_ps_shows_a_sandbox_and_its_owner(self):
        command = [sys.executable, "-m", "sandbox", "run", IMAGE, "echo up; sleep 30"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            listed = json.loads(call("ps", "--json").stdout)
            process.kill()
        assert [(each["image"], each["state"]) for each in listed if each["pid"] == str(process.pid)] == [
            (IMAGE, "running")
        ]
