from __future__ import annotations

import pytest

pytest.importorskip("atroposlib")

from agent.scripted import Scripted, ScriptedServer, byte_tokenizer
from agent.scripted_episode import scripted_episode
from sandbox import ExecResult

pytestmark = pytest.mark.anyio


async def test_a_whole_episode_is_played_graded_and_exported(host_box):
    episode = await scripted_episode(host_box)
    assert episode.ok
    assert (episode.steps, episode.tool_calls, episode.score) == (3, 3, 1.0)
    assert episode.item["inference_logprobs"] is not None
    assert 0 < episode.unmasked < episode.tokens
    assert episode.result.steps[1].tool_results[1].output == "5050\n"


async def test_an_episode_whose_check_fails_scores_nothing(fake_box):
    fake_box.play = lambda command: ExecResult("exited", 1)
    episode = await scripted_episode(fake_box)
    assert episode.score == 0.0
    assert not episode.ok


@pytest.mark.parametrize("text", ["plain", "é漢字🙂", "\x00\x01\r\n\t", " leading and trailing ", "<|im_end|>"])
def test_the_tokenizer_gives_every_text_back(text):
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


async def test_the_server_keeps_what_it_was_asked_and_plays_in_order():
    server = ScriptedServer(["one", Scripted("two", "length", stop_token=False)])
    first = await server.tokens_and_logprobs_completion(input_ids=[1, 2], temperature=0.5)
    second = await server.tokens_and_logprobs_completion(prompt="x")
    assert server.tokenizer.decode(first[1][0]) == "one<|im_end|>"
    assert (server.tokenizer.decode(second[1][0]), second[3]) == ("two", ["length"])
    assert server.requests[0]["input_ids"] == [1, 2]
    assert server.requests[0]["temperature"] == 0.5
