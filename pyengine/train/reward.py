"""Stage `reward`: from rankings of answers to a model that scores them, the first half of RLHF.

The closed world asks for portraits (world/portraits.py): no single answer is right, but what one is worth is known
exactly. The model is shown some by demonstration, writes several answers to each request, and simulated raters rank
them by their worth and some noise of their own, so that the best that a reward model could do is known too. With
`--rlhf.rankings FILE` the rankings are people's, and nothing of that is known. Requests about other people than those
trained on, or a person's file by the hash of each prompt, are held out.

    loss of a ranking = mean over its pairs (better b, worse w) of -log sigmoid(score(b) - score(w))

A pass without gradients finds the scores, and with them what the loss gains by each; the loop then trains every answer
by itself, with that as its weight. The gradient is the very same, and rankings go through the loop, its processes and
its checkpoints like any batch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..data import Ranking, read_rankings, split_by_prompt
from ..data.loader import make_batch
from ..errors import UserError
from ..files import write_json
from ..model import RewardModel, load_kind, save
from ..text import Tokenizer, render
from .dialogue import Dialogue
from .finetune import finetune, start_from
from .know import replayed, talk, write_lines
from .loop import Trainer, WeightedBatch
from .progress import note, note_left_out
from .run import Run

SCORED = 128  # answers scored at once
REACHED = 0.3  # share of the way from chance to the raters' ceiling that a reward model must have come


def reward(run: Run) -> dict[str, Any]:
    """Demonstrate, rank, train the reward model; writes reward/, and the policy that wrote the answers below it."""
    settings, given = run.config.reward, run.config.rlhf.rankings
    if given is None and not run.config.closed:
        note(f"reward has nothing to rank about {run.config.web.source}: give --rlhf.rankings")
        return {"left_out": "no rankings given"}
    ceiling = None
    if given is None:
        demonstrate(run)
        dialogue = Dialogue(start_from(run, "reward/start"), run.tokenizer)
        train, _ = rank(run, dialogue, "train", settings.requests)
        apart, ceiling = rank(run, dialogue, "test", settings.held_out)
    else:
        save(start_from(run, "rl"), run.path("reward", "start"), run.path("tokenizer"))
        train, apart = given_rankings(run)
    write_lines(run, "reward/rankings.jsonl", (ranking.row() for ranking in train))
    write_lines(run, "reward/held-out.jsonl", (ranking.row() for ranking in apart))

    model = RewardModel.of(start_from(run, "reward/start"))
    batches, tests = (
        Rankings(model, run.tokenizer, part, settings.rankings_per_step, run.config.seed)
        for part in (train, apart)
    )
    steps = max(1, math.ceil(settings.epochs * len(batches) / settings.rankings_per_step))
    trainer = Trainer(run, model, settings.optimizer, steps, run.path("reward", "checkpoints"))
    every = max(1, steps // settings.evaluations) if settings.evaluations else 0
    summary = trainer.fit(batches.batch, lambda _: tests.judge(), every)
    save(model, run.path("reward"), run.path("tokenizer"))
    scores = batches.scores()
    result = {
        "rankings": len(batches),
        "held_out": len(tests),
        **tests.judge(),
        "ceiling": ceiling,
        "trained_accuracy": batches.judge()["accuracy"],
        "mean": float(np.mean(scores)),
        "deviation": float(np.std(scores)),
    }
    write_json(run.path("reward", "result.json"), result)
    _gate(run, result)
    return summary | result


def reward_model(run: Run) -> RewardModel:
    """The reward model that the stage left behind."""
    return load_kind(RewardModel, run.path("reward"), device=run.device)


def demonstrate(run: Run) -> None:
    """Show the model of the stage before what portraits are, as people write them; writes reward/start."""
    portraits, rng = run.world.portraits, run.world.config.rng("demonstrations")
    sittings = portraits.ask("train", run.config.reward.demonstrations)
    shown = [talk(sitting.text, portraits.write(sitting, rng)) for sitting in sittings]
    settings = replace(run.config.search, epochs=run.config.reward.epochs_shown)
    finetune(run, start_from(run, "rl"), shown + replayed(run, len(shown)), settings, "reward/start")


def rank(run: Run, dialogue: Dialogue, split: str, count: int) -> tuple[list[Ranking], float]:
    """(answers of the model to `count` requests, each request's ranked by a simulated rater; the share of pairs that
    one who knows what each is worth would be expected to find as the raters do).

    A rater's liking is the worth over the noise; answers that say the same are ranked once. UserError where no two
    differ.
    """
    settings, portraits = run.config.reward, run.world.portraits
    sittings = portraits.ask(split, count)
    seed = 2 * run.config.seed + (split == "test")
    texts = [sitting.text for sitting in sittings]
    groups = dialogue.ask(texts, settings.answers, 1.0, run.config.rlhf.max_tokens, seed)
    rng, rankings, sure = np.random.default_rng([8, seed]), [], []
    for sitting, group in zip(sittings, groups, strict=True):
        answers = tuple(dict.fromkeys(reply.text for reply in group))
        liking = np.array([portraits.worth(sitting, answer) for answer in answers]) / settings.noise
        messages = [{"role": "user", "content": sitting.text}]
        rankings.append(Ranking(messages, answers, rated(liking, rng), {"by": "simulated rater"}))
        if pairs := rankings[-1].pairs():
            sure.append(np.mean([_sigmoid(abs(liking[b] - liking[w])) for b, w in pairs]))
    if not sure:
        raise UserError(
            f"all answers to each of {len(rankings)} requests are alike, so that none can be ranked; "
            "ask for more answers (--reward.answers), or train the model that writes them longer"
        )
    return rankings, float(np.mean(sure))


def rated(liking: np.ndarray, rng: np.random.Generator) -> tuple[int, ...]:
    """Ranks by liking and Gumbel noise: of any two, a comes before b with the probability sigmoid(liking a - liking b),
    as Bradley and Terry have it."""
    felt = liking + rng.gumbel(size=len(liking))
    return tuple(int(1 + (felt > own).sum()) for own in felt)


def given_rankings(run: Run) -> tuple[list[Ranking], list[Ranking]]:
    """(trained on, held out) of the file of the settings; UserError where one side has no pair."""
    path = run.config.rlhf.rankings
    assert path is not None
    rankings, skipped = read_rankings(path)
    note_left_out(skipped)
    sides = split_by_prompt([ranking for ranking in rankings if ranking.pairs()])
    if not all(sides):
        raise UserError(
            f"{path}: {len(rankings)} rankings, of which {len(sides[0])} are to train on and {len(sides[1])} held out "
            "(by prompt; those that are all ties do not count); expected some of each, rank more answers"
        )
    return sides


class Rankings:
    """Rankings as batches for a reward model, `at_once` in each; a batch depends on step, seed and weights alone."""

    def __init__(
        self, model: RewardModel, tokenizer: Tokenizer, rankings: Sequence[Ranking], at_once: int, seed: int
    ):
        self.model, self.at_once, self.seed = model, at_once, seed
        ranked = [(ranking, ranking.pairs()) for ranking in rankings]
        self._pairs = [np.array(pairs) for _, pairs in ranked if pairs]  # each (P, 2): better, worse
        self._answers = [answered(r.messages, r.answers, tokenizer) for r, pairs in ranked if pairs]

    def __len__(self) -> int:
        """Of those that are not all ties."""
        return len(self._pairs)

    def batch(self, step: int) -> WeightedBatch:
        """The answers of the step's rankings, weighted by how much the loss falls as the score of each rises."""
        places = range(step * self.at_once, (step + 1) * self.at_once)
        orders = {e: self._order(e) for e in {place // len(self) for place in places}}
        chosen = [int(orders[place // len(self)][place % len(self)]) for place in places]
        answers = [answer for i in chosen for answer in self._answers[i]]
        judged, gains, first = self._judged(chosen), np.zeros(len(answers)), 0
        for i, margins in zip(chosen, judged, strict=True):
            better, worse = self._pairs[i].T
            doubt = _sigmoid(-margins) / len(margins)
            np.add.at(gains, first + better, doubt)
            np.add.at(gains, first + worse, -doubt)
            first += len(self._answers[i])
        batch = make_batch(answers, answers)
        weights = torch.zeros(len(batch.ids))
        weights[batch.cu_seqlens[1:].long() - 1] = torch.from_numpy(gains).float()
        return WeightedBatch(
            **vars(batch), weights=weights, normaliser=float(len(chosen)), info=_told(judged)
        )

    def judge(self) -> dict[str, Any]:
        """What the model makes of all rankings, each counting once: the share of pairs that it finds as they do, with
        the 95 % interval, the loss of a pair, and by how much it scores the better one higher."""
        judged = self._judged(range(len(self)))
        right = [_accuracy(margins) for margins in judged]
        half = 1.96 * float(np.std(right)) / math.sqrt(len(right))
        told = _told(judged)
        return told | {
            "interval": (max(0.0, told["accuracy"] - half), min(1.0, told["accuracy"] + half)),
            "pairs": sum(map(len, judged)),
            "margin": float(np.mean([margins.mean() for margins in judged])),
        }

    def scores(self) -> list[float]:
        """The score of every answer."""
        return scored(self.model, [answer for answers in self._answers for answer in answers])

    def _judged(self, chosen: Sequence[int]) -> list[np.ndarray]:
        """Of each of the rankings: by how much the better one of each pair is scored higher."""
        scores = np.array(scored(self.model, [answer for i in chosen for answer in self._answers[i]]))
        found, first = [], 0
        for i in chosen:
            better, worse = self._pairs[i].T
            found.append(scores[first + better] - scores[first + worse])
            first += len(self._answers[i])
        return found

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, 7, epoch]).permutation(len(self))


def answered(
    messages: Sequence[Mapping[str, Any]], answers: Sequence[str], tokenizer: Tokenizer
) -> list[np.ndarray]:
    """The ids of the conversation with each of the answers behind it, as a reward model reads them."""
    talks = ([*messages, {"role": "assistant", "content": answer}] for answer in answers)
    return [np.array(render(messages, tokenizer)[0], np.int64) for messages in talks]


@torch.no_grad()
def scored(model: RewardModel, documents: Sequence[np.ndarray]) -> list[float]:
    """The score of each of the documents, in whatever company."""
    found: list[float] = []
    for first in range(0, len(documents), SCORED):
        part = documents[first : first + SCORED]
        batch = make_batch(part, part)
        found += model.scores(batch.ids, batch.cu_seqlens, batch.positions).cpu().tolist()
    return found


def _told(judged: Sequence[np.ndarray]) -> dict[str, float]:
    """Of margins by ranking, each ranking counting once: mean loss of a pair, share of pairs found as ranked."""
    return {
        "pair_loss": float(np.mean([np.logaddexp(0.0, -margins).mean() for margins in judged])),
        "accuracy": float(np.mean([_accuracy(margins) for margins in judged])),
    }


def _accuracy(margins: np.ndarray) -> float:
    """The share of pairs found as ranked; equal scores are half a find."""
    return float(((margins > 0) + 0.5 * (margins == 0)).mean())


def _sigmoid(x: Any) -> Any:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def _gate(run: Run, result: dict[str, Any]) -> None:
    """A share of what the raters' own ceiling leaves room for; of people's rankings, that it is better than chance."""
    ceiling, accuracy = result["ceiling"], result["accuracy"]
    bound = 0.5 if ceiling is None else 0.5 + REACHED * (ceiling - 0.5)
    if ceiling is None:
        told = "> 50 %, chance"
    else:
        told = f">= {bound:.1%}, {REACHED:.0%} of the way from chance to the raters' own {ceiling:.1%}"
    holds = accuracy >= bound and result["interval"][0] > 0.5
    run.gate("reward model's accuracy on held-out preferences", accuracy, told, holds,
             interval=result["interval"], n=result["pairs"])  # fmt: skip
