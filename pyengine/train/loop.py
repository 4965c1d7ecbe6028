"""The one training loop of all stages: batches in, better weights out, resumable at any moment.

    trainer = Trainer(run, model, settings.optimizer, steps, run.path("base", "checkpoints"))
    trainer.fit(batches, evaluate, every)

`batches(step)` returns the batch of a step (from 0) and depends on nothing but the step, the seed, the weights,
and a loader whose position is kept in the checkpoint; so rollouts of the model itself (RL) are batches like any
other. Steps that cannot be trusted (a loss that is no number, a gradient far out of line) are skipped and
named. A checkpoint is written before each evaluation (whatever an evaluation does, the training is safe) and
when the last one is some minutes old. It keeps the account of the training too, so that the summary of one that was
killed and resumed is that of the whole.

In a team of processes (team.py) the first runs the loop, and the others `assist`; a checkpoint written by any
number of them is read by any other.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from ..data.loader import IGNORE, Batch
from ..errors import UserError
from ..kernels import _native
from ..kernels._memory import to_device
from ..model import Transformer
from . import checkpoint, team
from .captured import CapturedLoss
from .config import OptimizerConfig
from .optimizer import Optimizer, schedule
from .progress import Progress, note
from .run import Run
from .team import Team

HISTORY = 32  # gradient norms remembered, to tell an outlier
MAX_SKIPPED = 10  # skipped steps in a row after which the training is given up


class Loader(Protocol):
    """What keeps a position in its data, as the loaders of pyengine.data do."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class WeightedBatch(Batch):
    """A batch whose tokens count more or less, or, with negative weights, the other way."""

    weights: torch.Tensor | None = None  # (T,) float32, of each token's loss; None: all 1
    normaliser: float | None = None  # what the sum of losses is divided by; None: the sum of the weights
    rate: float = 1.0  # share of the step's learning rate that this batch is worth
    info: dict[str, Any] = field(default_factory=dict)  # further numbers for the step's line of metrics

    @classmethod
    def of(cls, batch: Batch) -> "WeightedBatch":
        """Any batch as a weighted one."""
        return batch if isinstance(batch, cls) else cls(**vars(batch))

    def total_weight(self) -> float:
        """What the sum of losses is divided by."""
        if self.normaliser is not None:
            return self.normaliser
        if self.weights is None:
            return float(self.trained)
        return float(self.weights[self.targets != IGNORE].sum())

    def split(self, tokens: int) -> Iterator["WeightedBatch"]:
        """The batch in pieces of at most `tokens`, cut between documents; a longer document stays whole."""
        bounds, first = self.cu_seqlens.tolist(), 0
        for i in range(1, len(bounds)):
            if i + 1 == len(bounds) or bounds[i + 1] - bounds[first] > tokens:
                yield self._documents(first, i)
                first = i

    def shares(self, count: int) -> list["WeightedBatch"]:
        """The batch in `count` parts of about as many tokens, cut between documents; some may be empty."""
        bounds = self.cu_seqlens.double()
        cuts = [int((bounds - bounds[-1] * i / count).abs().argmin()) for i in range(count)]
        return [self._documents(a, b) for a, b in itertools.pairwise([*cuts, len(bounds) - 1])]

    def nothing(self) -> "WeightedBatch":
        """None of the documents."""
        return self._documents(0, 0)

    def _documents(self, first: int, last: int) -> "WeightedBatch":
        """The documents from `first` to before `last`."""
        a, b = int(self.cu_seqlens[first]), int(self.cu_seqlens[last])
        return replace(
            self,
            ids=self.ids[a:b],
            targets=self.targets[a:b],
            positions=self.positions[a:b],
            cu_seqlens=self.cu_seqlens[first : last + 1] - a,
            weights=None if self.weights is None else self.weights[a:b],
        )


class Worker:
    """What one process does of a step: forward and backward of its share, in pieces that fit in memory."""

    def __init__(self, model: Transformer, optimizer: Optimizer, micro_tokens: int):
        self.optimizer, self.micro_tokens, self.sharding = optimizer, micro_tokens, optimizer.sharding
        self._loss = self.sharding.loss if self.sharding else model.loss
        self.captured = None if self.sharding else CapturedLoss(model)

    def gradients(self, batch: WeightedBatch, total_weight: float) -> tuple[float, torch.Tensor]:
        """Add the gradients of the weighted mean loss to the parameters; returns it, and each token's loss on the host.

        Weights make it cross-entropy, or policy gradient with advantages as weights.
        """
        while True:
            try:
                pieces = [self._piece(piece, total_weight) for piece in self._pieces(batch)]
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                if self.sharding:  # the others are in the middle of the same step
                    raise UserError(
                        f"out of memory with {self.micro_tokens} tokens at once; give fewer by --micro-tokens"
                    ) from None
                self.optimizer.clear()
                self._halve(batch)
                continue
            if not pieces:
                return 0.0, torch.empty(0)
            totals, losses = zip(*pieces, strict=True)
            told = torch.cat([torch.stack(totals), *losses]).cpu()  # the one wait for the device
            return sum(told[: len(pieces)].tolist()), told[len(pieces) :]

    def _pieces(self, batch: WeightedBatch) -> list[WeightedBatch]:
        """What goes forward and backward at once; sharded, as many pieces as the others have, be they empty."""
        pieces = list(batch.split(self.micro_tokens))
        if self.sharding:
            pieces += [batch.nothing()] * (self.sharding.team.most(len(pieces)) - len(pieces))
        return pieces

    def _piece(self, piece: WeightedBatch, total_weight: float) -> tuple[torch.Tensor, torch.Tensor]:
        if self.captured and piece.weights is None:
            found = self.captured(piece, torch.ones(()) / total_weight)
            if found is not None:
                return found.sum() / total_weight, found
        nll = self._loss(piece.ids, piece.targets, piece.cu_seqlens, piece.positions, piece.weights)
        weighted = nll if piece.weights is None else nll * to_device(piece.weights, nll.device)
        loss = weighted.sum() / total_weight
        loss.backward()
        return loss.detach(), nll.detach()

    def _halve(self, batch: WeightedBatch) -> None:
        longest = int(batch.cu_seqlens.diff().max())
        tokens = min(self.micro_tokens, len(batch.ids))
        if tokens <= longest:
            raise UserError(
                f"out of memory with one document of {longest} tokens at a time; "
                "use a smaller model or a shorter context"
            )
        self.micro_tokens = max(tokens // 2, longest)
        note(f"out of memory: going on with {self.micro_tokens} tokens at once (the same gradients)")


def assist(team: Team) -> None:
    """The part of every process but the first: shares of its trainings' steps, until it ends."""
    while True:
        order, *arguments = team.hear()
        if order == "end":
            return
        if order == "begin":
            kind, config, dtype, settings, micro_tokens, shard = arguments
            model = kind(config, None, dtype, "meta" if shard else team.device)
            worker = Worker(model, Optimizer(model, settings, team, shard), micro_tokens)
        elif order == "load":
            stored, worker.optimizer.updates = arguments
            worker.optimizer.load({} if stored else None)
        elif order == "save":
            worker.optimizer.tensors()
        elif order == "share":
            (total,) = arguments
            team.collect(worker.gradients(team.deal(None), total))
            worker.optimizer.add_up()
        elif order == "step":
            worker.optimizer.step(*arguments)
        elif order == "clear":
            worker.optimizer.clear()


class Trainer:
    """Trains `model` in place; see the module. `folder` keeps the checkpoints of this training."""

    def __init__(
        self,
        run: Run,
        model: Transformer,
        config: OptimizerConfig,
        steps: int,
        folder: Path,
        watch: Callable[[torch.Tensor], None] | None = None,
        micro_tokens: int | None = None,
    ):
        """watch: is shown the losses (T,) of each batch, as the trainer sees them.

        micro_tokens: how many tokens go forward and backward at once, if not those of the settings.
        """
        self.run, self.model, self.config, self.steps, self.folder = run, model, config, steps, folder
        inside = folder.parent.relative_to(run.folder)  # "rl", or "rl/format" for a training beside it
        self.label = run.stage if len(inside.parts) < 2 else inside.as_posix()
        self.watch = watch
        self.team = team.current
        self.optimizer = Optimizer(model, config, self.team, run.config.shard)
        self.worker = Worker(model, self.optimizer, micro_tokens or run.config.micro_tokens)
        self.done = 0  # steps finished
        self.skipped = 0  # of those, left out
        self.tokens = 0  # read in them
        self.first: dict[str, Any] = {}  # what the evaluation before the first step returned
        self._norms: list[float] = []
        self._in_a_row = 0
        self._peak = 0.0
        self._spent = 0.0  # seconds that earlier attempts took to come to the checkpoint gone on from
        self._started = self._saved = 0.0  # when this attempt began, when its last checkpoint was written

    def fit(
        self,
        batches: Callable[[int], Batch | None],
        evaluate: Callable[[int], dict[str, Any]] | None = None,
        every: int = 0,
        position: Loader | None = None,
    ) -> dict[str, Any]:
        """Train to the last step, from the newest checkpoint where there is one; returns a summary of all attempts.

        evaluate(steps done) returns numbers for the metrics; it is called before the first step, after every
        `every` steps and after the last. A batch of None has nothing to learn from and counts as a step.
        position: the loader behind `batches`, whose place in the data is kept in the checkpoints.
        """
        every = every or self.steps
        self._resume(position)
        self._peak = self._peak or self._ceiling()
        self._started = self._saved = time.monotonic()
        first = self.done
        with Progress(self.label, self.steps) as progress:
            while True:
                due = self.done % every == 0 or self.done == self.steps
                if due or time.monotonic() - self._saved >= 60 * self.run.config.checkpoint_minutes:
                    self._save(position)
                if due and evaluate is not None:
                    found = evaluate(self.done)
                    self.first = found if self.done == 0 else self.first
                    self.run.log("eval", self.done, self.label, **found)
                if self.done == self.steps:
                    break
                before = time.monotonic()
                batch, values = batches(self.done), {}
                if batch is not None:
                    batch = WeightedBatch.of(batch)
                    self.tokens += len(batch.ids)
                    values = self.step(batch)
                    values |= self._speed(batch, time.monotonic() - before) | batch.info
                self.done += 1
                eta = (time.monotonic() - self._started) / (self.done - first) * (self.steps - self.done)
                self.run.log("train", self.done, self.label, **values, eta=round(eta, 1))
                progress.update(self.done, _told(values, eta))
                self.run.draw()
        return {
            "steps": self.steps,
            "skipped_steps": self.skipped,
            "tokens": self.tokens,
            "seconds": self._seconds(),
            "tokens_per_second": self.tokens / max(self._seconds(), 1e-9),
        }

    def _seconds(self) -> float:
        """What the training took so far, without what killed attempts did after their last checkpoints."""
        return self._spent + time.monotonic() - self._started

    def step(self, batch: WeightedBatch) -> dict[str, Any]:
        """One step on one batch: losses, gradients, clipping, update, unless it is bad. Returns its numbers."""
        rate = schedule(self.config, self.done, self.steps) * batch.rate
        total = batch.total_weight()
        loss = self._gradients(batch, total) if total else math.nan
        norm = self.optimizer.grad_norm()
        problem = self._problem(loss, norm) if total else "no token of the batch counts"
        values: dict[str, Any] = {"loss": loss, "grad_norm": norm, "lr": rate * self.config.lr}
        if problem:
            self.team.tell("clear")
            self.optimizer.clear()
            self.skipped += 1
            self._in_a_row += 1
            note(f"step {self.done + 1} skipped: {problem}")
            if self._in_a_row >= MAX_SKIPPED:
                raise UserError(
                    f"{self._in_a_row} steps in a row were skipped, the last because {problem}; "
                    f"lower {self.run.stage}.optimizer.lr, or look at the data of these steps"
                )
            return values | {"skipped": problem}
        self._in_a_row = 0
        self._norms = [*self._norms[1 - HISTORY :], norm]
        scales = rate, min(1.0, self.config.clip / (norm + 1e-6))
        self.team.tell("step", *scales)
        self.optimizer.step(*scales)
        return values

    def _gradients(self, batch: WeightedBatch, total_weight: float) -> float:
        """The gradients of the batch's loss, each process's share added up; returns the loss."""
        self.team.tell("share", total_weight)
        own = self.team.deal(batch.shares(self.team.size)) if self.team.size > 1 else batch
        results = self.team.collect(self.worker.gradients(own, total_weight))
        self.optimizer.add_up()
        if self.watch is not None:
            self.watch(torch.cat([nll for _, nll in results]))
        return sum(loss for loss, _ in results)

    def _problem(self, loss: float, norm: float) -> str:
        """Why a step must not be taken; empty if it may."""
        if not math.isfinite(loss):
            return f"its loss is {loss}"
        if not math.isfinite(norm):
            return f"its gradient norm is {norm}"
        if len(self._norms) == HISTORY and norm > self.config.outlier * statistics.median(self._norms):
            return f"its gradient norm {norm:.3g} is far from the usual {statistics.median(self._norms):.3g}"
        return ""

    def _save(self, position: Loader | None) -> None:
        state = {
            "position": position.state_dict() if position else None,
            "skipped": self.skipped,
            "in_a_row": self._in_a_row,
            "norms": self._norms,
            "micro_tokens": self.worker.micro_tokens,
            "tokens": self.tokens,
            "seconds": self._seconds(),
            "first": self.first,
        }
        self.team.tell("save")
        checkpoint.save(self.folder, self.done, self.model, self.optimizer, state)
        self.run.keep_time()
        self._saved = time.monotonic()

    def _resume(self, position: Loader | None) -> None:
        found = checkpoint.latest(self.folder)
        model = type(self.model), self.model.config, self.model.dtype
        self.team.tell("begin", *model, self.config, self.worker.micro_tokens, self.run.config.shard)
        self.team.tell("load", found is not None, found.state["updates"] if found else 0)
        if found is None:
            self.optimizer.load(None)
            self.run.forget_metrics(lambda line: line["stage"] == self.label)
            return
        checkpoint.restore(found, self.model, self.optimizer)
        self.done, state = found.step, found.state
        self.skipped, self._in_a_row = state["skipped"], state["in_a_row"]
        self._norms = state["norms"]
        self.worker.micro_tokens = min(self.worker.micro_tokens, state["micro_tokens"])
        self.tokens, self._spent, self.first = state["tokens"], state["seconds"], state["first"]
        if position:
            position.load_state_dict(state["position"])
        # the evaluation that follows this checkpoint is done again
        done = self.done
        self.run.forget_metrics(
            lambda line: line["stage"] == self.label and line["step"] >= done + (line["kind"] == "train")
        )
        if self.done:
            note(f"going on from {found.path}")

    def _speed(self, batch: WeightedBatch, seconds: float) -> dict[str, float]:
        lengths = batch.cu_seqlens.diff().double()
        context = float((lengths**2).sum() / lengths.sum().clamp(min=1))  # mean over tokens of their document
        speed = self.model.train_flops(context) * len(batch.ids) / seconds
        if speed > self._peak:  # others were at work when that was measured
            self._peak = max(speed, self._ceiling())
        return {
            "tokens": len(batch.ids),
            "tokens_per_second": round(len(batch.ids) / seconds, 1),
            "mfu": round(speed / self._peak, 4),
        }

    def _ceiling(self) -> float:
        return peak_flops(self.model.dtype, self.run.threads, self.model.device)


def peak_flops(dtype: torch.dtype, threads: int, device: torch.device) -> float:
    """Operations a second, measured now, at which the MFU would be 1: on a CPU of multiply-adds in registers, on a
    GPU of torch's product of two large matrices."""
    if device.type == "cuda":
        return _peak_product(dtype, device)
    name = "ceiling_dot_bf16" if dtype == torch.bfloat16 else "ceiling_fma_f32"
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        best = max(best, getattr(_native.cpu, name)(1_000_000, threads) / (time.perf_counter() - started))
    return best


def _peak_product(dtype: torch.dtype, device: torch.device, side: int = 8192) -> float:
    a, b, out = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(3))
    best = math.inf
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.mm(a, b, out=out)
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 1000)
    return 2 * side**3 / best


def _out_of_memory(error: BaseException) -> bool:
    told = str(error)
    named = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return named or "can't allocate memory" in told or "not enough memory" in told


def _told(values: dict[str, Any], eta: float) -> str:
    if "loss" not in values:
        return "nothing to learn from"
    speed = values["tokens_per_second"]
    return f"loss {values['loss']:.3f}  {speed:,.0f} tok/s  mfu {values['mfu']:.0%}  {eta:.0f} s left"
