"""What set-up decides about the engine, from facts alone."""

from __future__ import annotations

import pytest

from scripts.find_engine import Place, Probe, State
from scripts.setup_engine import Facts, Refuse, Start, Use, plan

DEFAULT = Place("unix:///var/run/docker.sock", "the default socket", False)
ROOTLESS = Place("unix:///run/user/1000/docker.sock", "the rootless socket", False)
CHOSEN = Place("tcp://engine:2375", "DOCKER_HOST", True)


def facts(*probes: Probe, **changes: bool) -> Facts:
    machine = {"root": True, "linux": True, "systemd": False, "has_dockerd": False, "has_apt": True, **changes}
    return Facts(probes=probes, **machine)


def test_an_engine_that_answers_is_used_and_nothing_is_installed():
    assert plan(facts(Probe(DEFAULT, "answers"))) == Use(DEFAULT)


def test_a_rootless_engine_is_used_where_the_default_socket_is_dead():
    assert plan(facts(Probe(DEFAULT, "absent"), Probe(ROOTLESS, "answers"))) == Use(ROOTLESS)


def test_a_rootless_engine_is_used_where_the_default_socket_is_forbidden():
    assert plan(facts(Probe(DEFAULT, "denied"), Probe(ROOTLESS, "answers"), root=False)) == Use(ROOTLESS)


def test_a_bare_machine_gets_an_engine():
    assert plan(facts(Probe(DEFAULT, "absent"))) == Start(install=True, by_systemd=False)


def test_an_engine_that_is_installed_is_only_started():
    assert plan(facts(Probe(DEFAULT, "absent"), has_dockerd=True)) == Start(install=False, by_systemd=False)


def test_systemd_starts_what_is_its_own():
    assert plan(facts(Probe(DEFAULT, "absent"), systemd=True)) == Start(install=True, by_systemd=True)


@pytest.mark.parametrize("state", ["absent", "broken"])
def test_no_second_engine_is_started_beside_one_that_a_person_chose(state: State):
    step = plan(facts(Probe(CHOSEN, state, "connection refused")))
    assert isinstance(step, Refuse)
    assert "DOCKER_HOST points to tcp://engine:2375" in step.sentence
    assert "connection refused" in step.sentence


@pytest.mark.parametrize(
    "probe, changes, words",
    [
        (Probe(DEFAULT, "absent"), {"root": False}, "apt-get install docker.io"),
        (Probe(DEFAULT, "denied"), {"root": False}, "usermod -aG docker"),
        (Probe(DEFAULT, "broken", "HTTP status 500"), {}, "restart it"),
        (Probe(DEFAULT, "absent"), {"has_apt": False}, "install and start Docker"),
        (Probe(DEFAULT, "absent"), {"linux": False}, "Docker Desktop"),
    ],
)
def test_what_a_person_must_do_is_said_in_one_sentence(probe: Probe, changes: dict[str, bool], words: str):
    step = plan(facts(probe, **changes))
    assert isinstance(step, Refuse)
    assert words in step.sentence
    assert "\n" not in step.sentence
