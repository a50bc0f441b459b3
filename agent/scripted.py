"""A model that plays a script: a real ``atroposlib`` server class with a real tokenizer, and nothing to download.

For tests of a user's own environments and for the selftest: it stands behind a real ``ManagedServer``, takes ids and
returns ids with log-probabilities, as ``VLLMServer`` does. Needs the ``agent`` extra.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from atroposlib.envs.server_handling.server_baseline import APIServer, APIServerConfig
from openai.types import Completion, CompletionChoice
from openai.types.chat import ChatCompletion, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(
    template: str = CHATML,
    *,
    special: Iterable[str] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    eos: str = "<|im_end|>",
    bos: str | None = None,
) -> Any:
    """A tokenizer with one id for each byte and one for each special token: every text comes back as it was."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: number for number, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    make: Any = PreTrainedTokenizerFast  # it has no annotations
    fast = make(tokenizer_object=tokenizer, eos_token=eos, bos_token=bos)
    fast.chat_template = template
    return fast


@dataclass(frozen=True, slots=True)
class Scripted:
    """One completion of a script, where its text alone does not say it all."""

    text: str
    finish_reason: str = "stop"
    stop_token: bool = True
    """Whether the ids end with the tokenizer's end-of-sequence id."""
    logprobs: Sequence[float] | None = None
    """Instead of made-up ones; any number of them."""


class ScriptEndedError(Exception):
    """The agent asked for more completions than the script has."""


class ScriptedServer(APIServer):  # type: ignore[misc]
    """Plays completions in order, whatever it is asked. Keeps what it was asked in ``requests``."""

    def __init__(self, script: Iterable[str | Scripted], tokenizer: Any = None, max_model_len: int = 131072) -> None:
        super().__init__(APIServerConfig(model_name="scripted", base_url=None, health_check=False))
        self.tokenizer = byte_tokenizer() if tokenizer is None else tokenizer
        self.max_model_len = max_model_len
        self.requests: list[dict[str, Any]] = []
        self._script = [Scripted(one) if isinstance(one, str) else one for one in script]
        self._played = 0

    def _next(self) -> Scripted:
        if self._played == len(self._script):
            raise ScriptEndedError(f"the script has {len(self._script)} completions, and the agent asked for one more")
        self._played += 1
        return self._script[self._played - 1]

    async def check_server_status_task(self, chat_completion: bool = True) -> None:
        self.server_healthy = True

    async def _tokens_and_logprobs_completion_wrapper(self, **kwargs: Any) -> tuple[Any, Any, Any, Any]:
        prompt = kwargs.get("input_ids")
        if prompt is None:
            prompt = self.tokenizer.encode(kwargs["prompt"], add_special_tokens=False)
        self.requests.append({**kwargs, "input_ids": list(prompt)})
        turn = self._next()
        ids = self.tokenizer.encode(turn.text, add_special_tokens=False)
        if turn.stop_token:
            ids = [*ids, self.tokenizer.eos_token_id]
        # Any numbers would do; these differ from each other, so that a shifted export can't look right.
        logprobs = [-((position * 7 + number) % 89 + 1) / 100 for position, number in enumerate(ids)]
        return list(prompt), [ids], [logprobs if turn.logprobs is None else list(turn.logprobs)], [turn.finish_reason]

    async def _chat_completion_wrapper(self, **kwargs: Any) -> ChatCompletion:
        self.requests.append(kwargs)
        message = ChatCompletionMessage(role="assistant", content=self._next().text)
        choice = Choice(index=0, finish_reason="stop", message=message)
        return ChatCompletion(
            id="scripted", created=int(time.time()), model="scripted", object="chat.completion", choices=[choice]
        )

    async def _completion_wrapper(self, **kwargs: Any) -> Completion:
        self.requests.append(kwargs)
        choice = CompletionChoice(index=0, finish_reason="stop", text=self._next().text)
        return Completion(
            id="scripted", created=int(time.time()), model="scripted", object="text_completion", choices=[choice]
        )
