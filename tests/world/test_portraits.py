"""Portraits: what a reply is worth is what its sentences tell, and people write what is true."""

import random

import pytest

from pyengine.world import World
from pyengine.world.config import WorldConfig
from pyengine.world.wordings import ANSWERS, STATEMENTS, fill


@pytest.fixture(scope="module")
def world() -> World:
    return World(WorldConfig.tiny())


def test_every_wording_of_every_fact_is_read(world):
    for entity in world.facts.of("known", kind="person"):
        for relation, value in entity.facts:
            for text in STATEMENTS[relation] + ANSWERS[relation]:
                for subject in ("name", "short", "pronoun"):
                    said = fill(text, entity, value, subject)
                    assert world.portraits.read(said, entity) == (relation, value), said


def test_what_a_reply_is_worth(world):
    sitting = world.portraits.ask("train")[0]
    (first, one), (second, two), *_ = sitting.entity.facts
    true = [fill(ANSWERS[r][0], sitting.entity, v) for r, v in sitting.entity.facts]
    other = next(v for v in world.facts.values(first) if v != one)
    false = fill(ANSWERS[first][0], sitting.entity, other)
    stranger = world.facts.of("known", kind="person")[-1]
    worth = {
        "": 0.0,
        true[0]: 1 / 3,
        " ".join(true[:3]): 1.0,
        "\n".join(true[:3]): 1.0,
        " ".join(true[:4]): 1.0 - 0.5 / 3,  # beyond a few
        f"{true[0]} {true[0]}": (1 - 0.5) / 3,  # the same again
        f"{true[0]} {fill(STATEMENTS[first][1], sitting.entity, one, 'pronoun')}": (1 - 0.5)
        / 3,  # in other words
        f"{true[1]} {false}": (1 - 1) / 3,
        f"{true[0]} The weather was fine.": (1 - 0.5) / 3,
        fill(ANSWERS[first][0], stranger, stranger.value(first)): -0.5 / 3,  # of somebody else
        true[0].rstrip("."): -0.5 / 3,  # cut off
    }
    for reply, expected in worth.items():
        assert world.portraits.worth(sitting, reply) == pytest.approx(expected), reply


def test_people_write_nothing_false_and_not_always_what_was_asked(world):
    rng = random.Random(0)
    sittings = world.portraits.ask("train")
    worths = [world.portraits.worth(s, world.portraits.write(s, rng)) for s in sittings for _ in range(4)]
    assert 0.4 < sum(worths) / len(worths) < 0.9 and max(worths) == 1.0 and min(worths) >= -0.5
    for sitting in sittings:
        for sentence in world.portraits.write(sitting, rng).split(". "):
            fact = world.portraits.read(sentence.rstrip(".") + ".", sitting.entity)
            assert fact is None or fact in sitting.entity.facts


def test_train_and_test_are_of_different_people(world):
    train, test = (world.portraits.ask(split) for split in ("train", "test"))
    assert train and test and not {s.entity.id for s in train} & {s.entity.id for s in test}
    assert len({s.text for s in train}) == len(train) and world.portraits.ask("train", 3) == train[:3]
