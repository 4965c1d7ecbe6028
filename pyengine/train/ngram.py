"""Interpolated Kneser-Ney n-gram model over token ids: the yardstick of pre-training.

A transformer that has learnt more than local statistics must predict the validation split better than this
model does, counted over the same tokens of the same split. For an n-gram (h, w) of the highest order

    p_n(w | h) = max(c(h, w) - D_n, 0) / c(h)  +  D_n * types(h) / c(h) * p_{n-1}(w | h without its first token)

and below the highest order the counts are continuation counts: how many different tokens stand before the
n-gram (Kneser and Ney 1995; one absolute discount per order, D = n1 / (n1 + 2 n2), Ney et al. 1994). The
recursion ends in the uniform distribution over the vocabulary.

The one idea: every position of training and validation text gets the integer id of the n-gram that ends
there, order by order, from the id of the shorter n-gram that ends one position before. Counting and looking
up are then array indexing, and a million tokens take about a second.
"""

from collections.abc import Sequence

import numpy as np

Ids = Sequence[int] | np.ndarray


def kneser_ney_nll(
    train: Sequence[Ids], validation: Sequence[Ids], vocab: int, bos: int, order: int = 5
) -> np.ndarray:
    """Negative log-likelihood in nats of every validation token, in order, documents joined.

    Each document is predicted from its first token on, with `order - 1` times `bos` before it, so that no
    n-gram reaches into another document. Raises ValueError for an order below 1 or an empty training text.
    """
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")
    tokens, predicted = _join([*train, *validation], bos, order - 1)
    first = sum(len(document) + order - 1 for document in train)
    training = np.flatnonzero(predicted[:first])
    held_out = first + np.flatnonzero(predicted[first:])
    if not len(training):
        raise ValueError("the n-gram model needs at least one training token")

    grams = _gram_ids(tokens, vocab, order)
    probability = np.full(len(held_out), 1.0 / vocab)
    for n in range(1, order + 1):
        ends, contexts = grams[n], np.concatenate([[0], grams[n - 1][:-1]])
        seen, at = np.unique(ends[training], return_index=True)
        counts = np.zeros(ends.max() + 1)
        if n == order:
            counts += np.bincount(ends[training], minlength=len(counts))
        else:  # how many different tokens stand before: one for each different longer n-gram
            _, longer = np.unique(grams[n + 1][training], return_index=True)
            counts += np.bincount(ends[training[longer]], minlength=len(counts))
        once, twice = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
        discount = once / (once + 2 * twice) if once and twice else 0.5
        of = contexts[training[at]]  # the context of each seen n-gram
        size = contexts.max() + 1
        total = np.bincount(of, weights=counts[seen], minlength=size)[contexts[held_out]]
        types = np.bincount(of, minlength=size)[contexts[held_out]]
        kept = np.maximum(counts[ends[held_out]] - discount, 0.0)
        known = total > 0
        probability[known] = (kept + discount * types * probability)[known] / total[known]
    return -np.log(probability)


def _join(documents: Sequence[Ids], bos: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """All documents in one array, `pad` times `bos` before each, and which positions are predicted."""
    start = np.full(pad, bos, np.int64)
    parts = [part for document in documents for part in (start, np.asarray(document, np.int64))]
    marks = [np.full(len(part), i % 2 == 1) for i, part in enumerate(parts)]
    return np.concatenate(parts), np.concatenate(marks)


def _gram_ids(tokens: np.ndarray, vocab: int, order: int) -> list[np.ndarray]:
    """For n = 0..order the id of the n-gram that ends at each position (the first n-1 positions wrap)."""
    grams = [np.zeros(len(tokens), np.int64)]
    for _ in range(order):
        before = np.concatenate([[0], grams[-1][:-1]])
        grams.append(np.unique(before * vocab + tokens, return_inverse=True)[1].reshape(-1))
    return grams
