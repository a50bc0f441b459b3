"""A model server of the tests' own: plays a script over HTTP, as vLLM's or SGLang's ``/generate`` does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer


@dataclass
class Completion:
    text: str
    stop: str | None = None
    """The token after the text; None: the tokenizer's end of sequence; ``""``: none at all."""
    finish_reason: str = "stop"
    logprobs: bool = True
    status: int = 200
    body: str = "out of cheese"


@dataclass
class FakeServer:
    """``requests`` are the bodies as they came; ``prompts`` and ``outputs`` the ids of each turn."""

    tokenizer: Any
    script: Sequence[Completion]
    max_model_len: int | None = None
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    prompts: list[list[int]] = field(default_factory=list)
    outputs: list[list[int]] = field(default_factory=list)
    logprobs: list[list[float]] = field(default_factory=list)

    async def _take(self, request: web.Request, prompt: Callable[[Any], list[int]]) -> Completion:
        body = await request.json()
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        completion = self.script[len(self.prompts)]
        if completion.status == 200:
            ids = self.tokenizer.encode(completion.text, add_special_tokens=False)
            stop = self.tokenizer.eos_token if completion.stop is None else completion.stop
            ids += self.tokenizer.encode(stop, add_special_tokens=False) if stop else []
            self.prompts.append(prompt(body))
            self.outputs.append(ids)
            self.logprobs.append([-((position * 7 + number) % 89 + 1) / 64 for position, number in enumerate(ids)])
        return completion

    async def vllm(self, request: web.Request) -> web.Response:
        completion = await self._take(request, lambda body: body["prompt"]["prompt_token_ids"])
        if completion.status != 200:
            return web.Response(status=completion.status, text=completion.body)
        pairs = zip(self.outputs[-1], self.logprobs[-1], strict=True)
        answer: dict[str, Any] = {"text": [completion.text], "finish_reasons": [completion.finish_reason]}
        if completion.logprobs:
            answer["logprobs"] = [[[{number: logprob}] for number, logprob in pairs]]
        return web.json_response(answer)

    async def sglang(self, request: web.Request) -> web.Response:
        completion = await self._take(request, lambda body: body["input_ids"])
        if completion.status != 200:
            return web.Response(status=completion.status, text=completion.body)
        pairs = zip(self.outputs[-1], self.logprobs[-1], strict=True)
        meta: dict[str, Any] = {"finish_reason": {"type": completion.finish_reason}}
        if completion.logprobs:
            meta["output_token_logprobs"] = [[logprob, number, None] for number, logprob in pairs]
        return web.json_response({"text": completion.text, "meta_info": meta})

    async def chat(self, request: web.Request) -> web.Response:
        self.requests.append(await request.json())
        self.headers.append(dict(request.headers))
        completion = self.script[len(self.requests) - 1]
        if completion.status != 200:
            return web.Response(status=completion.status, text=completion.body)
        message = {"role": "assistant", "content": completion.text}
        return web.json_response({"choices": [{"message": message, "finish_reason": completion.finish_reason}]})

    async def models(self, request: web.Request) -> web.Response:
        model: dict[str, Any] = {"id": "tiny"}
        if self.max_model_len is not None:
            model["max_model_len"] = self.max_model_len
        return web.json_response({"object": "list", "data": [model]})


@asynccontextmanager
async def serving(kind: str, tokenizer: Any, script: Sequence[Completion], **more: Any) -> AsyncIterator[FakeServer]:
    fake = FakeServer(tokenizer, script, **more)
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/generate", getattr(fake, kind))
    app.router.add_post("/v1/chat/completions", fake.chat)
    app.router.add_get("/v1/models", fake.models)
    async with TestServer(app) as server:
        fake.url = str(server.make_url("/v1"))
        yield fake
