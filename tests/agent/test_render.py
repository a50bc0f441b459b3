"""Text that people and tools wrote holds no control token, and nothing of it is lost."""

from __future__ import annotations

import pytest

pytest.importorskip("atroposlib")

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers

from agent.render import ChatRenderer, LedgerError
from agent.scripted import byte_tokenizer
from agent.tokens import TokenLedger
from agent.tools import ToolResult
from tests.agent.tokenizers_by_feature import BY_FEATURE, CONTROL, TAGS

SPECIAL = (*CONTROL, *TAGS, "[INST]", "[/INST]", "[", "<|", "<<SYS>>", "INST")
TOKENIZER = byte_tokenizer(special=SPECIAL)
pieces = st.one_of(
    st.sampled_from(SPECIAL), st.sampled_from(["\ue000", "\ue001", "\ue0000\ue001", "<", "|"]), st.text()
)
spelling = st.lists(pieces, max_size=12).map("".join).filter(lambda text: "[" not in text)


def controls(renderer: ChatRenderer, ids: list[int]) -> list[int]:
    return [number for number in ids if number in renderer.control_ids]


@settings(deadline=None)
@given(spelling)
def test_no_spelling_becomes_a_control_token_and_the_text_comes_back(text):
    renderer = ChatRenderer(TOKENIZER)
    plain = renderer.prompt([{"role": "user", "content": "x"}])
    rendered = renderer.prompt([{"role": "user", "content": text}])
    assert controls(renderer, rendered.ids) == controls(renderer, plain.ids)
    assert rendered.text == plain.text.replace("\nx<", f"\n{text}<")
    assert TOKENIZER.decode(rendered.ids) == rendered.text.encode("utf-8", "replace").decode()


@settings(deadline=None)
@given(st.lists(st.one_of(st.sampled_from(SPECIAL), st.text(max_size=5)), max_size=12).map("".join))
def test_around_a_response_only_its_own_two_tags_are_alive(output):
    renderer = ChatRenderer(TOKENIZER)
    before = [{"role": "user", "content": "x"}]
    plain = renderer.suffix(before, [{"role": "user", "content": ToolResult(True, "x").to_xml()}])
    rendered = renderer.suffix(before, [{"role": "user", "content": ToolResult(True, output, output).to_xml()}])
    assert controls(renderer, rendered.ids) == controls(renderer, plain.ids)
    named = [TOKENIZER.decode([number]) for number in controls(renderer, rendered.ids)]
    assert named.count("<tool_response>") == named.count("</tool_response>") == 1


def test_a_control_token_of_one_character_is_spelled_out():
    renderer = ChatRenderer(TOKENIZER)
    rendered = renderer.prompt([{"role": "user", "content": "a[0]"}])
    assert TOKENIZER.convert_tokens_to_ids("[") not in rendered.ids
    assert "a\\u005b0]" in TOKENIZER.decode(rendered.ids)


def test_a_normalizer_cant_make_a_control_token_of_another_spelling():
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.add_tokens([AddedToken("<danger>", special=True, normalized=True)])
    renderer = ChatRenderer(tokenizer)
    number = tokenizer.convert_tokens_to_ids("<danger>")
    assert number in tokenizer.encode("<DANGER>", add_special_tokens=False)  # so it would be, without us
    for spelled in ("<danger>", "<DANGER>", "＜danger＞"):  # noqa: RUF001 - full width on purpose
        assert number not in renderer.prompt([{"role": "user", "content": f"a {spelled} b"}]).ids


def test_system_and_assistant_messages_keep_their_control_tokens():
    renderer = ChatRenderer(TOKENIZER)
    rendered = renderer.prompt(
        [
            {"role": "system", "content": "say <tool_call>"},
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "<think>y</think>"},
            {"role": "user", "content": "z"},
        ]
    )
    named = [TOKENIZER.decode([number]) for number in controls(renderer, rendered.ids)]
    assert [name for name in named if name in TAGS] == ["<tool_call>", "<think>", "</think>"]


def test_a_template_without_a_system_role_gets_its_text_in_the_first_user_message():
    for feature in ("has no system role", "drops the system role"):
        renderer = ChatRenderer(BY_FEATURE[feature]())
        text = renderer.prompt([{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]).text
        assert "be kind\n\nhello" in text
        assert "system" not in text


def test_a_template_that_drops_replies_is_refused():
    renderer = ChatRenderer(
        byte_tokenizer("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}")
    )
    with pytest.raises(LedgerError, match="leaves out assistant messages"):
        renderer.suffix([{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}])


def test_messages_that_dont_continue_the_conversation_are_refused():
    ledger = TokenLedger(ChatRenderer(byte_tokenizer()))
    first = [{"role": "user", "content": "a"}]
    pending = ledger.prompt(first)
    ledger.record(pending, pending.ids, [70, 258], [-0.1, -0.2], "stop")
    reply = {"role": "assistant", "content": ledger.turns[0].text}
    ledger.prompt([*first, reply, {"role": "user", "content": "b"}])
    for other in ([{"role": "user", "content": "A"}, reply], [*first, {"role": "assistant", "content": "no"}], first):
        with pytest.raises(LedgerError, match="don't continue"):
            ledger.prompt([*other, {"role": "user", "content": "b"}])
    assert len(ledger.turns) == 1
