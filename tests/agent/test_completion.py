"""Bounds, heartbeats and logs of one completion; the direct client."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import aiohttp
import httpx
import openai
import pytest

pytest.importorskip("atroposlib")

from atroposlib.envs.server_handling.server_manager import ServerManager
from tenacity import Future, RetryError

from agent import AgentConfig, AtroposAgent, show_logs
from agent.completion import complete
from agent.direct import DirectChatClient, resolve
from agent.failures import describe_failure, secrets_of, without_secrets
from agent.ledger import open_model
from agent.scripted import byte_tokenizer
from tests.agent.serving import Completion, serving

pytestmark = pytest.mark.anyio

KEY = "sk-very-secret-0123"
MESSAGES = [{"role": "user", "content": f"my key is {KEY}"}]


class Model:
    def __init__(self, wait: asyncio.Event | None = None, error: Exception | None = None) -> None:
        self.wait = wait
        self.error = error
        self.cancelled = False

    async def chat_completion(self, **kwargs: Any) -> Any:
        try:
            if self.wait is not None:
                await self.wait.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.error is not None:
            raise self.error
        return SimpleNamespace(choices=[], model_dump=lambda: {"text": "é" * 300_000})


@pytest.fixture(autouse=True)
def _log_everything(caplog):
    caplog.set_level(logging.DEBUG)


async def test_a_completion_is_bounded_in_time_and_its_request_cancelled(monkeypatch, caplog):
    monkeypatch.setenv("ATROPOS_AGENT_CHAT_TIMEOUT_S", "0.01")
    for every in ("", "0.002"):
        monkeypatch.setenv("ATROPOS_DEBUG_AGENT_WAIT_EVERY_S", every)
        model = Model(asyncio.Event())
        with pytest.raises(TimeoutError, match=r"no completion within 0\.01 s"):
            await complete(model, 1, {"messages": []}, frozenset())
        assert model.cancelled
    assert "'exc_type': 'TimeoutError'" in caplog.text


async def test_a_heartbeat_does_not_cancel_the_request(monkeypatch, caplog):
    monkeypatch.setenv("ATROPOS_DEBUG_AGENT_WAIT_EVERY_S", "0.001")
    event = asyncio.Event()
    model = Model(event)
    task = asyncio.create_task(complete(model, 3, {"messages": []}, frozenset()))
    while caplog.text.count("step=3 still waiting") < 3:  # noqa: ASYNC110 - the log is what is waited for
        await asyncio.sleep(0.001)
    event.set()
    await task
    assert not model.cancelled


async def test_a_cancelled_wait_cancels_the_request(monkeypatch):
    monkeypatch.setenv("ATROPOS_DEBUG_AGENT_WAIT_EVERY_S", "0.001")
    model = Model(asyncio.Event())
    task = asyncio.create_task(complete(model, 1, {"messages": []}, frozenset()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert model.cancelled


async def test_a_senseless_number_of_seconds_is_told(monkeypatch):
    monkeypatch.setenv("ATROPOS_AGENT_CHAT_TIMEOUT_S", "soon")
    with pytest.raises(ValueError, match="ATROPOS_AGENT_CHAT_TIMEOUT_S is 'soon'; give seconds"):
        await complete(Model(), 1, {"messages": []}, frozenset())


async def test_requests_and_responses_are_logged_when_asked_for_bounded_and_without_keys(monkeypatch, caplog):
    kwargs = {"messages": [*MESSAGES, {"role": "user", "content": "x" * 300_000}], "n": 1, "temperature": 0.5}
    await complete(Model(), 2, kwargs, frozenset([KEY]))
    assert "'num_messages'" not in caplog.text
    for name in ("REQUEST", "REQUEST_FULL", "RESPONSE"):
        monkeypatch.setenv(f"ATROPOS_DEBUG_AGENT_{name}", "1")
    caplog.clear()
    await complete(Model(), 2, kwargs, frozenset([KEY]))
    assert "'keys': ['messages', 'n', 'temperature'], 'n': 1, 'max_tokens': None, 'temperature': 0.5" in caplog.text
    assert "'num_messages': 2" in caplog.text
    assert '"content": "my key is ***"' in caplog.text
    assert KEY not in caplog.text
    assert max(len(record.getMessage()) for record in caplog.records) < 200_100


def request() -> Any:
    return httpx.Request("POST", f"http://u:{KEY}@host:1/v1/chat?key={KEY}", headers={"Authorization": f"Bearer {KEY}"})


def answer(status: int = 401, text: str = "bad key") -> Any:
    return httpx.Response(status, text=text, request=request())


def retried(error: Exception) -> RetryError:
    future = Future(3)
    future.set_exception(error)
    return RetryError(future)


def by_aiohttp() -> aiohttp.ClientResponseError:
    from multidict import CIMultiDict, CIMultiDictProxy
    from yarl import URL

    headers = CIMultiDictProxy(CIMultiDict({"Authorization": f"Bearer {KEY}"}))
    url = URL(f"http://host:1/generate?key={KEY}")
    return aiohttp.ClientResponseError(aiohttp.RequestInfo(url, "POST", headers, url), (), status=503, message="busy")


@pytest.mark.parametrize(
    "error, expected",
    [
        (
            httpx.HTTPStatusError("no", request=request(), response=answer()),
            {"status_code": 401, "response_text": "bad key"},
        ),
        (httpx.ConnectError("no route", request=request()), {"request": "POST http://host:1/v1/chat"}),
        (httpx.ConnectError("no route"), {"exc_str": "no route"}),
        (
            openai.AuthenticationError("no", response=answer(), body=None),
            {"status_code": 401, "response_text": "bad key"},
        ),
        (openai.APIConnectionError(request=request()), {"request": "POST http://host:1/v1/chat"}),
        (by_aiohttp(), {"status_code": 503, "response_text": "busy"}),
        (retried(by_aiohttp()), {"status_code": 503, "exc_type": "ClientResponseError", "raised_as": "RetryError"}),
        (retried(retried(ValueError("x"))), {"exc_type": "ValueError", "exc_str": "x"}),
    ],
)
async def test_a_failure_tells_what_the_libraries_say_of_it_and_no_key(error, expected, caplog):
    detail = describe_failure(error)
    assert expected.items() <= detail.items()
    with pytest.raises(type(error)):
        await complete(Model(error=error), 4, {"messages": []}, frozenset([KEY]))
    assert "'step': 4" in caplog.text
    assert KEY not in caplog.text


def test_a_long_body_is_cut_at_20000_characters():
    error = httpx.HTTPStatusError("no", request=request(), response=answer(500, "y" * 50_000))
    assert len(describe_failure(error)["response_text"]) == 20_000


def test_keys_are_found_in_servers_and_their_configs_and_short_ones_left_alone():
    server = SimpleNamespace(config=SimpleNamespace(api_key=KEY))
    manager = SimpleNamespace(servers=[server, SimpleNamespace(api_key="another-secret"), SimpleNamespace(api_key="x")])
    assert secrets_of(manager) == {KEY, "another-secret"}
    assert without_secrets(f"a {KEY} x", secrets_of(manager)) == "a *** x"
    assert "abcdef" not in without_secrets("Authorization: Bearer abcdef123", ())


async def test_a_key_that_a_server_repeats_does_not_reach_the_result(caplog):
    server = SimpleNamespace(config=SimpleNamespace(api_key=KEY), managed_server=None)

    async def fails(**kwargs: Any) -> Any:
        raise RuntimeError(f"wrong key {KEY}")

    class Manager:
        api_key = KEY

        def managed_server(self, tokenizer: Any = None) -> Any:
            from contextlib import nullcontext

            return nullcontext(SimpleNamespace(chat_completion=fails))

    result = await AtroposAgent(Manager()).run("Go.")
    assert result.error == "Generation error: wrong key ***"
    assert KEY not in caplog.text
    assert secrets_of(server) == {KEY}


def test_a_switch_shows_the_logs_on_the_terminal(monkeypatch, capsys):
    package = logging.getLogger("agent")
    before = list(package.handlers), package.level
    monkeypatch.setenv("ATROPOS_AGENT_LOG", "1")
    try:
        AtroposAgent(SimpleNamespace())
        AtroposAgent(SimpleNamespace())
        show_logs()
        assert len(package.handlers) == len(before[0]) + 1
        logging.getLogger("agent.loop").info("seen")
        assert "seen" in capsys.readouterr().err
    finally:
        package.handlers[:] = before[0]
        package.setLevel(before[1])


async def test_the_bypass_posts_to_the_chat_route_and_yields_no_training_data(monkeypatch, tmp_path):
    monkeypatch.setenv("ATROPOS_BYPASS_MANAGED_SERVER", "1")
    tokenizer = byte_tokenizer()
    async with serving("vllm", tokenizer, [Completion("done")]) as fake:
        config = SimpleNamespace(base_url=fake.url + "/", api_key=KEY, model_name="tiny")
        server = SimpleNamespace(servers=[SimpleNamespace(config=config)])
        agent = AtroposAgent(server, config=AgentConfig(max_tokens=9), tokenizer=tokenizer)
        result: Any = await agent.run("Go.")
    assert result.final_response == "done"
    assert not result.trajectory_data.trainable
    assert result.to_scored_data(1.0)["inference_logprobs"] is None
    (body,) = fake.requests
    assert {name: body[name] for name in body if name != "messages"} == {
        "model": "tiny",
        "n": 1,
        "max_tokens": 9,
        "temperature": 0.7,
    }
    assert fake.headers[0]["Authorization"] == f"Bearer {KEY}"


async def test_the_direct_client_passes_on_what_is_set_and_returns_the_json():
    tokenizer = byte_tokenizer()
    async with serving("vllm", tokenizer, [Completion("done"), Completion("", status=401)]) as fake:
        server = SimpleNamespace(base_url=fake.url, api_key="", model="tiny")
        client = DirectChatClient(server)
        response = await client.chat_completion(messages=MESSAGES, n=1, top_p=0.5, stop=["x"], temperature=None, foo=1)
        assert response.choices[0].message.content == "done"
        assert response.choices[0].message.reasoning is None
        assert response.model_dump()["choices"][0]["finish_reason"] == "stop"
        assert set(fake.requests[0]) == {"model", "messages", "n", "top_p", "stop"}
        assert "Authorization" not in fake.headers[0]
        with pytest.raises(httpx.HTTPStatusError):
            await client.chat_completion(messages=MESSAGES)


async def test_the_direct_client_gives_up_after_its_timeout(monkeypatch):
    monkeypatch.setenv("ATROPOS_DIRECT_REQUEST_TIMEOUT_S", "later")
    with pytest.raises(ValueError, match="give seconds"):
        await DirectChatClient(SimpleNamespace(base_url="http://x", model="m")).chat_completion(messages=[])


def test_a_server_that_names_no_address_is_told_of():
    with pytest.raises(RuntimeError, match="names no base_url and model_name"):
        resolve(SimpleNamespace(servers=[]))


def test_the_direct_client_reads_a_real_server_manager(tmp_path):
    from atroposlib.envs.server_handling.server_baseline import APIServerConfig

    config = APIServerConfig(model_name="m", base_url="http://localhost:1/v1", api_key=KEY, server_type="openai")
    assert resolve(ServerManager([config])) == ("http://localhost:1/v1", KEY, "m")


async def test_a_missing_atroposlib_is_named_with_its_command(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "atroposlib.envs.server_handling.managed_server", None)
    with pytest.raises(RuntimeError, match=r"pip install 'shell-agent-sandbox\[agent\]'"):
        async with open_model(SimpleNamespace()):
            pass
