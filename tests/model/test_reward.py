"""Reward models: the scores of transformers, whatever is packed beside, kept and told apart from language models."""

import pytest
import torch

from pyengine.engine import Engine
from pyengine.errors import UserError
from pyengine.model import RewardModel, Transformer, load, load_kind, save

from .test_transformer import batch, model  # noqa: F401  (the fixture)


@pytest.fixture
def scorer(model) -> RewardModel:  # noqa: F811
    made = RewardModel.of(model)
    with torch.no_grad():
        made.head.copy_(torch.randn(made.head.shape, generator=torch.Generator().manual_seed(2)))
    return made


def test_a_new_one_finds_everything_equally_good(model):  # noqa: F811
    made = RewardModel.of(model)
    ids, _, cu_seqlens, positions = batch()
    assert made.scores(ids, cu_seqlens, positions).tolist() == [0.0, 0.0, 0.0]
    assert torch.equal(made.embedding, model.embedding) and made.embedding is not model.embedding
    assert not made.config.tie_embeddings and made.head.shape == (1, model.config.hidden_size)


def test_transformers_gives_the_same_scores(scorer, tmp_path):
    transformers = pytest.importorskip("transformers")
    save(scorer, tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, dtype=torch.float32
    ).eval()
    assert theirs.num_labels == 1
    ids, _, cu_seqlens, positions = batch()
    with torch.no_grad():
        ours = scorer.scores(ids, cu_seqlens, positions)
        expected = [theirs(part[None]).logits.item() for part in ids.split(cu_seqlens.diff().tolist())]
    assert (ours - torch.tensor(expected)).abs().max() <= 1e-4 and ours.abs().min() > 1e-2
    again = load_kind(RewardModel, tmp_path)
    assert torch.equal(again.scores(ids, cu_seqlens, positions), ours) and again.config == scorer.config


@torch.no_grad()
def test_a_score_does_not_depend_on_what_is_packed_beside(scorer):
    ids, _, cu_seqlens, positions = batch()
    alone = [
        scorer.scores(part, torch.tensor([0, len(part)], dtype=torch.int32), torch.arange(len(part)).int())
        for part in ids.split(cu_seqlens.diff().tolist())
    ]
    assert torch.equal(scorer.scores(ids, cu_seqlens, positions), torch.cat(alone))


def test_the_loss_is_minus_the_score_at_each_last_token(scorer):
    ids, targets, cu_seqlens, positions = batch()
    loss = scorer.loss(ids, targets, cu_seqlens, positions)
    scores, last = scorer.scores(ids, cu_seqlens, positions), cu_seqlens[1:].long() - 1
    assert torch.equal(loss[last], -scores) and int((loss != 0).sum()) == 3
    loss[last[1]].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in scorer.parameters())


def test_the_operations_of_its_training_are_those_of_its_layers(scorer, model):  # noqa: F811
    weights = {name: p.numel() for name, p in scorer.named_parameters() if p.dim() == 2}
    assert scorer.train_flops(0) == 6 * (sum(weights.values()) - weights["embedding"] - weights["head"])
    assert scorer.train_flops(64) - scorer.train_flops(0) == model.train_flops(64) - model.train_flops(0)


def test_it_is_no_language_model_and_says_so(scorer, model, tmp_path):  # noqa: F811
    save(scorer, tmp_path / "scores")
    save(model, tmp_path / "writes")
    for read in (load, Engine):
        with pytest.raises(UserError, match="scores is a reward model, which scores answers and writes none"):
            read(tmp_path / "scores")
    with pytest.raises(UserError, match="writes is a language model"):
        load_kind(RewardModel, tmp_path / "writes")
    assert type(load_kind(Transformer, tmp_path / "writes")) is Transformer
