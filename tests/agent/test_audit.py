from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.audit import audit, main

GOOD: dict[str, Any] = {
    "tokens": [1, 5, 6, 7, 8, 9, 7],
    "masks": [-100, -100, 6, 7, -100, 9, 7],
    "inference_logprobs": [1.0, 1.0, -0.5, -0.1, 1.0, -0.2, -0.3],
    "scores": 1.0,
}


def found(*records: Any, **more: Any) -> list[str]:
    return [one.problem for one in audit([json.dumps(record) for record in records], **more).findings]


def test_a_sound_sequence_a_group_and_nodes_pass():
    group = {name: [value, value] for name, value in GOOD.items()}
    node = {"tokens": GOOD["tokens"], "masked_tokens": GOOD["masks"], "logprobs": GOOD["inference_logprobs"]}
    assert found(GOOD, group, {"nodes": [node]}) == []


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"masks": [-100, -100, 6, 7, -100, 9]}, "unequal lengths"),
        ({"inference_logprobs": [1.0]}, "unequal lengths"),
        ({"inference_logprobs": None}, "missing logprobs"),
        ({"inference_logprobs": [1.0] * 7}, "missing logprobs: 4 positions"),
        ({"inference_logprobs": [1.0, 1.0, None, -0.1, 1.0, -0.2, -0.3]}, "missing logprobs: 1 position is"),
        ({"inference_logprobs": [1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0]}, "as a placeholder"),
        ({"masks": [1, 5, 6, 7, 8, 9, 7]}, "unmasked prompt"),
        ({"masks": [-100] * 7}, "nothing is trained"),
        ({"masks": [-100, -100, 6, 8, -100, 9, 7]}, "another token"),
        ({"tokens": [1, 5, 6, 7, 7, 9, 7]}, "doubled stop tokens: token 7 twice, 1 times, first at 4"),
        ({"tokens": [1, 1, 6, 7, 8, 9, 7]}, "doubled BOS"),
        ({"tokens": "1 2 3"}, "no sequence"),
    ],
)
def test_each_property_is_checked(change, problem):
    assert any(problem in one for one in found({**GOOD, **change}))


def test_more_than_one_node_of_a_conversation_is_found():
    node = {"tokens": GOOD["tokens"], "masked_tokens": GOOD["masks"], "logprobs": GOOD["inference_logprobs"]}
    assert found({"nodes": [node, node]}) == ["more than one sequence: a conversation left 2 nodes"]


def test_given_ids_decide_what_a_stop_token_is():
    record = {**GOOD, "tokens": [1, 5, 6, 6, 8, 9, 7], "masks": [-100, -100, 6, 6, -100, 9, 7]}
    assert found(record) == []
    assert found(record, stop_ids=[7]) == []
    assert found(record, stop_ids=[6]) != []
    assert found({**GOOD, "tokens": [5, 5, 6, 7, 8, 9, 7]}, bos_id=1) == []


leaves = st.none() | st.integers() | st.text()


@given(st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_any_json_object_is_audited(value):
    audit([json.dumps({**GOOD, name: value}) for name in GOOD])
    audit([json.dumps({"nodes": [value]}), json.dumps({"nodes": value}), json.dumps({"tokens": value, "masks": value})])


@pytest.mark.parametrize("line", ["[1]", "{", "[" * 100_000, "1"])
def test_a_line_that_is_no_object_is_named(line):
    with pytest.raises(ValueError, match="line 2 is no JSON"):
        audit([json.dumps(GOOD), line])


def test_the_command_line_prints_what_it_found_and_exits_accordingly(tmp_path, capsys):
    good, bad, torn = tmp_path / "good.jsonl", tmp_path / "bad.jsonl", tmp_path / "torn.jsonl"
    good.write_text(json.dumps(GOOD) + "\n\n")
    bad.write_text(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, "masks": GOOD["tokens"]}) + "\n")
    torn.write_text('{"tokens": [1')
    assert main([str(good)]) == 0
    assert "1 sequences, 7 tokens, 4 trained: nothing wrong" in capsys.readouterr().out
    assert main([str(bad)]) == 1
    assert f"{bad}:2: sequence 0: unmasked prompt" in capsys.readouterr().out
    assert main([str(torn), str(good)]) == 2
    assert "line 1 is no JSON" in capsys.readouterr().err
    assert main(["--json", str(bad)]) == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["line"] == 2


def test_the_entry_point_reads_a_dotenv_file_and_importing_does_not(tmp_path):
    pytest.importorskip("dotenv")
    (tmp_path / ".env").write_text("AGENT_AUDIT_SEEN=1\n")
    (tmp_path / "a.jsonl").write_text(json.dumps(GOOD))
    program = (
        "import os, agent.audit\n"
        "assert 'AGENT_AUDIT_SEEN' not in os.environ\n"
        "agent.audit.main(['a.jsonl'])\n"
        "assert os.environ['AGENT_AUDIT_SEEN'] == '1'\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


def test_what_managed_server_makes_of_a_conversation_by_itself_is_caught():
    """The proof that the ledger is needed, and that the audit sees what goes wrong without it."""
    pytest.importorskip("atroposlib")
    import anyio
    from atroposlib.envs.server_handling.managed_server import ManagedServer

    from agent.scripted import ScriptedServer

    async def converse() -> dict[str, Any]:
        managed = ManagedServer(ScriptedServer(["one", "two", "three"]))
        messages = [{"role": "user", "content": "go"}]
        for _ in range(3):
            answer = await managed.chat_completion(messages=messages, n=1)
            messages += [{"role": "assistant", "content": answer.choices[0].message.content}, messages[0]]
        return {"nodes": [node.model_dump() for node in managed.get_state()["nodes"]]}

    said = found(anyio.run(converse))
    assert any("doubled stop tokens" in one or "more than one sequence" in one for one in said)
