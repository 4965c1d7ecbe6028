"""Groups of replies as the batches of reinforcement: sample, judge, compare within the group, weigh every token.

    weight of a sampled token = advantage of its reply - kl * (its log-probability - that under the reference)

Each step the engine writes a group of replies to each of some requests with the very weights being trained; what is
asked, and what a reply earns, is the subclass's: problems with answers (rl.py), a reward model's score (rlhf.py). The
group is its own baseline. Everything sampled is trained, the stop token included; prompts and forced tokens are not.
Answers of the reference may be rehearsed along. Every attempt is kept in <folder>/rollouts.jsonl and can be replayed by
its seed.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch

from ..data.loader import IGNORE, make_batch
from ..engine import Completion
from ..files import atomic_write
from ..model import Transformer
from .dialogue import Dialogue
from .loop import WeightedBatch
from .rewards import group_advantages
from .run import Run


class Written(Protocol):
    """One reply of a group."""

    @property
    def completion(self) -> Completion: ...
    @property
    def tokens(self) -> int: ...


Reply = TypeVar("Reply", bound=Written)


class GroupRollouts(ABC, Generic[Reply]):
    """The batches of one reinforcement run: `batch(step)` depends on step, seed and weights alone.

    kl: weight of staying near the reference. replay: its answers to rehearse, `rehearsed` of them in each step.
    """

    def __init__(
        self, run: Run, model: Transformer, reference: Transformer, folder: str, kl: float,
        replay: list[Completion], rehearsed: int,
    ):  # fmt: skip
        self.model, self.reference, self.kl = model, reference, kl
        self.replay, self.rehearsed = replay, rehearsed
        self.tokenizer, self.seed = run.tokenizer, run.config.seed
        self.dialogue = Dialogue(model, self.tokenizer)
        self.path = run.path(folder, "rollouts.jsonl")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.difference = 0.0  # largest |rollout's log-probability - trainer's|
        self.compared = 0  # tokens whose two log-probabilities were held against each other
        self.work = 0.0  # tokens trained or sampled, as trained ones: a forward pass is a third of a step
        self.told = 0  # groups whose replies differed in reward, so that there was something to learn from
        self._nll: torch.Tensor | None = None
        self._sampled: tuple[torch.Tensor, torch.Tensor] | None = None  # weights != 0 and log-probabilities
        self._step: int | None = None

    @abstractmethod
    def write(self, step: int, seed: int) -> list[list[Reply]]:
        """The step's groups, sampled anew."""

    @abstractmethod
    def judge(self, groups: Sequence[Sequence[Reply]]) -> np.ndarray:
        """What each reply earns: (N, G)."""

    @abstractmethod
    def told_of(self, attempts: Sequence[Reply]) -> dict[str, float]:
        """Numbers about all of a step's replies, for its line of metrics."""

    @abstractmethod
    def row(self, attempt: Reply) -> dict[str, Any]:
        """What the ledger keeps of a reply, besides its reward, length and log-probability."""

    def batch(self, step: int) -> WeightedBatch | None:
        """Sample, judge, weigh."""
        self.compare()
        if self._step is None:
            self._forget(step)
        self._step = step + 1
        groups = self.write(step, (self.seed * 1009 + 17) * 100_003 + step)
        rewards = self.judge(groups)
        advantages, says = group_advantages(rewards)
        self._keep(step, groups, rewards, advantages)
        used = [
            (a, float(advantage))
            for group, row, use in zip(groups, advantages, says, strict=True)
            if use
            for a, advantage in zip(group, row, strict=True)
        ]
        attempts = [a for group in groups for a in group]
        info: dict[str, Any] = {
            "reward": float(rewards.mean()),
            **self.told_of(attempts),
            "length": sum(a.tokens for a in attempts) / len(attempts),
            "groups_skipped": int((~says).sum()),
            "entropy": -_mean([p for a in attempts for p in a.completion.logprobs]),
        }
        self.work += sum(len(a.completion.prompt) + a.tokens for a in attempts) / 3
        if not used:
            return None
        self.told += int(says.sum())
        # Adam's step is of full length however small the gradient is: without this the chance slips of a few replies
        # in a thousand would move the weights as far as lessons do
        return self._weigh(used, step, info, rate=float(says.mean()))

    def _weigh(
        self, used: Sequence[tuple[Reply, float]], step: int, info: dict[str, Any], rate: float
    ) -> WeightedBatch:
        rows = [token_row(a.completion, advantage) for a, advantage in used]
        count = sum(a.tokens for a, _ in used)
        replay = self.replay
        for i in range(self.rehearsed if replay else 0):
            rows.append(_replayed(replay[(step * self.rehearsed + i) % len(replay)]))
        ids, targets, weights, logprobs = zip(*rows, strict=True)
        token_weights = torch.from_numpy(np.concatenate(weights))
        batch = WeightedBatch(
            **vars(make_batch(ids, targets)),
            weights=token_weights,
            normaliser=float(count),
            rate=rate,
            info=info,
        )
        sampled = torch.from_numpy(np.concatenate(logprobs))
        own = ~sampled.isnan()
        log_ratio = sampled[own] + losses_under(self.reference, batch, own)[own]
        info["kl"] = float(log_ratio.mean())
        if self.kl:
            token_weights[own] -= self.kl * log_ratio
        self._sampled = own & (token_weights != 0), sampled
        self.work += len(batch.ids) + sum(len(row[0]) for row in rows[: len(used)]) / 3
        return batch

    def watch(self, nll: torch.Tensor) -> None:
        """Keep the trainer's losses of the batch for `compare`."""
        self._nll = nll

    def compare(self) -> None:
        """Compare the trainer's log-probabilities of the last batch with the rollout's."""
        if self._sampled is not None and self._nll is not None:
            own, sampled = self._sampled
            trained = -self._nll
            if own.any():
                difference = float((trained[own] - sampled[own]).abs().max())
                self.difference = float(np.maximum(self.difference, difference))  # a NaN stays one
                self.compared += int(own.sum())
        self._nll = self._sampled = None

    def state_dict(self) -> dict[str, Any]:
        """What goes into the checkpoint beside the weights."""
        self.compare()
        return {
            "difference": self.difference, "compared": self.compared, "work": self.work, "told": self.told,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        difference = state["difference"]
        self.difference = math.nan if difference is None else difference  # JSON has no NaN
        self.compared, self.work, self.told = state["compared"], state["work"], state["told"]

    def _keep(
        self, step: int, groups: Sequence[Sequence[Reply]], rewards: np.ndarray, advantages: np.ndarray
    ) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            for group, row, weights in zip(groups, rewards, advantages, strict=True):
                for j, a in enumerate(group):
                    kept = {
                        "step": step, "sample": j, **self.row(a),
                        "reward": round(float(row[j]), 4), "advantage": round(float(weights[j]), 4),
                        "tokens": a.tokens, "logprob": round(math.fsum(a.completion.logprobs), 4),
                    }  # fmt: skip
                    file.write(json.dumps(kept) + "\n")

    def _forget(self, step: int) -> None:
        """Drop the attempts of steps that are about to be done again."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        with atomic_write(self.path) as file:
            file.writelines(line + "\n" for line in lines if _step_of(line) < step)


def token_row(completion: Completion, weight: float) -> tuple[np.ndarray, ...]:
    """(ids, targets, weights, log-probabilities) of one attempt; the last token is only a target."""
    prompt = completion.prompt
    whole = np.array([*prompt, *completion.ids], np.int64)
    targets = whole[1:].copy()
    targets[: len(prompt) - 1] = IGNORE
    weights = np.where(targets == IGNORE, 0.0, weight).astype(np.float32)
    sampled = np.full(len(targets), np.nan, np.float32)
    sampled[len(prompt) - 1 :] = completion.logprobs
    return whole[:-1], targets, weights, sampled


@torch.no_grad()
def losses_under(model: Transformer, batch: WeightedBatch, own: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihoods (T,) on the host, under another model, of a batch's tokens where own (T,) is true.

    Elsewhere they are 0. A document of which nothing is asked is not read: the others' losses do not depend on it.
    """
    lengths = batch.cu_seqlens.diff()
    asked = torch.tensor([bool(part.any()) for part in own.split(lengths.tolist())])
    read = asked.repeat_interleave(lengths)
    bounds = torch.cat([torch.zeros(1, dtype=torch.int32), lengths[asked].cumsum(0, dtype=torch.int32)])
    targets, weights = batch.targets[read].clamp(min=0), own[read].float()
    losses = torch.zeros(len(own))
    losses[read] = model.loss(batch.ids[read], targets, bounds, batch.positions[read], weights).cpu()
    return losses


def _replayed(completion: Completion) -> tuple[np.ndarray, ...]:
    """An answer to be kept: its own tokens with weight 1, what a tool put in without."""
    ids, targets, weights, logprobs = token_row(completion, 1.0)
    forced = np.array([*[True] * (len(completion.prompt) - 1), *completion.forced])
    targets[forced], weights[forced], logprobs[:] = IGNORE, 0.0, np.nan
    return ids, targets, weights, logprobs


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return math.inf  # a line that a kill cut short


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / max(1, len(values))
