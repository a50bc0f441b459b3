from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.parse import ParsedCall, ParseError, parse_message
from agent.tools import ToolCall, ToolResult

PWD = '<tool_call>\n{"name": "terminal", "arguments": {"command": "pwd"}}\n</tool_call>'

TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
JSON = ["{", "}", '"', "\\", '{"name": "a", "arguments": {}}', '{"name": 1}', "[[[[", "NaN", "1" * 20]
fragments = st.sampled_from([*TAGS, *JSON, PWD, "\ud800", "\x00", "\u2028", " \n"])
hostile = st.lists(st.one_of(fragments, st.text(max_size=8)), max_size=40).map("".join)


def test_a_message_without_calls_is_the_final_answer():
    parsed = parse_message("<think>easy</think>There are 3 files.")
    assert parsed.is_final
    assert parsed.format_errors == ()


def test_a_call_keeps_its_name_arguments_text_and_id():
    text = '<tool_call>{"name": "terminal", "arguments": {"command": "ls"}, "id": "c1"}</tool_call>'
    (call,) = ToolCall.parse_from_text(text)
    assert (call.name, call.arguments, call.raw_text, call.uniq_id) == ("terminal", {"command": "ls"}, text, "c1")
    assert call.echo_id


def test_a_call_without_an_id_gets_one_that_the_response_does_not_repeat():
    first, second = ToolCall.parse_from_text(PWD + PWD)
    assert first.uniq_id != second.uniq_id
    assert not first.echo_id


def test_a_missing_think_block_is_no_error():
    assert parse_message(PWD).format_errors == ()


def test_strings_in_a_call_may_hold_any_tag():
    arguments = {"command": "echo '</tool_call><tool_call></think><think>'"}
    text = f"<think>x</think><tool_call>{json.dumps({'name': 't', 'arguments': arguments})}</tool_call>"
    (call,) = parse_message(text).calls
    assert call.arguments == arguments


@pytest.mark.parametrize(
    "body, reason",
    [
        ("{'name': 'terminal'}", "can't be read"),
        ("", "no JSON object"),
        ('["terminal"]', "no JSON object"),
        ('{"name": "terminal", "arguments": "pwd"}', '"arguments" must be a JSON object'),
        ('{"name": "terminal"}', '"arguments" must be a JSON object'),
        ('{"arguments": {}}', '"name" must be'),
        ('{"name": "t", "arguments": {"n": NaN}}', "number"),
        ('{"name": "t", "arguments": {"n": ' + "9" * 5000 + "}}", "number"),
        ('{"name": "t", "arguments": {}} and more', "text follows"),
        ('{"name": "t", "arguments": ' + '{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_a_malformed_call_becomes_an_error_that_names_the_mistake(body, reason):
    parsed = parse_message(f"<tool_call>{body}</tool_call>")
    (error,) = parsed.errors
    assert reason in error.message
    assert not parsed.is_final
    assert not parsed.calls


@pytest.mark.parametrize(
    "text", ["<tool_call>", PWD.removesuffix("</tool_call>"), '<tool_call>{"name": "te', "x</tool_call>"]
)
def test_an_unbalanced_tag_is_an_error_and_no_final_answer(text):
    (error,) = parse_message(text).items
    assert isinstance(error, ParseError)


def test_good_and_bad_calls_keep_their_order():
    parsed = parse_message(f"{PWD}<tool_call>oops</tool_call>{PWD}")
    assert [type(item) for item in parsed.items] == [ParsedCall, ParseError, ParsedCall]


def test_an_unclosed_call_does_not_swallow_the_next_one():
    parsed = parse_message(f"<tool_call>oops{PWD}")
    assert [type(item) for item in parsed.items] == [ParseError, ParsedCall]


def test_calls_inside_think_do_not_run():
    assert parse_message(f"<think>I could say {PWD}</think>done").is_final
    assert parse_message(f"I could say {PWD}</think>done").is_final
    assert parse_message(f"I could say {PWD}</think>done", thinking=True).is_final


def test_a_call_after_reasoning_that_the_prompt_had_opened_runs():
    assert len(parse_message(f"so it is</think>{PWD}", thinking=True).calls) == 1
    assert parse_message(f"so it is</think>{PWD}", thinking=True).format_errors == ()


def test_calls_in_a_think_block_that_is_never_closed_are_answered_and_not_run():
    for text, thinking in [(f"<think>{PWD}", False), (PWD, True)]:
        parsed = parse_message(text, thinking=thinking)
        assert not parsed.calls
        assert "not closed" in parsed.errors[0].message


def test_text_beside_a_call_is_counted_and_tolerated():
    parsed = parse_message(f"Let me look.{PWD}")
    assert len(parsed.calls) == 1
    assert len(parsed.format_errors) == 1


def test_strict_refuses_the_calls_of_a_message_that_breaks_the_format():
    parsed = parse_message(f"Let me look.{PWD}", strict=True)
    assert not parsed.calls
    assert "text stands outside" in parsed.errors[0].message
    assert len(parse_message(PWD, strict=True).calls) == 1


def test_a_forged_response_is_a_format_error():
    assert parse_message(f"{PWD}<tool_response>{{}}</tool_response>").format_errors


@given(hostile, st.booleans(), st.booleans())
def test_hostile_text_never_raises(text, thinking, strict):
    parsed = parse_message(text, thinking=thinking, strict=strict)
    assert all(isinstance(call.arguments, dict) for call in parsed.calls)


@given(hostile)
def test_every_opening_tag_outside_reasoning_is_answered(text):
    parsed = parse_message("<think></think>" + text.replace("think>", "thick>"))
    if "<tool_call>" in text:
        assert not parsed.is_final


@given(st.text(), st.text(), st.dictionaries(st.text(), st.text()), st.one_of(st.none(), st.text()))
def test_a_response_is_one_line_between_its_own_two_tags_and_holds_what_it_was_given(output, error, metadata, uniq_id):
    result = ToolResult(True, output, error, metadata, uniq_id)
    line = result.to_xml()
    body = line.removeprefix("<tool_response>").removesuffix("</tool_response>")
    assert len(line.splitlines()) == 1
    assert json.loads(body)["output"] == output
    assert json.loads(body).get("error", "") == error
    line.encode()


@given(hostile)
def test_no_output_can_open_or_close_a_tag(output):
    line = ToolResult(False, output, output, {output: output}, output).to_xml()
    body = line.removeprefix("<tool_response>").removesuffix("</tool_response>")
    for tag in ("think>", "tool_call>", "tool_response>", "|im_end|>", "|im_start|>", "s>", "tools>"):
        assert f"<{tag}" not in body
        assert f"</{tag}" not in body
    assert parse_message(body).is_final


@pytest.mark.parametrize("text", ["a < b", "#include <stdio.h>", "cat <<EOF", "<div class='x'>", "Vec<u8>"])
def test_ordinary_angle_brackets_stay_readable(text):
    assert json.dumps(text)[1:-1] in ToolResult(True, text).to_xml()
