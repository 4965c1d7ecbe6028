"""Rankings: the forms understood, bad rows named, pairs, and a split in which no prompt is on both sides."""

import json

import pytest

from pyengine.data import Ranking, read_rankings, split_by_prompt

ASKED = [{"role": "user", "content": "Tell me about Tavor."}]
ROW = {"messages": ASKED, "answers": ["A.", "B.", "C."], "ranks": [2, 1, 2], "by": "Ada", "guideline": 3}


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_row_comes_back_as_it_was_with_all_its_keys(tmp_path):
    (ranking,), skipped = read_rankings(write(tmp_path / "r.jsonl", ROW))
    assert not skipped and ranking.row() == ROW and ranking.more == {"by": "Ada", "guideline": 3}


def test_pairs_are_of_different_ranks_and_ties_make_none():
    ranking = Ranking(ASKED, ("A.", "B.", "C."), (2, 1, 2))
    assert ranking.pairs() == [(1, 0), (1, 2)]
    assert Ranking(ASKED, ("A.", "B."), (3, 3)).pairs() == []


def test_pairs_of_public_data_are_understood(tmp_path):
    talks = [[*ASKED, {"role": "assistant", "content": text}] for text in ("good", "bad")]
    path = write(
        tmp_path / "r.jsonl",
        {"prompt": ASKED[0]["content"], "chosen": "good", "rejected": "bad", "source": "x"},
        {"chosen": talks[0], "rejected": talks[1]},
        {"prompt": "Tell me about Tavor.", "chosen": talks[0][1:], "rejected": talks[1][1:]},
        {"prompt": "a title of the above", "chosen": talks[0], "rejected": talks[1]},
    )
    rankings, skipped = read_rankings(path)
    assert not skipped and rankings[0].more == {"source": "x"}
    assert {(json.dumps(r.messages), r.answers, r.ranks) for r in rankings} == {
        (json.dumps(ASKED), ("good", "bad"), (1, 2))
    }


def test_each_bad_row_is_named_with_what_was_expected(tmp_path):
    said = {"role": "assistant", "content": "It is a town."}
    bad = [
        ({"messages": ASKED, "answers": ["A.", "B."]}, "'ranks' is missing"),
        (ROW | {"messages": [*ASKED, said]}, "the last message is of the assistant"),
        (ROW | {"messages": "Tavor"}, "a non-empty list of messages"),
        (ROW | {"answers": ["A."], "ranks": [1]}, "two or more texts"),
        (ROW | {"answers": ["A.", 2, "C."]}, "two or more texts"),
        (ROW | {"ranks": [1, 2]}, "2 ranks for 3 answers"),
        (ROW | {"ranks": [0, 1, 2]}, "whole numbers from 1"),
        (ROW | {"ranks": [1, True, 2]}, "whole numbers from 1"),
        ({"chosen": [*ASKED, said], "rejected": [said]}, "differ in the assistant's last turn"),
        ({"chosen": "A.", "rejected": "B."}, "a non-empty list of messages"),
        ("{", "not JSON"),
    ]
    path = write(tmp_path / "r.jsonl", *(row for row, _ in bad), ROW)
    rankings, skipped = read_rankings(path)
    assert len(rankings) == 1 and rankings[0].where == f"{path}:{len(bad) + 1}"
    for number, (found, (_, reason)) in enumerate(zip(skipped, bad, strict=True), 1):
        assert found.where == f"{path}:{number}" and reason in found.reason


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_no_prompt_is_on_both_sides(share):
    def asked(number: int) -> Ranking:
        return Ranking([{"role": "user", "content": f"Question {number}"}], ("A.", "B."), (1, 2))

    rankings = [asked(number) for number in [*range(400), *range(400)]]
    train, apart = split_by_prompt(rankings, share)
    assert len(train) + len(apart) == 800 and not {r.prompt for r in train} & {r.prompt for r in apart}
    assert abs(len(apart) / 800 - share) < 0.06
