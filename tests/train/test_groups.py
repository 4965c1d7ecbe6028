"""Losses under another model: those asked for, to the bit, and nothing read for the others."""

import numpy as np
import pytest
import torch

from pyengine.engine import Completion
from pyengine.model import Transformer
from pyengine.train.groups import _replayed, losses_under

from . import tiny


@pytest.mark.parametrize("asked", [(), (1,), (0, 2), (0, 1, 2)], ids=str)
def test_documents_of_which_nothing_is_asked_are_not_read(monkeypatch, asked):
    model, batch = Transformer(tiny.MODEL, seed=1), tiny.batch(0, (9, 5, 20))
    bounds, own, read = batch.cu_seqlens.tolist(), torch.zeros(34, dtype=torch.bool), []
    for document in asked:
        own[bounds[document + 1] - 3 : bounds[document + 1]] = True
    with torch.no_grad():
        every = model.loss(batch.ids, batch.targets, batch.cu_seqlens, batch.positions)
    plain = Transformer.loss
    monkeypatch.setattr(
        Transformer, "loss", lambda self, ids, *rest: read.append(len(ids)) or plain(self, ids, *rest)
    )
    assert torch.equal(losses_under(model, batch, own), every * own)
    assert read == [sum(bounds[i + 1] - bounds[i] for i in asked)]


def test_what_a_tool_put_into_an_answer_is_not_rehearsed():
    completion = Completion([7, 8], [4, 5, 6, 9], [-1.0, 0.0, 0.0, -2.0], [False, True, True, False])
    ids, targets, weights, logprobs = _replayed(completion)
    assert ids.tolist() == [7, 8, 4, 5, 6] and targets.tolist() == [-100, 4, -100, -100, 9]
    assert weights.tolist() == [0, 1, 0, 0, 1] and np.isnan(logprobs).all()
