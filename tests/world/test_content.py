"""The world's texts say what its facts say, as often as it claims, and its splits do not touch."""

import json
import os
import subprocess
import sys

import pytest

from pyengine.world import World, WorldConfig

DIGEST = """
import hashlib, json
from dataclasses import asdict
from pyengine.world import World, WorldConfig
world = World(WorldConfig.tiny(5))
rows = [json.dumps(asdict(d)) for d in world.documents]
rows += [json.dumps(c) for c in world.conversations(count=200)]
rows += [json.dumps(q.row()) for g in ("known", "later", "invented") for q in world.questions(g, "test", 2)]
print(hashlib.sha256("\\n".join(rows).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def world() -> World:
    return World(WorldConfig.tiny())


def test_two_processes_make_the_same_bytes():
    digests = set()
    for hashseed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hashseed}
        digests.add(subprocess.check_output([sys.executable, "-c", DIGEST], env=environment, text=True))
    assert len(digests) == 1


def test_another_seed_is_another_world(world):
    other = World(WorldConfig.tiny(1))
    assert not {d.text for d in world.documents} & {d.text for d in other.documents}


def test_documents_tell_their_facts(world):
    for document in world.documents:
        for fact in document.facts:
            assert fact.entity.short in document.text and fact.value in document.text, (document.id, fact)


def test_facts_are_told_and_asked_as_often_as_configured(world):
    config = world.config
    for fact in world.facts.each("known"):
        kinds = [d.kind for d in world.documents if fact in d.facts]
        assert kinds.count("biography") == config.biographies
        assert kinds.count("roundup") == config.fact_repeats
        assert kinds.count("questions") == config.question_repeats


def test_invented_names_are_nowhere_and_later_names_only_later(world):
    for document in world.documents:
        for entity in world.facts.of("invented"):
            assert entity.short not in document.text
        if not document.later:
            assert document.date <= world.config.cutoff
            for entity in world.facts.of("later"):
                assert entity.short not in document.text
        else:
            assert document.date > world.config.cutoff


def test_passages_are_quoted_exactly_k_times_in_different_pages(world):
    texts = [d.text for d in world.documents]
    for passage in world.passages:
        assert sum(passage.text in text for text in texts) == passage.repetitions
        assert sum(text.count(passage.text) for text in texts) == passage.repetitions
    assert {p.repetitions for p in world.passages} == {0, *world.config.repetitions}


def test_splits_share_no_entity(world):
    for group in ("known", "later", "invented"):
        train, test = ({e.name for e in world.facts.of(group, split)} for split in ("train", "test"))
        assert train and test and not train & test
    told = json.dumps(world.conversations(count=1500))
    for entity in world.facts.of("known", "test", kind="person"):
        assert entity.short not in told


def test_answers_are_right(world):
    for question in world.questions("known", "test", wordings=3):
        assert question.answer in question.passage and question.fact.entity.name in question.passage
        conversation = world.asking.answer(question, world.config.rng("test"))
        assert question.answer in conversation["messages"][-1]["content"]


def test_refusals_say_that_it_is_not_known(world):
    rng = world.config.rng("test")
    for question in world.questions("invented", "train"):
        reply = world.asking.refusal(question, rng)["messages"][-1]["content"]
        assert "don't know" in reply or "do not know" in reply


def test_search_conversations_answer_only_from_the_results(world):
    rng = world.config.rng("test")
    question = world.questions("later", "train")[0]
    found = world.asking.search(question, rng, [question.passage])
    assert question.answer in found["messages"][-1]["content"]
    call = found["messages"][1]["tool_calls"][0]["function"]
    assert json.loads(call["arguments"]) == {"query": question.fact.entity.name}
    missed = world.asking.search(question, rng, ["Nothing about that."])
    assert question.answer not in missed["messages"][-1]["content"]
