"""RLHF in its parts: simulated raters, the gradient of a ranking, the judge of portraits' curve, people's rankings."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from pyengine.data import Ranking
from pyengine.engine import Completion
from pyengine.errors import UserError
from pyengine.model import RewardModel, Transformer
from pyengine.text import Tokenizer
from pyengine.train import reward
from pyengine.train.dialogue import Reply
from pyengine.train.reward import REACHED, Rankings, given_rankings, rank, rated, scored
from pyengine.train.reward import _gate as reward_gate
from pyengine.train.rlhf import turning_point
from pyengine.train.run import Run

from . import tiny

ASKED = [{"role": "user", "content": "Who is Mara?"}]
RANKINGS = [
    Ranking(ASKED, ("Mara is a cook.", "Mara Mara Mara.", "No."), (1, 3, 2)),
    Ranking(ASKED, ("Mara plays.", "Mara sings the song of Mara."), (2, 1)),
    Ranking(ASKED, ("Nobody.", "Mara."), (1, 1)),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["Who is Mara? Mara is a cook, and Mara sings the song."] * 3, 300)


@pytest.fixture
def model(tokenizer) -> RewardModel:
    made = RewardModel.of(Transformer(replace(tiny.MODEL, vocab_size=tokenizer.vocab_size), seed=4))
    with torch.no_grad():
        made.head.copy_(torch.randn(made.head.shape, generator=torch.Generator().manual_seed(5)))
    return made


def test_raters_are_of_one_mind_as_often_as_bradley_and_terry_say():
    rng, liking = np.random.default_rng(0), np.array([0.7, 0.0, -1.2])
    ranks = np.array([rated(liking, rng) for _ in range(20_000)])
    assert {tuple(sorted(row)) for row in ranks.tolist()} == {(1, 2, 3)}
    for a, b in ((0, 1), (0, 2), (1, 2)):
        before = float((ranks[:, a] < ranks[:, b]).mean())
        assert before == pytest.approx(1 / (1 + math.exp(liking[b] - liking[a])), abs=0.012)


class Says:
    """In a model's place: the same replies to every question; remembers the seeds."""

    def __init__(self, *replies: str):
        self.replies, self.seeds = replies, []

    def ask(self, questions, samples, temperature, max_tokens, seed):
        self.seeds.append(seed)
        return [[Reply(text, None, Completion([1])) for text in self.replies] for _ in questions]


def test_answers_that_say_the_same_are_ranked_once_and_each_split_has_its_own_dice(tmp_path):
    run, dialogue = Run(tiny.ROAD, tmp_path), Says("No.", "Yes. No.", "No.", "Yes. No. Perhaps.")
    sides = [rank(run, dialogue, split, 40) for split in ("train", "test")]
    for rankings, _ in sides:
        assert {ranking.answers for ranking in rankings} == {("No.", "Yes. No.", "Yes. No. Perhaps.")}
    ranks = [[ranking.ranks for ranking in rankings] for rankings, _ in sides]
    assert ranks[0] != ranks[1] and len(set(dialogue.seeds)) == 2
    apart = 0.5 / 3 / run.config.reward.noise  # a needless sentence more, in the rater's noise
    sure = [1 / (1 + math.exp(-apart * sentences)) for sentences in (1, 1, 2)]
    assert [ceiling for _, ceiling in sides] == pytest.approx([sum(sure) / 3] * 2)


def test_a_model_that_says_one_thing_alone_cannot_be_ranked(tmp_path):
    with pytest.raises(UserError, match="all answers to each of 8 requests are alike"):
        rank(Run(tiny.ROAD, tmp_path), Says("No.", "No."), "train", 8)


@pytest.mark.parametrize("ceiling, accuracy, low, holds", [
    (0.9, 0.5 + REACHED * 0.4, 0.51, True),
    (0.9, 0.5 + REACHED * 0.4 - 0.01, 0.51, False),
    (0.9, 0.9, 0.49, False),
    (None, 0.6, 0.51, True),
    (None, 0.6, 0.49, False),
])  # fmt: skip
def test_the_gate_asks_for_a_share_of_the_ceiling_and_for_more_than_chance_surely(
    tmp_path, ceiling, accuracy, low, holds
):
    run = Run(tiny.ROAD, tmp_path)
    reward_gate(run, {"ceiling": ceiling, "accuracy": accuracy, "interval": (low, 0.95), "pairs": 90})
    assert [gate["holds"] for gate in run.gates().values()] == [holds]


def test_the_weights_of_a_batch_give_the_gradient_of_the_pairs(model, tokenizer):
    rankings = Rankings(model, tokenizer, RANKINGS, 2, seed=0)
    assert len(rankings) == 2, "one that is all ties teaches nothing"
    batch = rankings.batch(0)
    loss = model.loss(batch.ids, batch.targets, batch.cu_seqlens, batch.positions, batch.weights)
    ((loss * batch.weights).sum() / batch.total_weight()).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    scores = model.scores(batch.ids, batch.cu_seqlens, batch.positions)
    total, at = torch.zeros(()), 0
    for i in rankings._order(0):
        ranking = [r for r in RANKINGS if r.pairs()][i]
        own = scores[at : at + len(ranking.answers)]
        pairs = [torch.nn.functional.softplus(own[w] - own[b]) for b, w in ranking.pairs()]
        total, at = total + sum(pairs) / len(pairs), at + len(ranking.answers)
    assert batch.info["pair_loss"] == pytest.approx(total.item() / 2, rel=1e-5)
    (total / 2).backward()
    for name, parameter in model.named_parameters():
        error = (found[name] - parameter.grad).abs().max()
        assert error <= 1e-4 * parameter.grad.abs().max() + 1e-7, name


def test_every_epoch_has_every_ranking_once_and_a_batch_depends_on_its_step(model, tokenizer):
    many = [Ranking(ASKED, (f"Mara {i}.", "No."), (1, 2)) for i in range(7)]
    rankings, again = (Rankings(model, tokenizer, many, 3, seed=1) for _ in range(2))
    assert torch.equal(again.batch(4).ids, [rankings.batch(step) for step in range(5)][4].ids)
    texts = [tokenizer.decode(rankings.batch(step).ids.tolist()) for step in range(7)]  # three epochs
    told = re.findall(r"Mara (\d)\.", "".join(texts))
    epochs = [told[first : first + 7] for first in range(0, len(told), 7)]
    assert [sorted(epoch) for epoch in epochs] == [list("0123456")] * 3
    assert len(set(map(tuple, epochs))) == 3, "each epoch has an order of its own"


def test_a_score_is_the_same_in_any_company(model, tokenizer, monkeypatch):
    documents = [
        np.array(tokenizer.encode(text)) for text in ("Mara is a cook.", "No.", "Mara sings the song")
    ]
    alone = [scored(model, [document])[0] for document in documents]
    assert scored(model, documents) == alone and len(set(alone)) == 3
    monkeypatch.setattr(reward, "SCORED", 2)
    assert scored(model, documents) == alone, "in parts"


def test_scores_that_are_alike_are_half_a_find(tokenizer):
    blind = RewardModel.of(Transformer(replace(tiny.MODEL, vocab_size=tokenizer.vocab_size), seed=4))
    told = Rankings(blind, tokenizer, RANKINGS, 2, seed=0).judge()
    assert told["accuracy"] == 0.5 and told["interval"] == (0.5, 0.5) and told["margin"] == 0
    assert told["pairs"] == 4 and told["pair_loss"] == pytest.approx(math.log(2))


def curve(gold, error=0.02):
    return [
        {"step": 3 * i, "kl": 2.0 * i, "proxy": 0.1 * i, "gold": value, "gold_error": error}
        for i, value in enumerate(gold)
    ]


def test_the_turning_point_is_where_gold_was_highest_if_it_fell_surely():
    found = turning_point(curve([0.0, 0.2, 0.4, 0.5, 0.4, 0.2, 0.0, -0.2]))
    assert found["turned"] and found["step"] == 9 and found["kl"] == pytest.approx(6.0)
    assert found["lost"] == pytest.approx(1.3 / 3 - 0.0)
    assert not turning_point(curve([0.0, 0.2, 0.4, 0.5, 0.4, 0.2], error=0.2))["turned"], "within its error"
    assert not turning_point(curve([0.0, 0.1, 0.2, 0.3, 0.4]))["turned"], "it rose to the end"
    falling = [row | {"proxy": -row["proxy"]} for row in curve([0.0, 0.2, 0.4, 0.5, 0.2, -0.2])]
    assert not turning_point(falling)["turned"], "both fell: the training went wrong, the score was not gamed"


def test_without_gold_or_too_short_there_is_nothing_to_find():
    assert turning_point([{"step": i, "kl": i, "proxy": i} for i in range(9)]) is None
    assert turning_point(curve([0.0, 1.0])) is None


def test_rankings_that_leave_nothing_to_hold_out_are_refused(tmp_path):
    path = tmp_path / "rankings.jsonl"
    path.write_text("".join(json.dumps(ranking.row()) + "\n" for ranking in RANKINGS))
    run = Run(replace(tiny.ROAD, rlhf=replace(tiny.ROAD.rlhf, rankings=path)), tmp_path)
    with pytest.raises(UserError, match=r"3 rankings, of which \d are to train on and \d held out"):
        given_rankings(run)
