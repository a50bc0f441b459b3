"""``python -m agent.inference``: a reference inference server over :class:`agent.localmodel.LocalModel`.

Two dialects: vLLM's ``/generate`` as Atropos's ``VLLMServer`` speaks it (ids in, ids and log-probabilities out), and
the OpenAI chat route. One request at a time; it is made to be right and to need no GPU, not to be fast.
"""

from __future__ import annotations

import argparse
import logging
import time
import uuid
from collections.abc import Sequence
from typing import Any

import anyio.to_thread
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict, Field

from agent.environment import load_env
from agent.localmodel import EMBEDDED, Completion, LocalModel, Sampling

logger = logging.getLogger(__name__)

MAX_CHOICES = 64

VLLM_MAX_TOKENS = 16
"""What ``/generate`` samples where it is asked for no number: vLLM's own default."""


class TokenPrompt(BaseModel):
    """vLLM's prompt by ids."""

    prompt_token_ids: list[int]


class _SamplingRequest(BaseModel):
    # Servers are asked for more than they know; vLLM ignores it too.
    model_config = ConfigDict(extra="ignore")

    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    stop: list[str] | str | None = None
    stop_token_ids: list[int] = Field(default_factory=list)
    ignore_eos: bool = False
    seed: int | None = None

    def sampling(self, default_max_tokens: int, choice: int) -> Sampling:
        """For the given choice of ``n``: a seed gives each its own stream."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(
            max_tokens=self.max_tokens or default_max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            stop=stop,
            stop_token_ids=frozenset(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            seed=None if self.seed is None else self.seed + choice,
        )


class GenerateRequest(_SamplingRequest):
    """The body of ``/generate``."""

    prompt: TokenPrompt | str
    prompt_logprobs: int | None = Field(default=None, ge=0)


class ChatRequest(_SamplingRequest):
    """The body of ``/v1/chat/completions``."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stream: bool = False


def create_app(model: LocalModel) -> FastAPI:
    """The application, for uvicorn or for a test."""
    app = FastAPI(title="shell-agent-sandbox inference", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        card = {"id": model.name, "object": "model", "owned_by": "local", "max_model_len": model.max_model_len}
        return {"object": "list", "data": [card]}

    @app.post("/generate")
    async def generate(request: GenerateRequest) -> dict[str, Any]:
        prompt = request.prompt
        ids = model.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt.prompt_token_ids
        done = await _complete(model, ids, request, default_max_tokens=VLLM_MAX_TOKENS)
        answer: dict[str, Any] = {
            "text": [_text(model, one) for one in done],
            "token_ids": [one.ids for one in done],
            "logprobs": [
                [[{number: value}] for number, value in zip(one.ids, one.logprobs, strict=True)] for one in done
            ],
            "finish_reasons": [one.finish_reason for one in done],
        }
        if request.prompt_logprobs is not None:
            answer["prompt_logprobs"] = await _prompt_logprobs(model, ids)
        return answer

    @app.post("/v1/chat/completions")
    async def chat(request: ChatRequest) -> dict[str, Any]:
        if request.stream:
            raise HTTPException(400, "streaming is not supported; leave `stream` out")
        request.max_tokens = request.max_completion_tokens or request.max_tokens
        ids = _rendered(model, request.messages)
        done = await _complete(model, ids, request, default_max_tokens=model.max_model_len)
        return _chat_answer(model, len(ids), done)

    return app


async def _complete(
    model: LocalModel, ids: Sequence[int], request: _SamplingRequest, *, default_max_tokens: int
) -> list[Completion]:
    def work() -> list[Completion]:
        return [model.generate(ids, request.sampling(default_max_tokens, choice)) for choice in range(request.n)]

    try:
        return await anyio.to_thread.run_sync(work)
    except ValueError as error:
        raise HTTPException(400, str(error)) from error


async def _prompt_logprobs(model: LocalModel, ids: Sequence[int]) -> list[dict[int, float] | None]:
    values = await anyio.to_thread.run_sync(model.logprobs, ids)
    return [None, *({number: value} for number, value in zip(ids[1:], values[1:], strict=True))]


def _rendered(model: LocalModel, messages: list[dict[str, Any]]) -> list[int]:
    try:
        text = model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:
        raise HTTPException(400, f"the model's chat template refuses these messages: {error}") from error
    return list(model.tokenizer.encode(text, add_special_tokens=False))


def _text(model: LocalModel, completion: Completion) -> str:
    return str(model.tokenizer.decode(completion.ids, skip_special_tokens=True))


def _chat_answer(model: LocalModel, prompt_tokens: int, done: Sequence[Completion]) -> dict[str, Any]:
    sampled = sum(len(one.ids) for one in done)
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model.name,
        "choices": [
            {
                "index": number,
                "message": {"role": "assistant", "content": _text(model, one)},
                "finish_reason": one.finish_reason,
            }
            for number, one in enumerate(done)
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": sampled,
            "total_tokens": prompt_tokens + sampled,
        },
    }


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m agent.inference", description="Serve a small model on the CPU.")
    parser.add_argument("--model", default=EMBEDDED, help="smollm2, a GGUF file, or a folder (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="default: %(default)s")
    parser.add_argument("--max-model-len", type=int, default=None, help="tokens; default: the model's own")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Load the model and serve it until interrupted."""
    import uvicorn

    load_env()
    args = _parse(argv)
    logging.basicConfig(level=logging.INFO)
    logger.info("loading %s", args.model)
    model = LocalModel.load(args.model, dtype=args.dtype, max_model_len=args.max_model_len)
    uvicorn.run(create_app(model), host=args.host, port=args.port, log_level="info")


if __name__ == "__main__":
    main()
