"""Stage `rl`: trial and error on problems with known answers.

Each step draws problems, lets the engine write a group of replies to each with the very weights being trained,
verifies the replies, and makes the better ones of each group likelier (policy gradient; the group is its own
baseline). Among right replies the shorter earn more. Everything sampled is trained, the stop token included;
prompts and forced tokens are not. Answers that the model before gave to questions of the stages before, problems
not among them, are trained along, so that what was learnt there stays. They are sampled, not written by people:
their gradient is zero on average where the model has not moved, so that rehearsal neither teaches nor sharpens,
and nothing but the reward does.

    weight of a sampled token = advantage of its reply - kl * (its log-probability - that under the SFT model)

Two controls run from the same start, their time counted apart: the same steps with a reward that looks at form
alone, and imitation (SFT) with the same floating-point work, whose best is the imitation ceiling. Every attempt
is kept in rl/rollouts.jsonl and can be replayed by its seed.
"""

import json
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..data import read_conversations
from ..data.loader import IGNORE, make_batch
from ..engine import Completion
from ..files import atomic_write, write_json
from ..model import Transformer, save
from ..text.chat import text_of
from .attempts import Attempt, Exam, attempt, problems_of
from .config import RlConfig
from .dialogue import Dialogue
from .finetune import finetune, start_from
from .loop import Trainer, WeightedBatch
from .progress import note
from .rewards import Reward, format_reward, given_answer, group_advantages, right_and_short
from .run import Run
from .search import index_of
from .sft import sft_conversations

POOL = 8192  # training problems in store; steps go round it
REPLAYED = 1500  # answers in store to be rehearsed
SCORED = 64  # attempts whose log-probabilities are computed at once


def rl(run: Run) -> dict[str, Any]:
    """Reinforce the model of the stage before; writes rl/."""
    settings, exam = run.config.rl, Exam.of(run)
    start = start_from(run, "search")
    dialogue = Dialogue(start, run.tokenizer)
    before = exam.full(dialogue, exam.sit(dialogue))

    model = start_from(run, "search")
    rollouts = Rollouts(run, model, start, right_and_short, "rl")
    summary = reinforce(run, model, rollouts, exam, "rl")
    save(model, run.path("rl"), run.path("tokenizer"))
    written = exam.sit(rollouts.dialogue)
    after = exam.full(rollouts.dialogue, written)
    write_json(run.path("rl", "move37.json"), unlikely(written, start))

    controls = {}
    if settings.controls:
        controls["format"] = control(run, exam, start, rollouts.replay)
        controls["imitation"] = imitation(run, exam, rollouts.work)
    result = {
        "before": before,
        "after": after,
        "controls": controls,
        "control_seconds": sum(found["seconds"] for found in controls.values()),
        "format_seconds": controls["format"]["seconds"] if controls else 0.0,
        "largest_logprob_difference": rollouts.difference,
        "compared_logprobs": rollouts.compared,
        **summary,
    }
    write_json(run.path("rl", "result.json"), result)
    _gates(run, result)
    return {key: value for key, value in result.items() if key not in ("before", "after")} | {
        "pass_at_1_before": before["pass_at_1"],
        "pass_at_1_after": after["pass_at_1"],
    }


def reinforce(run: Run, model: Transformer, rollouts: "Rollouts", exam: Exam, folder: str) -> dict[str, Any]:
    """Train `model` in place on its own rollouts; returns the trainer's summary."""
    settings = run.config.rl
    trainer = Trainer(
        run, model, settings.optimizer, settings.steps, run.path(folder, "checkpoints"), rollouts.watch
    )
    every = max(1, settings.steps // max(1, settings.evaluations))
    summary = trainer.fit(rollouts.batch, lambda _: exam.quick(rollouts.dialogue), every, rollouts)
    rollouts.compare()
    return summary


class Rollouts:
    """The batches of one reinforcement run: `batch(step)` depends on step, seed and weights alone.

    replay: the answers to rehearse, where another run from the same reference has them already.
    """

    def __init__(
        self, run: Run, model: Transformer, reference: Transformer, reward: Reward, folder: str,
        replay: list[Completion] | None = None,
    ):  # fmt: skip
        self.settings: RlConfig = run.config.rl
        self.model, self.reference, self.reward = model, reference, reward
        self.tokenizer, self.seed = run.tokenizer, run.config.seed
        self.dialogue = Dialogue(model, self.tokenizer)
        self.problems = problems_of(run, "train", POOL, "rl")
        self.replay = _replay(run, reference) if replay is None else replay
        self.path = run.path(folder, "rollouts.jsonl")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.difference = 0.0  # largest |rollout's log-probability - trainer's|
        self.compared = 0  # tokens whose two log-probabilities were held against each other
        self.work = 0.0  # tokens trained or sampled, as trained ones: a forward pass is a third of a step
        self.told = 0  # groups whose replies differed in reward, so that there was something to learn from
        self._nll: torch.Tensor | None = None
        self._sampled: tuple[torch.Tensor, torch.Tensor] | None = None  # weights != 0 and log-probabilities
        self._step: int | None = None

    def batch(self, step: int) -> WeightedBatch | None:
        """Sample, verify, weigh."""
        self.compare()
        if self._step is None:
            self._forget(step)
        self._step = step + 1
        s = self.settings
        first = step * s.problems_per_step
        problems = [self.problems[(first + i) % len(self.problems)] for i in range(s.problems_per_step)]
        seed = (self.seed * 1009 + 17) * 100_003 + step
        groups = attempt(self.dialogue, problems, s.group, seed, s.max_tokens)
        rewards = np.array([
            [self._reward(a, s) for a in group] for group in groups
        ])  # fmt: skip
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
            "pass_at_1": sum(a.right for a in attempts) / len(attempts),
            "length": sum(a.tokens for a in attempts) / len(attempts),
            "truncated": sum(a.truncated for a in attempts) / len(attempts),
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

    def _reward(self, a: Attempt, s: RlConfig) -> float:
        if a.truncated:
            return 0.0
        return self.reward(a.reply, a.problem.answer, a.tokens / s.max_tokens, s.shortness)

    def _weigh(
        self, used: Sequence[tuple[Attempt, float]], step: int, info: dict[str, Any], rate: float
    ) -> WeightedBatch:
        rows = [_row(a.completion.prompt, a.completion.ids, a.completion.logprobs, adv) for a, adv in used]
        count = sum(a.tokens for a, _ in used)
        replay = self.replay
        for i in range(self.settings.replay if replay else 0):
            rows.append(_replayed(replay[(step * self.settings.replay + i) % len(replay)]))
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
        log_ratio = sampled[own] + self._reference_nll(batch, own)[own]
        info["kl"] = float(log_ratio.mean())
        if self.settings.kl:
            token_weights[own] -= self.settings.kl * log_ratio
        self._sampled = own & (token_weights != 0), sampled
        self.work += len(batch.ids) * (1 + 1 / 3)
        return batch

    @torch.no_grad()
    def _reference_nll(self, batch: WeightedBatch, own: torch.Tensor) -> torch.Tensor:
        targets = batch.targets.clamp(min=0)
        return self.reference.loss(batch.ids, targets, batch.cu_seqlens, batch.positions, own.float()).cpu()

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

    def _keep(self, step: int, groups, rewards: np.ndarray, advantages: np.ndarray) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            for group, row, weights in zip(groups, rewards, advantages, strict=True):
                for j, a in enumerate(group):
                    file.write(
                        json.dumps({
                            "step": step, "problem": a.problem.problem, "answer": a.problem.answer,
                            "grade": a.problem.grade, "sample": j, "reply": a.reply, "right": a.right,
                            "reward": round(float(row[j]), 4), "advantage": round(float(weights[j]), 4),
                            "tokens": a.tokens, "logprob": round(math.fsum(a.completion.logprobs), 4),
                            "truncated": a.truncated,
                        })
                        + "\n"
                    )  # fmt: skip

    def _forget(self, step: int) -> None:
        """Drop the attempts of steps that are about to be done again."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        with atomic_write(self.path) as file:
            file.writelines(line + "\n" for line in lines if _step_of(line) < step)


def control(run: Run, exam: Exam, start: Transformer, replay: list[Completion]) -> dict[str, Any]:
    """The same steps from the same start, with the same answers rehearsed, paid for form alone."""
    model = start_from(run, "search")
    rollouts = Rollouts(run, model, start, format_reward, "rl/format", replay)
    summary = reinforce(run, model, rollouts, exam, "rl/format")
    groups = run.config.rl.steps * run.config.rl.problems_per_step
    note(f"{rollouts.told} of {groups} groups had anything for the format-only control to learn from")
    return _examined(rollouts.dialogue, exam, summary) | {"groups_told": rollouts.told, "groups": groups}


def imitation(run: Run, exam: Exam, work: float) -> dict[str, Any]:
    """More SFT from the same start, with the floating-point work that the reinforcement took."""
    model = start_from(run, "search")
    settings, dialogue = run.config.sft, Dialogue(model, run.tokenizer)
    conversations = sft_conversations(run)
    summary = finetune(
        run, model, conversations, settings, "rl/imitation",
        evaluate=lambda _: exam.quick(dialogue), tokens=work,
    )  # fmt: skip
    return _examined(dialogue, exam, summary)


def _examined(dialogue: Dialogue, exam: Exam, summary: dict[str, Any]) -> dict[str, Any]:
    """A control's exam, and the seconds of its training, all attempts at it, and of the exam."""
    began = time.monotonic()
    found = exam.full(dialogue, exam.sit(dialogue), several=0)
    return found | {"seconds": summary["seconds"] + time.monotonic() - began}


@torch.no_grad()
def unlikely(written: Sequence[Attempt], start: Transformer, count: int = 20) -> list[dict]:
    """Right replies of the reinforced model to held-out problems that the model before it found least likely."""
    right = [a for a in written if a.right]
    scored = []
    for begin in range(0, len(right), SCORED):
        part = right[begin : begin + SCORED]
        rows = [_row(a.completion.prompt, a.completion.ids, a.completion.logprobs, 1.0) for a in part]
        ids, targets, weights, _ = zip(*rows, strict=True)
        batch, own = make_batch(ids, targets), torch.from_numpy(np.concatenate(weights))
        nll = start.loss(batch.ids, batch.targets.clamp(min=0), batch.cu_seqlens, batch.positions, own).cpu()
        sums = [float(lost.sum()) for lost in nll.split(list(map(len, ids)))]
        scored += [(-lost, a) for lost, a in zip(sums, part, strict=True)]
    scored.sort(key=lambda pair: pair[0])
    return [
        {
            "problem": a.problem.problem, "answer": a.problem.answer, "reply": a.reply, "tokens": a.tokens,
            "logprob_before": before, "logprob_after": math.fsum(a.completion.logprobs),
        }
        for before, a in scored[:count]
    ]  # fmt: skip


def _row(prompt: Sequence[int], ids: Sequence[int], logprobs: Sequence[float], weight: float):
    """(ids, targets, weights, log-probabilities) of one attempt; the last token is only a target."""
    whole = np.array([*prompt, *ids], np.int64)
    targets = whole[1:].copy()
    targets[: len(prompt) - 1] = IGNORE
    weights = np.where(targets == IGNORE, 0.0, weight).astype(np.float32)
    sampled = np.full(len(targets), np.nan, np.float32)
    sampled[len(prompt) - 1 :] = logprobs
    return whole[:-1], targets, weights, sampled


def _replayed(completion: Completion):
    """An answer to be kept: its own tokens with weight 1, what a tool put in without."""
    ids, targets, weights, logprobs = _row(completion.prompt, completion.ids, completion.logprobs, 1.0)
    forced = np.array([*[True] * (len(completion.prompt) - 1), *completion.forced])
    targets[forced], weights[forced], logprobs[:] = IGNORE, 0.0, np.nan
    return ids, targets, weights, logprobs


def _replay(run: Run, reference: Transformer) -> list[Completion]:
    """The model before's own answers to questions of the stages before that are no problems."""
    path, settings = run.path("search", "conversations.jsonl"), run.config.rl
    if not settings.replay:
        return []
    said = [c.messages for c in read_conversations(path)[0]] if path.exists() else sft_conversations(run)
    asked = [
        text_of(messages[0], str(path))
        for messages in said
        if given_answer(messages[-1].get("content") or "") is None and messages[0]["role"] == "user"
    ]
    order = np.random.default_rng([run.config.seed, 6]).permutation(len(asked))[:REPLAYED]
    dialogue = Dialogue(reference, run.tokenizer, index_of(run))
    replies = dialogue.ask([asked[i] for i in order], 1, 1.0, settings.max_tokens, run.config.seed)
    return [reply.completion for (reply,) in replies if reply.completion.finish_reason == "stop"]


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return math.inf  # a line that a kill cut short


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / max(1, len(values))


def _gates(run: Run, result: dict[str, Any]) -> None:
    """The bounds are promises about the closed world; of other sources all is told, and judged by nobody."""
    before, after = result["before"], result["after"]
    gain = after["pass_at_1"] - before["pass_at_1"]
    judged = run.config.closed and run.config.rl.problems is None
    if judged:
        run.gate("held-out problems solved after RL", after["pass_at_1"], ">= 80 %", after["pass_at_1"] >= 0.8,
                 interval=after["interval"], problems=after["problems"])  # fmt: skip
        run.gate("gain of RL over SFT", gain, ">= 20 points", gain >= 0.2, before=before["pass_at_1"])
        saved = before["tokens_per_right"] - after["tokens_per_right"]
        run.gate("fall of tokens per right answer", saved, "> 0", saved > 0,
                 before=before["tokens_per_right"], after=after["tokens_per_right"])  # fmt: skip
    difference, compared = result["largest_logprob_difference"], result["compared_logprobs"]
    if run.device.type == "cpu":
        run.gate("largest rollout/trainer log-probability difference", difference, "= 0",
                 compared > 0 and difference == 0, n=compared)  # fmt: skip
    else:  # where the two differ by rounding (docs/numerics.md)
        note(f"largest rollout/trainer log-probability difference of {compared} tokens: {difference:.3g}")
    if judged and (form := result["controls"].get("format")):
        raised = form["pass_at_1"] - before["pass_at_1"]
        run.gate("gain of the format-only control", raised, "<= 3 points", raised <= 0.03,
                 groups_told=form["groups_told"], groups=form["groups"])  # fmt: skip
    note(
        f"pass@1 {before['pass_at_1']:.1%} -> {after['pass_at_1']:.1%}, "
        f"greedily {before['greedy']:.1%} -> {after['greedy']:.1%}"
    )
