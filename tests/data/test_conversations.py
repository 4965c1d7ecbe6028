"""Conversations, problems and facts: forms understood, bad rows named, packing keeps conversations apart."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyengine.data import (
    Fact,
    PackedConversations,
    Problem,
    encode_conversations,
    read_conversations,
    read_facts,
    read_problems,
)
from pyengine.data.conversations import best_fit
from pyengine.data.loader import IGNORE
from pyengine.errors import UserError
from pyengine.text import Tokenizer, render

PAIR = [{"role": "user", "content": "How many moons?"}, {"role": "assistant", "content": "Two."}]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["How many moons has Tavor? Two."] * 3, 290)


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_forms_of_conversations(tmp_path):
    path = write(
        tmp_path / "chats.jsonl",
        {"messages": PAIR},
        {"conversations": [{"from": "human", "value": "How many moons?"}, {"from": "gpt", "value": "Two."}]},
        {"prompt": "How many moons?", "response": "Two."},
        "",
        {"question": "How many moons?", "answer": "Two."},
        {"instruction": "Sum.", "input": "1 2", "output": "3", "system": "Be exact."},
    )
    conversations, skipped = read_conversations(path)
    assert not skipped
    assert [c.messages for c in conversations[:4]] == [PAIR] * 4
    assert [m["content"] for m in conversations[4].messages] == ["Be exact.", "Sum.\n\n1 2", "3"]
    assert conversations[3].where == f"{path}:5"


def test_bad_rows_are_kept_aside_by_line(tmp_path):
    path = write(
        tmp_path / "chats.jsonl",
        {"messages": PAIR},
        "{not json",
        [1],
        {"messages": [{"role": "robot", "content": "x"}]},
        {"nothing": 1},
        {"conversations": [{"from": "alien", "value": "x"}]},
        {"prompt": "x", "response": " "},
        {"messages": PAIR},
    )
    conversations, skipped = read_conversations(path)
    assert len(conversations) == 2
    assert [s.where for s in skipped] == [f"{path}:{n}" for n in range(2, 8)]
    reasons = ["not JSON", "expected a JSON object", "unknown role 'robot'", "expected a field 'messages'"]
    reasons += ["alien", "no field 'response'"]
    for skip, reason in zip(skipped, reasons, strict=True):
        assert reason in skip.reason, skip
    assert skipped[0].text.startswith("{not json")


def test_broken_bytes_are_a_bad_row(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(json.dumps({"messages": PAIR}).encode() + b'\n{"messages": "\xff"}\n')
    assert [s.where for s in read_conversations(path)[1]] == [f"{path}:2"]


def test_utf16_and_a_byte_order_mark(tmp_path):
    path, row = tmp_path / "x.jsonl", json.dumps({"messages": PAIR})
    path.write_bytes(b"\xef\xbb\xbf" + row.encode() + b"\n\xff\xfe{}\n" + row.encode())
    conversations, (skipped,) = read_conversations(path)
    assert len(conversations) == 2 and skipped.where == f"{path}:2"
    assert skipped.reason == "not UTF-8 text (byte 0xff at 1); save the file as UTF-8"


def test_a_file_without_a_good_row_is_refused(tmp_path):
    path = write(tmp_path / "x.jsonl", "{}")
    with pytest.raises(UserError, match=r"x.jsonl: none of 1 rows can be used; the first: .*x.jsonl:1: "):
        read_conversations(path)
    with pytest.raises(UserError, match="no such file"):
        read_conversations(tmp_path / "nowhere.jsonl")


def test_what_cannot_be_trained_is_kept_aside(tokenizer):
    long = [PAIR[0], {"role": "assistant", "content": "x" * 100}]
    encoded, skipped = encode_conversations([PAIR, PAIR[:1], long, PAIR], tokenizer, max_tokens=40)
    assert len(encoded) == 2
    assert [s.where for s in skipped] == ["conversation 2", "conversation 3"]
    assert "nothing to train on" in skipped[0].reason and "more than the 40" in skipped[1].reason


@given(lengths=st.lists(st.integers(1, 50), max_size=60))
@settings(deadline=None)
def test_best_fit(lengths):
    groups = best_fit(lengths, 50)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    sums = [sum(lengths[i] for i in group) for group in groups]
    assert all(0 < s <= 50 for s in sums)
    assert all(
        a + b > 50 for n, a in enumerate(sums) for b in sums[n + 1 :]
    )  # no two groups would fit in one


def test_batches_keep_conversations_apart(tokenizer):
    """Each sequence of a batch is one whole conversation, its targets its masked next tokens, nothing else."""
    chats = [
        [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "Two. " * (i % 5 + 1)}]
        for i in range(40)
    ]
    expected = {tuple(ids): mask for ids, mask in (render(chat, tokenizer) for chat in chats)}
    encoded, _ = encode_conversations(chats, tokenizer, 64)
    loader = PackedConversations(encoded, 64, seed=1, pad=tokenizer.pad)
    assert loader.fill > 0.85
    seen = []
    while loader.epoch == 0:
        batch = loader.next()
        assert batch.ids.shape == (64,)
        cu = batch.cu_seqlens.tolist()
        for a, b in zip(cu, cu[1:], strict=False):
            ids, targets = batch.ids[a:b].tolist(), batch.targets[a:b].tolist()
            assert batch.positions[a:b].tolist() == list(range(b - a))
            if set(ids) == {tokenizer.pad}:
                assert set(targets) == {IGNORE}
                continue
            mask = expected[tuple(ids)]
            seen.append(tuple(ids))
            wanted = [i if m else IGNORE for i, m in zip(ids[1:], mask[1:], strict=True)]
            assert targets == [*wanted, IGNORE]
    assert sorted(seen) == sorted(expected)


def test_without_padding_batches_are_shorter(tokenizer):
    encoded, _ = encode_conversations([PAIR], tokenizer, 64)
    batch = PackedConversations(encoded, 64).next()
    assert len(batch.ids) == len(encoded[0].ids) and batch.trained == len(tokenizer.encode(" Two.")) + 1


def test_resume_is_exact(tokenizer):
    chats = [[PAIR[0], {"role": "assistant", "content": "x" * n}] for n in range(1, 30)]
    encoded, _ = encode_conversations(chats, tokenizer, 90)
    loader = PackedConversations(encoded, 90, seed=5)
    batches = [loader.next() for _ in range(40)]
    assert loader.epoch >= 1
    for cut in (0, 3, 20):
        before = PackedConversations(encoded, 90, seed=5)
        for _ in range(cut):
            before.next()
        resumed = PackedConversations(encoded, 90, seed=5)
        resumed.load_state_dict(json.loads(json.dumps(before.state_dict())))
        assert all(torch.equal(resumed.next().ids, batch.ids) for batch in batches[cut : cut + 15])
    with pytest.raises(UserError, match="no conversations"):
        PackedConversations([], 90)


def test_problems(tmp_path):
    path = write(
        tmp_path / "problems.jsonl",
        {"problem": "1+1?", "answer": 2, "grade": 1, "id": "p"},
        {"question": "Sum?", "answer": "First 1,000.\nThen more.\n#### 1,234"},
        {"prompt": "?", "target": "$1,250"},
        {"answer": "no problem"},
        {"problem": "The capital of France?", "answer": "Paris"},
        {"problem": "Two of them?", "answer": "1, 2"},
        {"problem": "A part?", "answer": "3/4", "id": "q"},
    )
    problems, skipped = read_problems(path)
    assert problems == [
        Problem("1+1?", "2", 1, "p"),
        Problem("Sum?", "1234", None, f"{path}:2", "First 1,000.\nThen more."),
        Problem("?", "1250", None, f"{path}:3"),
        Problem("A part?", "3/4", None, "q"),
    ]
    assert [s.where for s in skipped] == [f"{path}:{n}" for n in (4, 5, 6)]
    assert [s.reason.split(";")[0] for s in skipped[1:]] == [
        f"the answer {answer!r} is no number" for answer in ("Paris", "1, 2")
    ]


def test_facts(tmp_path):
    path = write(
        tmp_path / "facts.jsonl",
        {"question": "Who?", "answer": "Ann", "passage": "Ann did.", "aliases": ["Anne", "Ann"], "id": 7},
        {"query": "Who?", "answers": ["Ann", "A."], "context": "c"},
        {"question": "Who?", "answer": "x", "aliases": "y"},
    )
    facts, skipped = read_facts(path)
    assert facts == [
        Fact("Who?", "Ann", "Ann did.", ("Anne",), "7"),
        Fact("Who?", "Ann", "c", ("A.",), f"{path}:2"),
    ]
    assert facts[0].answers == ("Ann", "Anne")
    assert "list of texts" in skipped[0].reason


def test_masks_are_arrays(tokenizer):
    encoded, _ = encode_conversations([PAIR], tokenizer, 64)
    assert encoded[0].ids.dtype == np.int32 and encoded[0].mask.dtype == bool
