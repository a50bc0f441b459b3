"""Check exported trajectories: ``python -m agent.audit FILE.jsonl``.

Reads what agents on Atropos export, ours or another: one JSON object a line, either one sequence (``tokens`` and
``masks``, with ``logprobs`` or ``inference_logprobs``), a group of them (the same names, a list of sequences each), or
what ``ManagedServer.get_state()`` holds (``nodes``). Exits 0 if nothing was found, 1 if something was, 2 if a file
can't be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from agent.checks import MASKED, problems
from agent.environment import load_env


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, and where."""

    line: int
    sequence: int
    """Within the line, from 0."""
    problem: str


@dataclass
class Audit:
    """What an audit saw."""

    lines: int = 0
    sequences: int = 0
    tokens: int = 0
    trained: int = 0
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Sequence:
    tokens: list[int]
    masks: list[int]
    logprobs: list[Any] | None


def audit(lines: Iterable[str], stop_ids: Sequence[int] = (), bos_id: int | None = None) -> Audit:
    """Check every sequence of a file's lines. Raises ``ValueError`` naming the line that is no JSON object."""
    result = Audit()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        result.lines += 1
        for index, found in enumerate(_sequences(_object(line, number), number, result)):
            result.sequences += 1
            result.tokens += len(found.tokens)
            result.trained += sum(mask != MASKED for mask in found.masks)
            said = [*problems(found.tokens, found.masks, found.logprobs), *_doubled(found, stop_ids, bos_id)]
            result.findings += [Finding(number, index, problem) for problem in said]
    return result


def _object(line: str, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"line {number} is no JSON object")
    return value


def _sequences(record: dict[str, Any], line: int, result: Audit) -> Iterator[_Sequence]:
    nodes = record.get("nodes")
    if isinstance(nodes, list):
        if len(nodes) > 1:
            # ManagedServer starts a new node whenever a prompt doesn't begin with the text of an old one.
            result.findings.append(Finding(line, 0, f"more than one sequence: a conversation left {len(nodes)} nodes"))
        for node in nodes:
            yield from _sequences(node if isinstance(node, dict) else {}, line, result)
        return
    tokens = record.get("tokens")
    masks = record.get("masks", record.get("masked_tokens"))
    logprobs = record.get("inference_logprobs") or record.get("logprobs")
    if not _is_list(tokens) or not _is_list(masks):
        result.findings.append(Finding(line, 0, "no sequence: tokens and masks must be lists"))
    elif not tokens or not isinstance(tokens[0], list):
        yield _Sequence(tokens, masks, logprobs if _is_list(logprobs) else None)
    else:
        if len(masks) != len(tokens) or (_is_list(logprobs) and len(logprobs) != len(tokens)):
            result.findings.append(Finding(line, 0, f"unequal lengths: {len(tokens)} sequences, {len(masks)} masks"))
        for index, (ids, mask) in enumerate(zip(tokens, masks, strict=False)):
            own = logprobs[index] if _is_list(logprobs) and index < len(logprobs) else None
            if _is_list(ids) and _is_list(mask):
                yield _Sequence(ids, mask, own if _is_list(own) else None)
            else:
                result.findings.append(Finding(line, index, "no sequence: tokens and masks must be lists"))


def _is_list(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _doubled(found: _Sequence, stop_ids: Sequence[int], bos_id: int | None) -> list[str]:
    """Doubled stop tokens and a doubled BOS, by their ids or, where nobody told them, by their shape."""
    tokens, masks = found.tokens, found.masks
    if len(tokens) != len(masks):
        return []
    said = []
    pairs = [at for at in range(1, len(tokens)) if tokens[at] == tokens[at - 1]]
    # A naive join renders the stop token which was sampled already: trained once, and masked right after it.
    joins = [at for at in pairs if masks[at - 1] != MASKED and masks[at] == MASKED]
    doubled = [at for at in pairs if tokens[at] in stop_ids] if stop_ids else joins
    if doubled:
        what = f"token {tokens[doubled[0]]} twice, {len(doubled)} times"
        said.append(f"doubled stop tokens: {what}, first at {doubled[0]}")
    starts_twice = len(tokens) > 1 and tokens[0] == tokens[1] and masks[0] == masks[1] == MASKED
    if starts_twice and (bos_id is None or tokens[0] == bos_id):
        said.append(f"doubled BOS: the sequence starts with token {tokens[0]} twice")
    return said


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m agent.audit", description="Check exported trajectories.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--stop-id", type=int, action="append", default=[], help="a stop token's id; may be repeated")
    parser.add_argument("--bos-id", type=int, help="the id of the token that begins a sequence")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each file")
    options = parser.parse_args(arguments)
    load_env()
    worst = 0
    for path in options.files:
        try:
            with path.open(encoding="utf-8") as lines:
                result = audit(lines, options.stop_id, options.bos_id)
        except (OSError, ValueError) as error:
            print(f"{path}: {error}", file=sys.stderr)  # noqa: T201 - a command line
            worst = 2
            continue
        worst = max(worst, int(bool(result.findings)))
        for text in _report(path, result, as_json=options.json):
            print(text)  # noqa: T201 - a command line
    return worst


def _report(path: Path, result: Audit, *, as_json: bool) -> Iterator[str]:
    if as_json:
        yield json.dumps({"file": str(path), **asdict(result)})
        return
    for one in result.findings:
        yield f"{path}:{one.line}: sequence {one.sequence}: {one.problem}"
    outcome = f"{len(result.findings)} problems" if result.findings else "nothing wrong"
    yield f"{path}: {result.sequences} sequences, {result.tokens} tokens, {result.trained} trained: {outcome}"


if __name__ == "__main__":
    sys.exit(main())
