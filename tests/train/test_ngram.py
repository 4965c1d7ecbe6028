"""The Kneser-Ney yardstick against a slow dictionary version of the same formula, and its invariants."""

from collections import defaultdict

import numpy as np
import pytest

from pyengine.train.ngram import kneser_ney_nll


def slow_probability(train, order, vocab, bos, history, token):
    """The textbook recursion over dictionaries."""
    grams = {n: defaultdict(float) for n in range(1, order + 1)}
    sets = {n: defaultdict(set) for n in range(1, order)}
    for document in train:
        padded = [bos] * (order - 1) + list(document)
        for end in range(order - 1, len(padded)):
            for n in range(1, order + 1):
                gram = tuple(padded[end - n + 1 : end + 1])
                if n == order:
                    grams[n][gram] += 1
                else:
                    sets[n][gram].add(padded[end - n])
    for n in range(1, order):
        grams[n].update({gram: float(len(before)) for gram, before in sets[n].items()})

    def p(n, history):
        if n == 0:
            return 1 / vocab
        counts = grams[n]
        once, twice = (sum(c == k for c in counts.values()) for k in (1, 2))
        discount = once / (once + 2 * twice) if once and twice else 0.5
        followers = {g: c for g, c in counts.items() if g[:-1] == history}
        shorter = p(n - 1, history[1:])
        if not followers:
            return shorter
        total = sum(followers.values())
        kept = max(counts.get((*history, token), 0) - discount, 0)
        return (kept + discount * len(followers) * shorter) / total

    return p(order, tuple(history[len(history) - order + 1 :]) if order > 1 else ())


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_equals_the_dictionary_version(order):
    rng = np.random.default_rng(order)
    train = [list(rng.integers(0, 5, n)) for n in (1, 7, 30, 12)]
    validation = [list(rng.integers(0, 6, n)) for n in (4, 9)]  # token 5 never occurs in training
    got = np.exp(-kneser_ney_nll(train, validation, 6, 0, order))
    want = []
    for document in validation:
        padded = [0] * (order - 1) + document
        for i in range(len(document)):
            want.append(slow_probability(train, order, 6, 0, padded[: i + order - 1], document[i]))
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_probabilities_of_all_tokens_sum_to_one():
    rng = np.random.default_rng(0)
    train = [list(rng.integers(0, 8, 200))]
    last = [kneser_ney_nll(train, [[1, 2, 3, 1, token]], 8, 0)[-1] for token in range(8)]
    assert np.exp(-np.array(last)).sum() == pytest.approx(1.0, abs=1e-12)


def test_documents_do_not_leak_into_each_other():
    train = [[1, 2, 3, 4, 5]] * 3
    alone = kneser_ney_nll(train, [[4, 5]], 8, 0)
    behind = kneser_ney_nll(train, [[1, 2, 3], [4, 5]], 8, 0)[3:]
    np.testing.assert_array_equal(alone, behind)


def test_empty_training_text_is_refused():
    with pytest.raises(ValueError, match="at least one training token"):
        kneser_ney_nll([[]], [[1]], 4, 0)
