"""What must hold of one exported sequence. Used before data is called fit for training, and by the audit."""

from __future__ import annotations

import math
from collections.abc import Sequence

MASKED = -100
"""At a masked position: not trained."""

NOT_SAMPLED = 1.0
"""The log-probability at a position that nobody sampled. No real one is positive."""

ROUNDING = 1e-3
"""How far above 0 the rounding of a half-precision softmax may put a log-probability."""


def real(logprob: object) -> bool:
    """Whether this is the log-probability of a sampled token."""
    number = isinstance(logprob, int | float) and not isinstance(logprob, bool)
    return number and math.isfinite(float(logprob)) and float(logprob) <= ROUNDING  # type: ignore[arg-type]


def problems(tokens: Sequence[int], masks: Sequence[int], logprobs: Sequence[object] | None) -> list[str]:
    """Say, a sentence each, what is wrong with a sequence; nothing where all is well."""
    found: list[str] = []
    if len(masks) != len(tokens):
        found.append(f"unequal lengths: {len(tokens)} tokens and {len(masks)} masks")
    if logprobs is None:
        found.append("missing logprobs: the sequence has none")
    elif len(logprobs) != len(tokens):
        found.append(f"unequal lengths: {len(tokens)} tokens and {len(logprobs)} logprobs")
    if found:
        return found
    trained = [position for position, mask in enumerate(masks) if mask != MASKED]
    if not trained:
        found.append("nothing is trained: every position is masked")
    elif trained[0] == 0:
        found.append("unmasked prompt: the first token is trained, though nothing precedes it")
    other = [position for position in trained if masks[position] != tokens[position]]
    if other:
        found.append(f"{_count(other)} trained as another token than the one that stands there, first at {other[0]}")
    if logprobs is not None:
        unreal = [position for position in trained if not real(logprobs[position])]
        if unreal:
            found.append(f"missing logprobs: {_count(unreal)} trained without a real one, first at {unreal[0]}")
        if len(trained) > 1 and all(logprobs[position] == 0.0 for position in trained):
            found.append("missing logprobs: all of them are 0, as a placeholder is")
    return found


def _count(positions: Sequence[int]) -> str:
    return "1 position is" if len(positions) == 1 else f"{len(positions)} positions are"
