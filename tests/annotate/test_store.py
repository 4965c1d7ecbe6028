"""Who sees what, what is kept of decisions, and how far people agree."""

import json

import pytest

from pyengine.annotate import Store
from pyengine.annotate.store import HELD, dense
from pyengine.data import Prompt, encode_conversations, read_conversations, read_rankings
from pyengine.errors import UserError
from pyengine.files import Journal
from pyengine.text import Tokenizer

GUIDE = {"version": "1", "sha256": "abc"}
MODEL = {"name": "small", "sha256": "def"}
PROMPTS = [Prompt(f"p:{n}", [{"role": "user", "content": f"Who founded Tavor {n}?"}]) for n in range(20)]


@pytest.fixture
def journal(tmp_path):
    with Journal(tmp_path / "journal.jsonl") as journal:
        yield journal


def filled(journal, prompts=PROMPTS[:3], **more) -> Store:
    """A store with three answers to each prompt."""
    store = Store(journal, prompts, **more)
    for key in store.items:
        store.add_answers(key, ["Ada.", "Bob.", "Nobody."], MODEL)
    return store


def test_decisions_outlive_the_process_and_can_be_undone(journal):
    store, seen = filled(journal), []
    for ranks in ([1, 3, 3], [2, 1, 3]):
        seen.append(store.next("ada").key)
        store.decide("ada", seen[-1], GUIDE, ranks=ranks)
    store.decide("ada", store.next("ada").key, GUIDE, skip=True)
    assert store.next("ada") is None and store.progress("ada") == (3, 0) and store.progress("bob") == (0, 3)
    again = Store(journal, PROMPTS[:3])
    assert again.next("ada") is None and again.decisions == store.decisions
    assert [again.decisions[i]["ranks"] for i in range(3)] == [[1, 2, 2], [2, 1, 3], None]
    assert again.undo("ada")[1]["skip"] and again.undo("ada")[0].key == seen[1]
    assert again.next("ada").key == seen[1] and again.progress("ada") == (1, 2)
    again.decide("ada", seen[1], GUIDE, ranks=[1, 1, 1])
    last = Store(journal, PROMPTS[:3])
    assert [row["ranks"] for row in last.decisions] == [[1, 2, 2], [1, 1, 1]]
    assert last.undo("bob") is None


def test_a_decision_made_again_is_the_last_and_the_only_one(journal):
    store = filled(journal)
    one, two, _ = store.items
    for key, ranks in ((one, [1, 2, 3]), (two, [1, 2, 2]), (one, [3, 2, 1])):
        store.decide("ada", key, GUIDE, ranks=ranks)
    assert [row["ranks"] for row in store.decisions] == [[1, 2, 2], [3, 2, 1]]
    item, row = store.undo("ada")
    assert item.key == one and row["ranks"] == [3, 2, 1]
    assert [row["decision"] for row in Store(journal, PROMPTS[:3]).decisions] == [two]


def test_a_prompt_is_nobodys_once_its_reader_has_nothing_left(journal):
    store = filled(journal, PROMPTS[:1], overlap=0.0)
    (key,) = store.items
    assert store.next("ada").key == key and store.next("bob") is None
    store.decide("bob", key, GUIDE, skip=True)  # of a page opened earlier
    assert store.next("ada") is None
    store.undo("bob")
    assert store.next("bob").key == key and store.next("ada") is None


def test_a_prompt_that_was_left_undecided_goes_to_another_after_a_while(journal):
    now = [0.0]
    store = filled(journal, PROMPTS[:1], overlap=0.0, clock=lambda: now[0])
    (key,) = store.items
    assert store.next("ada").key == key
    now[0] = HELD - 1
    assert store.next("bob") is None and store.progress("bob") == (0, 1)
    assert store.next("ada").key == key  # she is still there
    now[0] = HELD + 1
    assert store.next("bob") is None
    now[0] = 2 * HELD
    assert store.next("bob").key == key and store.next("ada") is None
    store.decide("ada", key, GUIDE, skip=True)  # what she had on her page all the time counts
    assert store.next("bob") is None


def test_the_files_can_be_trained_on(journal, tmp_path):
    talk = [("system", "Be brief."), ("user", "Who?"), ("assistant", "Bob."), ("user", "Surely?")]
    prompts = [*PROMPTS[:1], Prompt("q:1", [{"role": role, "content": text} for role, text in talk])]
    store = filled(journal, prompts)
    one, two = store.items
    store.decide("ada", one, GUIDE, ranks=[1, 2, 2], ideal=["Ada Lovelace."], began=0)
    store.decide("ada", two, GUIDE, ideal=[" No, Ada. ", "When?", "In 1815."])
    store.decide("bob", one, GUIDE, skip=True)
    assert store.export(tmp_path) == (2, 1)
    (ranking,), skipped = read_rankings(tmp_path / "rankings.jsonl")
    assert not skipped and ranking.ranks == (1, 2, 2) and ranking.answers == ("Ada.", "Bob.", "Nobody.")
    assert (
        ranking.more["by"] == "ada" and ranking.more["guideline"] == GUIDE and ranking.more["model"] == MODEL
    )
    conversations, skipped = read_conversations(tmp_path / "conversations.jsonl")
    assert not skipped
    tokenizer = Tokenizer.train(["Who founded Tavor?"], 300)
    encoded, skipped = encode_conversations(conversations, tokenizer, 400)
    assert not skipped
    trained = [tokenizer.decode([int(i) for i in e.ids[e.mask]]) for e in encoded]
    assert trained == [" Ada Lovelace.<|end|>", " No, Ada.<|end|> In 1815.<|end|>"]  # and not " Bob."
    rows = [json.loads(line) for line in (tmp_path / "conversations.jsonl").read_text().splitlines()]
    assert rows[0]["provenance"] | {"time": ""} == {
        "by": "ada", "guideline": GUIDE, "prompt": "p:0", "time": "", "model": MODEL, "began": "Ada."
    }  # fmt: skip
    assert Store(journal).export(tmp_path / "again") == (2, 1)  # from the journal alone
    for name in ("rankings.jsonl", "conversations.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_prompts_are_shared_or_go_to_one_person(journal):
    store, seen = filled(journal, PROMPTS, overlap=0.5), {"ada": [], "bob": []}
    while any(items := {by: store.next(by) for by in seen}.values()):
        for by, item in zip(seen, items, strict=True):
            if item:
                seen[by].append(item.key)
                store.decide(by, item.key, GUIDE, skip=True)
    both = set(seen["ada"]) & set(seen["bob"])
    assert set(seen["ada"]) | set(seen["bob"]) == set(store.items)
    assert both == {key for key in store.items if store._is_shared(key)} and 0 < len(both) < 20
    assert store.progress("ada") == (len(seen["ada"]), 0)


def test_prompts_without_two_answers_are_passed_over(journal):
    store = Store(journal, PROMPTS[:3])
    one, two, three = store.items
    assert store.ahead(2) == [one, two]
    store.add_answers(one, ["Ada."], MODEL)
    assert store.next("ada").key == two and store.ahead(9) == [two, three] and store.progress("ada") == (0, 2)
    assert Store(journal, PROMPTS[:3], ranks=False).next("ada").key == one  # to be written


def test_the_order_on_the_page_favours_no_answer(journal):
    prompts = [Prompt("p", [{"role": "user", "content": str(n)}]) for n in range(300)]
    store = filled(journal, prompts)
    first = [store.order("ada", key)[0] for key in store.items]
    assert all(70 < first.count(i) < 130 for i in range(3))
    assert first == [store.order("ada", key)[0] for key in store.items]
    assert first != [store.order("bob", key)[0] for key in store.items]


@pytest.mark.parametrize("decision, told", [
    ({"ranks": [1, 2]}, "expected 3 ranks from 1 to 3"), ({"ranks": [0, 1, 2]}, "expected 3 ranks from 1 to 3"),
    ({"ideal": ["a", "b"]}, "first and last one of the assistant"), ({"ideal": [" "]}, "expected texts"),
    ({"ideal": ["a"], "began": 3}, "expected one of 3 answers"), ({}, "nothing was decided"),
    ({"by": ""}, "expected a name"), ({"key": "x"}, "not among those"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(journal, decision, told):
    store = filled(journal)
    more = {"by": "ada", "key": next(iter(store.items)), **decision}
    with pytest.raises(UserError, match=told):
        store.decide(more.pop("by"), more.pop("key"), GUIDE, **more)
    assert store.decisions == []


def test_agreement_is_over_pairs_of_answers_and_above_chance(journal):
    store = filled(journal)
    assert store.agreement() is None and dense([3, 1, 3]) == [2, 1, 2]
    one, two, _ = store.items
    store.decide("ada", one, GUIDE, ranks=[1, 2, 3])
    assert store.agreement() is None
    store.decide("bob", one, GUIDE, ranks=[1, 2, 3])
    found = store.agreement()
    assert (found.comparisons, found.share, found.kappa) == (3, 1.0, 1.0)
    store.decide("ada", two, GUIDE, ranks=[1, 2, 2])
    store.decide("bob", two, GUIDE, ranks=[2, 1, 1])
    found = store.agreement()  # 4 of 6; ties are 2 of 12 judgements, chance (1/6)^2 + (5/6)^2 / 2
    chance = (1 / 6) ** 2 + (5 / 6) ** 2 / 2
    assert found.comparisons == 6 and found.share == pytest.approx(4 / 6)
    assert found.kappa == pytest.approx((4 / 6 - chance) / (1 - chance))


def test_rankings_of_other_answers_are_not_compared(journal):
    store = filled(journal)
    one = next(iter(store.items))
    store.decide("ada", one, GUIDE, ranks=[1, 2, 3])
    store.add_answers(one, ["Nobody.", "Bob.", "Ada."], MODEL)
    store.decide("bob", one, GUIDE, ranks=[3, 2, 1])
    assert store.agreement() is None
