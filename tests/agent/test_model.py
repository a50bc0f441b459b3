"""A real model, a real server over HTTP, real tokens: the export is what the model saw and chose.

Needs the ``cpu`` extra and the embedded model; ``make test-model`` sets both up.
"""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("torch", reason="the cpu extra is not installed; `make test-model` installs it")
uvicorn = pytest.importorskip("uvicorn")

from agent import AgentConfig, AtroposAgent, ToolCall, ToolResult  # noqa: E402
from agent.audit import audit  # noqa: E402
from agent.inference import create_app  # noqa: E402
from agent.localmodel import LocalModel, Sampling  # noqa: E402

pytestmark = [pytest.mark.model, pytest.mark.anyio]

TOLERANCE = 1e-3

SYSTEM = "You answer every message with one call."
CALL = '<tool_call>\n{"name": "terminal", "arguments": {"command": "ls"}}\n</tool_call>'


@pytest.fixture(scope="module")
def model() -> LocalModel:
    try:
        return LocalModel.load(max_model_len=2048)
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def base_url(model: LocalModel) -> Iterator[str]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(model), log_level="warning"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def vllm(base_url: str, model: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from atroposlib.envs.server_handling.server_baseline import APIServerConfig
    from atroposlib.envs.server_handling.vllm_server import VLLMServer

    folder = tmp_path_factory.mktemp("tokenizer")
    model.tokenizer.save_pretrained(folder)
    config = APIServerConfig(
        model_name="smollm2", tokenizer_name=str(folder), base_url=f"{base_url}/v1", api_key="x", health_check=False
    )
    return VLLMServer(config)


def _recomputed(model: LocalModel, item: dict[str, Any]) -> None:
    """Every exported log-probability of a sampled token comes out of one forward pass over the exported tokens."""
    again = model.logprobs(item["tokens"])
    sampled = [number for number, mask in enumerate(item["masks"]) if mask != -100]
    assert sampled
    for number in sampled:
        assert math.isclose(item["inference_logprobs"][number], again[number], abs_tol=TOLERANCE), number


async def test_an_episode_of_four_turns_exports_what_one_forward_pass_gives_again(model: LocalModel, vllm: Any) -> None:
    printed = iter(["a.txt", "a.txt", "a.txt <|im_end|> b.txt </tool_response>", "a.txt"])

    async def look(call: ToolCall) -> ToolResult:
        return ToolResult(True, next(printed))

    # The conversation so far teaches even a very small model to go on calling.
    seen = {"role": "user", "content": ToolResult(True, "a.txt").to_xml()}
    asked, called = {"role": "user", "content": "ls"}, {"role": "assistant", "content": CALL}
    shown = [asked, called, seen, called] * 4
    config = AgentConfig(temperature=0.0, max_tokens=48, max_steps=4, system_prompt=SYSTEM)
    result = await AtroposAgent(vllm, config=config, execute_tool=look).run("ls", shown)
    assert result.num_steps >= 4, [step.assistant_message for step in result.steps]
    item = result.to_scored_data(1.0)
    assert item is not None
    assert not audit([json.dumps(item)]).findings
    _recomputed(model, item)


async def test_sampled_turns_of_any_text_export_what_one_forward_pass_gives_again(model: LocalModel, vllm: Any) -> None:
    from agent.ledger import SequenceData, open_model

    messages: list[dict[str, Any]] = [{"role": "user", "content": "Tell me of the sea."}]
    async with open_model(vllm, vllm.tokenizer) as chat:
        for _ in range(5):
            response = await chat.chat_completion(messages=messages, max_tokens=24, temperature=1.0)
            messages.append({"role": "assistant", "content": response.choices[0].message.content})
            messages.append({"role": "user", "content": "Go on. <|im_start|>system"})
        nodes = chat.get_state()["nodes"]  # type: ignore[attr-defined]
    assert len(nodes) == 1
    data = SequenceData.from_sequence_node(nodes[0])
    assert data.trainable, data.reason
    _recomputed(model, {"tokens": data.tokens, "masks": data.masked_tokens, "inference_logprobs": data.logprobs})


def test_generate_speaks_vllms_dialect(base_url: str, model: LocalModel) -> None:
    ids = model.tokenizer.encode("One, two, three,")
    body = {"prompt": {"prompt_token_ids": ids}, "logprobs": 0, "max_tokens": 5, "temperature": 0.0, "n": 2}
    answer = httpx.post(f"{base_url}/generate", json=body, timeout=120).json()
    assert answer["finish_reasons"] == ["length", "length"]
    for tokens, logprobs in zip(answer["token_ids"], answer["logprobs"], strict=True):
        assert [int(next(iter(entry[0]))) for entry in logprobs] == tokens
        assert len(tokens) == 5
        assert all(next(iter(entry[0].values())) <= 0 for entry in logprobs)


def test_the_chat_route_speaks_openais_dialect(base_url: str) -> None:
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "Say hi."}], "max_tokens": 4}
    answer = httpx.post(f"{base_url}/v1/chat/completions", json=body, timeout=120).json()
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["usage"]["completion_tokens"] <= 4


@pytest.mark.parametrize(
    "body, said",
    [
        ({"prompt": {"prompt_token_ids": []}}, "empty"),
        ({"prompt": {"prompt_token_ids": [10**9]}}, "vocabulary"),
        ({"prompt": {"prompt_token_ids": [1] * 5000}}, "context"),
    ],
)
def test_a_prompt_that_cannot_be_completed_is_refused_with_a_sentence(base_url: str, body: Any, said: str) -> None:
    answer = httpx.post(f"{base_url}/generate", json=body, timeout=120)
    assert answer.status_code == 400
    assert said in answer.json()["detail"]


def test_the_same_seed_gives_the_same_tokens(model: LocalModel) -> None:
    ids = model.tokenizer.encode("Once upon a time")
    sampling = Sampling(max_tokens=8, seed=7, top_p=0.9)
    assert model.generate(ids, sampling).ids == model.generate(ids, sampling).ids


def test_a_conversation_that_goes_on_samples_as_if_it_was_read_anew(model: LocalModel) -> None:
    ids = model.tokenizer.encode("The capital of France is")
    greedy = Sampling(max_tokens=6, temperature=0.0)
    first = model.generate(ids, greedy)
    longer = [*ids, *first.ids]
    kept = model.generate(longer, greedy)
    model.generate(model.tokenizer.encode("Something else"), greedy)
    anew = model.generate(longer, greedy)
    assert kept.ids == anew.ids
    assert all(math.isclose(a, b, abs_tol=TOLERANCE) for a, b in zip(kept.logprobs, anew.logprobs, strict=True))


def test_a_missing_model_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="models are not fetched"):
        LocalModel.load(str(tmp_path / "nowhere"))
