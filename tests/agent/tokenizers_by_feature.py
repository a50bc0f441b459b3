"""Tokenizers and chat templates, made in code, each for one feature that breaks a naive ledger."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from agent.prompt import AGENT_SYSTEM_PROMPT
from agent.scripted import CHATML, byte_tokenizer

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<tool_call>", "</tool_call>", "<think>", "</think>", "<tool_response>", "</tool_response>")

HEAD = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
TAIL = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

TRIMS = HEAD + "{{ message['content'] | trim }}" + TAIL
STRIPS_THOUGHTS = (
    HEAD
    + "{% if message['role'] == 'assistant' %}{{ message['content'].split('</think>')[-1].lstrip('\n') }}"
    + "{% else %}{{ message['content'] }}{% endif %}"
    + TAIL
)
OPENS_THINK = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
ADDS_BOS = "{{ bos_token }}" + CHATML
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    + "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}"
    + "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    + TAIL
)
DROPS_SYSTEM = "{% for message in messages %}{% if message['role'] != 'system' %}" + (
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN_TEXT_TURNS = (
    "{% for message in messages %}### {{ message['role'] }}:\n{{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
OPENERS_ONLY = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
WRAPS_REPLIES = (
    HEAD
    + "{% if message['role'] == 'assistant' and '<think>' not in message['content'] %}<think>\n</think>\n{% endif %}"
    + "{{ message['content'] }}"
    + TAIL
)


def bos_tokenizer() -> Any:
    """Adds a BOS itself to whatever it encodes, and its template writes one too."""
    tokenizer = byte_tokenizer(ADDS_BOS, special=(*CONTROL, "<s>"), bos="<s>")
    number = tokenizer.convert_tokens_to_ids("<s>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", number)]
    )
    return tokenizer


def merging_tokenizer(template: str = CHATML) -> Any:
    """Byte-level BPE with merges, so that encoding in pieces differs from encoding at once."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=list(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([AGENT_SYSTEM_PROMPT], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.chat_template = template
    return fast


def metaspace_tokenizer(template: str = CHATML) -> Any:
    """As SentencePiece does it: blanks are a letter, one is put before every text, unknown characters become bytes."""
    alphabet = sorted({*AGENT_SYSTEM_PROMPT, "▁"} - {" ", "\n"})
    vocab = {text: number for number, text in enumerate(["<unk>", *[f"<0x{n:02X}>" for n in range(256)], *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in CONTROL])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.chat_template = template
    return fast


BY_FEATURE = {
    "plain ChatML": byte_tokenizer,
    "trims content": lambda: byte_tokenizer(TRIMS),
    "strips thoughts from history": lambda: byte_tokenizer(STRIPS_THOUGHTS),
    "opens <think> in the generation prompt": lambda: byte_tokenizer(OPENS_THINK),
    "adds BOS": bos_tokenizer,
    "marks tool calls as special tokens": lambda: byte_tokenizer(special=(*CONTROL, *TAGS)),
    "has no system role": lambda: byte_tokenizer(NO_SYSTEM),
    "drops the system role": lambda: byte_tokenizer(DROPS_SYSTEM),
    "ends turns with something other than EOS": lambda: byte_tokenizer(eos="<|endoftext|>"),
    "ends turns with plain text": lambda: byte_tokenizer(PLAIN_TEXT_TURNS, eos="<|endoftext|>"),
    "has openers only": lambda: byte_tokenizer(
        OPENERS_ONLY, special=("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>"), eos="<|endoftext|>"
    ),
    "wraps replies in history": lambda: byte_tokenizer(WRAPS_REPLIES),
    "merges across pieces": merging_tokenizer,
    "puts a blank before every text": metaspace_tokenizer,
}
