"""Nobody can tell from its letters whether a name is known, later or invented."""

import itertools

import pytest

from pyengine.world import World, WorldConfig
from pyengine.world.facts import GROUPS


@pytest.mark.parametrize("pair", list(itertools.combinations(GROUPS, 2)), ids="-".join)
def test_character_ngrams_do_not_tell_the_groups_apart(pair):
    feature_extraction = pytest.importorskip("sklearn.feature_extraction.text")
    from sklearn.model_selection import cross_val_predict
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline

    facts = World(WorldConfig(people=1200, later=1200, invented=1200)).facts
    names, labels = [], []
    for label, group in enumerate(pair):
        people = facts.of(group, kind="person")
        names += [person.name for person in people]
        labels += [label] * len(people)
    vectorizer = feature_extraction.CountVectorizer(analyzer="char_wb", ngram_range=(1, 4), min_df=2)
    classifier = make_pipeline(vectorizer, MultinomialNB())
    guesses = cross_val_predict(classifier, names, labels, cv=4)
    right = sum(int(a == b) for a, b in zip(guesses, labels, strict=True)) / len(labels)
    assert right <= 0.55  # 2,400 names: chance is 0.50 with a standard error of 0.01


def test_names_are_unique_and_two_edits_apart():
    people = [e.short for e in World(WorldConfig(seed=3)).facts.entities]
    assert len(set(people)) == len(people)
    deletions: dict[str, str] = {}
    for name in people:
        for near in {name} | {name[:i] + name[i + 1 :] for i in range(len(name))}:
            assert deletions.setdefault(near.lower(), name) == name
