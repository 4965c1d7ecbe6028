"""Learning curves on real text: our trainer's step and transformers', the same weights, batches and schedule.

    python -m bench.curve docs.jsonl --steps 300 --out curve.json

Each step is taken by every trainer before the next begins, and timed: so a step's losses are of one batch, and a busy
moment of the machine meets all. "adamw" and "muon" are ours in bfloat16 (float32 masters); "transformers" is its
LlamaForCausalLM in float32 under bfloat16 autocast with torch's fused AdamW, begun from our weights; --compile puts it
through torch.compile. AdamW has the same settings in all. Without --tokenizer one of the model's vocabulary is
trained on the text. No text is read twice; its held-out end is never trained on. The chart is --out with .html.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from pyengine.kernels import _native

from bench.__main__ import machine
from bench.bench_train import SHAPES, Ours
from pyengine.data.loader import Batch, make_batch
from pyengine.errors import UserError
from pyengine.files import atomic_write, write_json
from pyengine.model import ModelConfig, Transformer, save
from pyengine.report.charts import Axis, Line, chart, smooth
from pyengine.text import Tokenizer
from pyengine.train.config import OptimizerConfig
from pyengine.train.machine import keep_memory
from pyengine.train.optimizer import schedule

ADAMW = OptimizerConfig(rule="adamw", lr=6e-4, weight_decay=0.1, warmup=0.1)
MUON = replace(ADAMW, rule="muon", muon_lr=0.02)
VALIDATION = 16  # rows that are held out


class Theirs:
    """transformers' model on the weights of `model`, as one tunes plain PyTorch."""

    def __init__(
        self, model: Transformer, settings: OptimizerConfig, threads: int, rows: int, compiled: bool
    ):
        import transformers

        with tempfile.TemporaryDirectory() as folder:
            save(model, folder)
            peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model, self.settings, self.threads, self.rows = peer.train(), settings, threads, rows
        self.forward = torch.compile(peer) if compiled else peer
        matrices = [p for p in peer.parameters() if p.dim() == 2]
        vectors = [p for p in peer.parameters() if p.dim() != 2]
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        betas = (settings.beta1, settings.beta2)
        self.optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=betas, eps=settings.eps, fused=True)

    def losses(self, batch: Batch) -> torch.Tensor:
        torch.set_num_threads(self.threads)
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.forward(input_ids=batch.ids.view(self.rows, -1), use_cache=False).logits
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), batch.targets, reduction="none"
        )

    def step(self, batch: Batch, scale: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * scale
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.losses(batch).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip, foreach=True)
        self.optimizer.step()
        return loss.item()


def batches(ids: np.ndarray, rows: int, length: int) -> list[Batch]:
    """All of `ids` as batches of `rows` rows of `length`, each row a document of its own."""
    size = rows * length + 1
    return [
        make_batch(np.split(part[:-1], rows), np.split(part[1:], rows))
        for part in np.split(ids[: len(ids) // size * size], len(ids) // size)
    ]


def read(path: Path, config: ModelConfig, tokenizer: Path | None, tokens: int) -> np.ndarray:
    """At least `tokens` ids of a JSONL file's documents, shuffled, each begun by <|endoftext|>."""
    documents = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    np.random.default_rng(0).shuffle(documents)
    end = "<|endoftext|>"
    if tokenizer:
        words = Tokenizer.load(tokenizer)
    else:
        words = Tokenizer.train(iter(documents), config.vocab_size, special_tokens=[end])
    found, have = [], 0
    for document in documents:
        found.append(np.array(words.encode(end + document, allowed_special={end}), dtype=np.int64))
        have += len(found[-1])
        if have >= tokens:
            return np.concatenate(found)
    raise UserError(f"{path}: {have:,} tokens, where {tokens:,} are needed; give more text or fewer --steps")


@torch.no_grad()
def held_out(losses: Callable[[Batch], torch.Tensor], parts: list[Batch]) -> float:
    return statistics.fmean(losses(part).mean().item() for part in parts)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.curve", description=__doc__.split("\n\n")[0])
    parser.add_argument("text", type=Path, help="JSONL with a column `text`")
    parser.add_argument("--shape", choices=SHAPES, default="gpt2")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=50, help="steps between two validations")
    parser.add_argument("--trainers", nargs="+", choices=["adamw", "muon", "transformers"],
                        default=["adamw", "muon", "transformers"])  # fmt: skip
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("curve.json"))
    a = parser.parse_args()
    keep_memory()
    threads, config = _native.threads(), SHAPES[a.shape][0]
    held = -(-VALIDATION // a.rows)
    try:
        parts = batches(
            read(a.text, config, a.tokenizer, (a.steps + held) * (a.rows * a.length + 1)), a.rows, a.length
        )
    except UserError as error:
        sys.exit(str(error))
    training, validation = parts[: a.steps], parts[a.steps : a.steps + held]

    def model() -> Transformer:
        return Transformer(config, seed=1, dtype=torch.bfloat16)

    makers: dict[str, Callable[[], Ours | Theirs]] = {
        "adamw": lambda: Ours(model(), ADAMW, threads),
        "muon": lambda: Ours(model(), MUON, threads),
        "transformers": lambda: Theirs(model(), ADAMW, threads, a.rows, a.compile),
    }
    trainers = {name: makers[name]() for name in a.trainers}
    tokens = a.rows * a.length
    result = {
        "machine": machine(), "shape": a.shape, "tokens": tokens, "compiled": a.compile, "adamw": asdict(ADAMW),
        "muon_lr": MUON.muon_lr,
        "curves": {name: {"loss": [], "seconds": [], "validation": []} for name in trainers},
    }  # fmt: skip
    curves = result["curves"]
    for step, batch in enumerate(training):
        for name, trainer in trainers.items():
            start = time.perf_counter()
            curves[name]["loss"].append(trainer.step(batch, schedule(ADAMW, step, a.steps)))
            curves[name]["seconds"].append(time.perf_counter() - start)
        if (step + 1) % a.every == 0 or step + 1 == a.steps:
            for name, trainer in trainers.items():
                curves[name]["validation"].append((step + 1, held_out(trainer.losses, validation)))
            write_json(a.out, result)
            told = (
                f"{name} {c['validation'][-1][1]:.4f} ({tokens / statistics.median(c['seconds']):,.0f} tok/s)"
                for name, c in curves.items()
            )
            print(f"step {step + 1}: {', '.join(told)}", flush=True)
    _draw(curves, a.out.with_suffix(".html"))
    return 0


def _draw(curves: dict[str, dict], path: Path) -> None:
    """A page with both curves, in the style of a run's report."""
    style = files("pyengine.report").joinpath("templates", "style.css").read_text(encoding="utf-8")
    lines = [
        Line(name, smooth(list(enumerate(c["loss"], 1))), colour)
        for colour, (name, c) in enumerate(curves.items(), 1)
    ]
    drawn = chart(lines, Axis("step"), Axis("loss, nats a token"))
    with atomic_write(path, "w") as file:
        file.write(
            f"<!doctype html><meta charset=utf-8><title>Learning curves</title><style>{style}</style>{drawn}\n"
        )


if __name__ == "__main__":
    sys.exit(main())
