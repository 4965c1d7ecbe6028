"""Stage `rl`: trial and error on problems with known answers.

Each step draws problems, lets the engine write a group of replies to each with the very weights being trained,
verifies the replies, and makes the better ones of each group likelier (policy gradient; the group is its own
baseline, see groups.py). Among right replies the shorter earn more. Answers that the model before gave to questions of
the stages before, problems not among them, are trained along, so that what was learnt there stays. They are sampled,
not written by people: their gradient is zero on average where the model has not moved, so that rehearsal neither
teaches nor sharpens, and nothing but the reward does.

Two controls run from the same start, their time counted apart: the same steps with a reward that looks at form
alone, and imitation (SFT) with the same floating-point work, whose best is the imitation ceiling. Every attempt
is kept in rl/rollouts.jsonl and can be replayed by its seed.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..data import read_conversations
from ..data.loader import make_batch
from ..engine import Completion
from ..files import write_json
from ..model import Transformer, save
from ..text.chat import text_of
from .attempts import Attempt, Exam, attempt, problems_of
from .config import RlConfig
from .dialogue import Dialogue
from .finetune import finetune, start_from
from .groups import GroupRollouts, losses_under, token_row
from .loop import Trainer, WeightedBatch
from .progress import note
from .rewards import Reward, format_reward, given_answer, right_and_short
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


class Rollouts(GroupRollouts[Attempt]):
    """Attempts at problems, verified.

    replay: the answers to rehearse, where another run from the same reference has them already.
    """

    def __init__(
        self, run: Run, model: Transformer, reference: Transformer, reward: Reward, folder: str,
        replay: list[Completion] | None = None,
    ):  # fmt: skip
        self.settings: RlConfig = run.config.rl
        if replay is None:
            replay = replay_of(run, reference) if self.settings.replay else []
        super().__init__(run, model, reference, folder, self.settings.kl, replay, self.settings.replay)
        self.reward = reward
        self.problems = problems_of(run, "train", POOL, "rl")

    def write(self, step: int, seed: int) -> list[list[Attempt]]:
        s = self.settings
        first = step * s.problems_per_step
        problems = [self.problems[(first + i) % len(self.problems)] for i in range(s.problems_per_step)]
        return attempt(self.dialogue, problems, s.group, seed, s.max_tokens)

    def judge(self, groups: Sequence[Sequence[Attempt]]) -> np.ndarray:
        return np.array([[self._reward(a, self.settings) for a in group] for group in groups])

    def _reward(self, a: Attempt, s: RlConfig) -> float:
        if a.truncated:
            return 0.0
        return self.reward(a.reply, a.problem.answer, a.tokens / s.max_tokens, s.shortness)

    def told_of(self, attempts: Sequence[Attempt]) -> dict[str, float]:
        return {
            "pass_at_1": sum(a.right for a in attempts) / len(attempts),
            "truncated": sum(a.truncated for a in attempts) / len(attempts),
        }

    def row(self, a: Attempt) -> dict[str, Any]:
        return {
            "problem": a.problem.problem, "answer": a.problem.answer, "grade": a.problem.grade, "reply": a.reply,
            "right": a.right, "truncated": a.truncated,
        }  # fmt: skip


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
        ids, targets, weights, _ = zip(*(token_row(a.completion, 1.0) for a in part), strict=True)
        own = torch.from_numpy(np.concatenate(weights)) > 0
        nll = losses_under(start, WeightedBatch.of(make_batch(ids, targets)), own)
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


def replay_of(run: Run, reference: Transformer, count: int = REPLAYED) -> list[Completion]:
    """The reference's own answers to at most `count` questions of the stages before that are no problems."""
    path = run.path("search", "conversations.jsonl")
    said = read_conversations(path)[0] if path.exists() else sft_conversations(run)
    asked = [
        text_of(messages[0], str(path))
        for messages in (conversation.messages for conversation in said)
        if given_answer(messages[-1].get("content") or "") is None and messages[0]["role"] == "user"
    ]
    order = np.random.default_rng([run.config.seed, 6]).permutation(len(asked))[:count]
    dialogue = Dialogue(reference, run.tokenizer, index_of(run))
    replies = dialogue.ask([asked[i] for i in order], 1, 1.0, run.config.rl.max_tokens, run.config.seed)
    return [reply.completion for (reply,) in replies if reply.completion.finish_reason == "stop"]


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
