"""Stage `rlhf`: reinforcement against the reward model, the second half of RLHF, and how far it may be trusted.

Groups of answers are scored, and the better ones of each made likelier (groups.py). A score is only a proxy of what
people, or the closed world, find good, and it was learnt from answers of the model as it was at the start. So the
distance from the start is what is spent: the Kullback-Leibler divergence of an answer from the model at the start, in
nats, summed over its tokens. Training for use ends when the next step would spend nearly all of `rlhf.budget`; that
model is what rlhf/ keeps. Then the run is pushed on, faster, without a budget, the pull of rlhf.kl towards the start,
or rehearsal, only to show what becomes of the proxy and of the gold reward that it stands for: over-optimisation (Gao
et al., "Scaling Laws for Reward Model Overoptimization", 2022). What is measured, is measured on held-out requests.

With people's rankings nobody knows the gold reward; the proxy and the distance are told.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..data.loader import make_batch
from ..engine import Completion
from ..files import write_json
from ..model import Transformer, save
from ..world.portraits import Portraits, Sitting
from .dialogue import Dialogue, Reply
from .finetune import start_from
from .groups import GroupRollouts, losses_under, token_row
from .loop import Trainer, WeightedBatch
from .progress import note
from .reward import SCORED, answered, given_rankings, reward_model, scored
from .rl import replay_of
from .run import Run

Messages = Sequence[Mapping[str, Any]]
SPENT = (
    0.85  # of the budget, at most; the rest is for the noise of the estimate, and for requests not trained on
)
SPREAD = 3  # evaluations that are averaged to look for the turning point
SURE = 3.0  # standard errors by which the gold reward must fall from its peak to have turned


@dataclass(frozen=True)
class Answer:
    """One answer to one request; gold: what it is worth, where that is known."""

    messages: Messages
    reply: Reply
    gold: float | None

    @property
    def completion(self) -> Completion:
        return self.reply.completion

    @property
    def tokens(self) -> int:
        """Tokens sampled."""
        return len(self.completion.ids)


@dataclass(frozen=True)
class Requests:
    """What is asked: requests of the world, which knows what answers are worth, or the prompts of people's rankings."""

    messages: Sequence[Messages]
    sittings: Sequence[Sitting] = ()
    portraits: Portraits | None = None

    @classmethod
    def of(cls, run: Run, split: str) -> "Requests":
        """All of a split, "train" or "test", in a random order."""
        if run.config.rlhf.rankings is None:
            sittings = run.world.portraits.ask(split)
            messages = [[{"role": "user", "content": sitting.text}] for sitting in sittings]
            return cls(messages, sittings, run.world.portraits)
        distinct = {r.prompt: r.messages for r in given_rankings(run)[split == "test"]}
        found = [distinct[prompt] for prompt in sorted(distinct)]
        order = np.random.default_rng([run.config.seed, 9]).permutation(len(found))
        return cls([found[i] for i in order])

    def answer(
        self, dialogue: Dialogue, chosen: Sequence[int], samples: int, max_tokens: int, seed: int
    ) -> list[list[Answer]]:
        """`samples` answers to each of the chosen requests, at temperature 1."""
        groups = dialogue.ask([self.messages[i] for i in chosen], samples, 1.0, max_tokens, seed)
        return [
            [Answer(self.messages[i], reply, self._worth(i, reply.text)) for reply in group]
            for i, group in zip(chosen, groups, strict=True)
        ]

    def _worth(self, i: int, text: str) -> float | None:
        return self.portraits.worth(self.sittings[i], text) if self.portraits else None


class Judge:
    """The reward model's opinion of answers, in standard deviations of what it gave the answers ranked; 0 is their
    mean."""

    def __init__(self, run: Run):
        self.model, self.tokenizer = reward_model(run), run.tokenizer
        told = run.summary("reward")
        self.mean, self.deviation = told["mean"], told["deviation"]

    def proxies(self, groups: Sequence[Sequence[Answer]]) -> np.ndarray:
        """(N, G) of groups of equal size."""
        documents = [
            document
            for group in groups
            for document in answered(group[0].messages, [a.reply.text for a in group], self.tokenizer)
        ]
        scores = np.array(scored(self.model, documents)).reshape(len(groups), -1)
        return (scores - self.mean) / self.deviation


class ScoredRollouts(GroupRollouts[Answer]):
    """Answers to the requests trained on, scored; keeps the model that the budget pays for in rlhf/."""

    def __init__(self, run: Run, model: Transformer, reference: Transformer, judge: Judge):
        self.run, self.settings, self.scorer = run, run.config.rlhf, judge
        self.requests = Requests.of(run, "train")
        s = self.settings
        replay = replay_of(run, reference, s.replay * s.steps) if s.replay else []
        super().__init__(run, model, reference, "rlhf", s.kl, replay, s.replay)
        self.nats = 0.0  # of an answer's divergence from the start, as last seen
        self.stopped: int | None = None  # the steps done when the budget was spent

    def write(self, step: int, seed: int) -> list[list[Answer]]:
        s, count = self.settings, len(self.requests.messages)
        first = step * s.requests_per_step
        chosen = [i % count for i in range(first, first + s.requests_per_step)]
        return self.requests.answer(self.dialogue, chosen, s.group, s.max_tokens, seed)

    def judge(self, groups: Sequence[Sequence[Answer]]) -> np.ndarray:
        return self.scorer.proxies(groups)

    def told_of(self, attempts: Sequence[Answer]) -> dict[str, float]:
        gold = [a.gold for a in attempts if a.gold is not None]
        return {"gold": float(np.mean(gold))} if gold else {}

    def row(self, a: Answer) -> dict[str, Any]:
        return {"messages": list(a.messages), "reply": a.reply.text, "gold": a.gold}

    def batch(self, step: int) -> WeightedBatch | None:
        """Sample, score, weigh, and see what of the budget is left."""
        told = self.told
        batch = super().batch(step)
        if batch is not None:
            before = self.nats
            self.nats = batch.info["kl"] * batch.total_weight() / ((self.told - told) * self.settings.group)
            batch.info["kl_of_answer"] = self.nats
            coming = self.nats + max(0.0, self.nats - before)
            if self.stopped is None and coming > SPENT * self.settings.budget:
                self.stop(step)
            if self.stopped is not None:
                batch = replace(batch, rate=batch.rate * self.settings.push)
        return batch

    def stop(self, steps: int) -> None:
        """Keep the model as it is now, after so many steps; what follows is for the curve alone."""
        self.stopped = steps
        self.let_go()
        save(self.model, self.run.path("rlhf"), self.run.path("tokenizer"))

    def let_go(self) -> None:
        """From here on nothing holds the model back: no pull to the start, no rehearsal."""
        self.kl, self.rehearsed = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"nats": self.nats, "stopped": self.stopped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.nats, self.stopped = state["nats"], state["stopped"]
        if self.stopped is not None:
            self.let_go()


class Exam:
    """Held-out requests, and what a model makes of them: proxy, gold, distance."""

    def __init__(self, run: Run, reference: Transformer, judge: Judge):
        self.reference, self.judge, self.tokenizer = reference, judge, run.tokenizer
        self.requests, self.settings, self.seed = Requests.of(run, "test"), run.config.rlhf, run.config.seed

    def sit(self, model: Transformer, count: int) -> dict[str, Any]:
        """Means, over one answer to each of the first `count` requests, of proxy, gold (where known), nats and tokens,
        with the standard errors of the first two."""
        chosen = range(min(count, len(self.requests.messages)))
        dialogue = Dialogue(model, self.tokenizer)
        groups = self.requests.answer(dialogue, chosen, 1, self.settings.max_tokens, self.seed)
        answers, proxies = [group[0] for group in groups], self.judge.proxies(groups)[:, 0]
        told = {"proxy": float(proxies.mean()), "proxy_error": _error(proxies)}
        if self.requests.portraits:
            gold = np.array([a.gold for a in answers], float)
            told |= {"gold": float(gold.mean()), "gold_error": _error(gold)}
        nats = np.array(self._nats(answers))
        return told | {
            "kl": float(nats.mean()), "kl_error": _error(nats), "tokens": float(np.mean([a.tokens for a in answers])),
            "answers": len(answers),
        }  # fmt: skip

    def _nats(self, answers: Sequence[Answer]) -> list[float]:
        """Of each answer: its log-probability less that under the reference, an estimate of the divergence."""
        found: list[float] = []
        for first in range(0, len(answers), SCORED):
            rows = [token_row(a.completion, 1.0) for a in answers[first : first + SCORED]]
            ids, targets, weights, logprobs = zip(*rows, strict=True)
            own = torch.from_numpy(np.concatenate(weights)) > 0
            nll = losses_under(self.reference, WeightedBatch.of(make_batch(ids, targets)), own)
            ratio = torch.from_numpy(np.concatenate(logprobs)).nan_to_num() + nll
            found += [float(part.double().sum()) for part in ratio.split(list(map(len, ids)))]
        return found


def rlhf(run: Run) -> dict[str, Any]:
    """Train against the reward model within the budget, then on without one; writes rlhf/."""
    settings = run.config.rlhf
    if not run.path("reward", "config.json").exists():
        note("rlhf has no reward model to train against, since nothing was ranked")
        return {"left_out": "no reward model"}
    start, model = start_from(run, "reward/start"), start_from(run, "reward/start")
    judge = Judge(run)
    exam = Exam(run, start, judge)
    rollouts = ScoredRollouts(run, model, start, judge)
    trainer = Trainer(
        run, model, settings.optimizer, settings.steps, run.path("rlhf", "checkpoints"), rollouts.watch
    )
    every = max(1, settings.steps // settings.evaluations)
    summary = trainer.fit(rollouts.batch, lambda _: exam.sit(model, settings.examined), every, rollouts)
    rollouts.compare()
    if rollouts.stopped is None:
        rollouts.stop(settings.steps)
    curve = [
        {key: row[key] for key in row if key not in ("stage", "kind", "time")}
        for row in run.metrics("rlhf", "eval")
    ]
    result = {
        "start": exam.sit(start, settings.exam),
        "kept": exam.sit(start_from(run, "rlhf"), settings.exam),
        "stopped": rollouts.stopped,
        "budget": settings.budget,
        "curve": curve,
        "turning": turning_point(curve),
        "largest_logprob_difference": rollouts.difference,
        "compared_logprobs": rollouts.compared,
    }
    write_json(run.path("rlhf", "result.json"), result)
    _gates(run, result)
    return summary | {key: value for key, value in result.items() if key != "curve"}


def turning_point(curve: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Where the gold reward was highest along a run, and how much of it was lost by the end; None without gold.

    curve: evaluations with step, kl, proxy, gold and gold_error. Neighbouring ones are averaged, SPREAD at a time.
    "turned": whether the loss is more than SURE of its standard errors, while the proxy was no lower at the end.
    """
    if len(curve) < SPREAD or "gold" not in curve[0]:
        return None
    parts = [curve[i : i + SPREAD] for i in range(len(curve) - SPREAD + 1)]
    means = [
        {key: float(np.mean([row[key] for row in part])) for key in ("kl", "proxy", "gold")} for part in parts
    ]
    at = int(np.argmax([mean["gold"] for mean in means]))
    peak, end = means[at], means[-1]
    errors = [math.hypot(*(row["gold_error"] for row in part)) / SPREAD for part in (parts[at], parts[-1])]
    lost, error = peak["gold"] - end["gold"], math.hypot(*errors)
    return {
        "step": parts[at][SPREAD // 2]["step"], **peak, "end": end, "lost": lost, "error": error,
        "turned": lost > SURE * error and end["proxy"] >= peak["proxy"],
    }  # fmt: skip


def _error(values: np.ndarray) -> float:
    """The standard error of a mean."""
    return float(values.std() / math.sqrt(len(values)))


def _gates(run: Run, result: dict[str, Any]) -> None:
    start, kept, turning = result["start"], result["kept"], result["turning"]

    def gain(key: str) -> tuple[float, tuple[float, float]]:
        found = kept[key] - start[key]
        half = 1.96 * math.hypot(kept[f"{key}_error"], start[f"{key}_error"])
        return found, (found - half, found + half)

    nats, budget = kept["kl"], result["budget"]
    run.gate("RLHF: nats between an answer's model and the start", nats, f"<= {budget:g}, the budget", nats <= budget,
             interval=(nats - 1.96 * kept["kl_error"], nats + 1.96 * kept["kl_error"]), n=kept["answers"])  # fmt: skip
    for key, name in (("proxy", "the reward model's score"), ("gold", "the gold reward")):
        if key in kept:
            found, interval = gain(key)
            run.gate(f"RLHF: gain in {name}", found, "> 0, surely", interval[0] > 0, interval=interval,
                     before=start[key], after=kept[key])  # fmt: skip
    if turning is not None:
        run.gate("RLHF: gold lost after its turning point", turning["lost"],
                 f"> {SURE:g} standard errors, the score no lower", turning["turned"],
                 turning_kl=turning["kl"], error=turning["error"])  # fmt: skip
        if not turning["turned"]:
            note("the gold reward did not turn: the run was not pushed far enough to see over-optimisation")
