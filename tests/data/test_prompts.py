"""What conversations begin with, and the guideline they are written under."""

import json

import pytest

from pyengine.data import Prompt, read_guideline, read_prompts
from pyengine.errors import UserError


def test_every_kind_of_row_is_a_prompt(tmp_path):
    file = tmp_path / "prompts.jsonl"
    talk = [
        {"role": r, "content": c} for r, c in [("user", "Who?"), ("assistant", "Ada."), ("user", "When?")]
    ]
    rows = [
        {"prompt": " Who? "},
        {"instruction": "Translate.", "input": "Haus"},
        {"messages": [*talk, {"role": "assistant", "content": "In 1815."}]},
        {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ada."}]},
        {"topic": "glass"},
        {"text": "Ada founded Tavor.", "url": "http://x/"},
        {"messages": [{"role": "assistant", "content": "Hello."}]},
        {"title": "nothing to ask"},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    prompts, skipped = read_prompts(file)
    assert [[m["content"] for m in p.messages] for p in prompts] == [
        ["Who?"], ["Translate.\n\nHaus"], ["Who?", "Ada.", "When?"], ["Who?"], [], []
    ]  # fmt: skip
    assert (prompts[4].topic, prompts[5].passage) == ("glass", "Ada founded Tavor.")
    assert [(row.where, row.reason) for row in skipped] == [
        (f"{file}:7", "expected a message of the user"),
        (f"{file}:8", skipped[1].reason),
    ]
    assert "expected a prompt, messages, a topic or a text" in skipped[1].reason


def test_a_text_file_has_a_prompt_in_each_line(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("Who?\n\n  Where? \n")
    prompts, _ = read_prompts(file)
    assert [(p.where, p.messages[0]["content"]) for p in prompts] == [
        (f"{file}:1", "Who?"), (f"{file}:3", "Where?")
    ]  # fmt: skip
    file.write_text("\n")
    with pytest.raises(UserError, match="the file is empty"):
        read_prompts(file)
    with pytest.raises(UserError, match="no such file"):
        read_prompts(tmp_path / "other.txt")


def test_a_passage_is_cut_between_words():
    prompt = Prompt("here", passage="Ada founded Tavor.")
    assert [prompt.cut(n).passage for n in (100, 18, 12, 11, 2)] == [
        "Ada founded Tavor.", "Ada founded Tavor.", "Ada founded", "Ada founded", "Ad"
    ]  # fmt: skip


def test_a_guideline_has_a_version_and_a_hash(tmp_path):
    file = tmp_path / "guideline.md"
    for text, version in [
        ("# Rules\n\nVersion 2\n\nBe brief.", "2"),
        ("**Version: 1.3b**\n", "1.3b"),
        ("Be brief.", ""),
    ]:
        file.write_text(text)
        assert read_guideline(file).version == version, text
    one = read_guideline(file).stamp
    file.write_text("Be very brief.")
    assert one["sha256"] != read_guideline(file).stamp["sha256"] and one["version"] == ""
    file.write_text(" ")
    with pytest.raises(UserError, match="the file is empty"):
        read_guideline(file)
