"""Pre-training: the loss falling, against a classical model of the same text, and samples over time."""

import math
from typing import Any

from ..charts import Axis, Line, chart, smooth
from ..data import Data

SHOWN = 7  # evaluations of which samples are shown


def pretrain(data: Data) -> dict[str, Any] | None:
    """Curves of loss and bits per byte, samples by step."""
    train, evaluations = data.metrics("pretrain", "train"), data.metrics("pretrain", "eval")
    if not train and not evaluations:
        return None
    summary = data.summary("pretrain")
    losses = [(line["step"], line["loss"]) for line in train if "loss" in line]
    validation = [(line["step"], line["loss"]) for line in evaluations if "loss" in line]
    bits = [(line["step"], line["bits_per_byte"]) for line in evaluations if "bits_per_byte" in line]
    ngram = summary.get("ngram_bits_per_byte")
    last = train[-1] if train else {}
    smoothed = smooth(losses)
    nothing = math.log(data.run.config.tokenizer.vocab_size)
    return {
        "summary": summary,
        "last": last,
        "tokens_seen": sum(line.get("tokens", 0) for line in train),
        "speed": [line["tokens_per_second"] for line in train[-20:] if "tokens_per_second" in line],
        "loss": chart(
            [
                Line("each step", losses, 1, faint=True),
                Line("training", smoothed, 1, value=f"{smoothed[-1][1]:.3f}" if smoothed else ""),
                Line("held-out text", validation, 2, dots=True, value=f"{validation[-1][1]:.3f}" if validation else ""),
            ],
            Axis("step"), Axis("loss (nats a token)", low=0.0), [(nothing, f"knowing nothing: ln V = {nothing:.2f}")],
            about="training and held-out loss against step",
        ),
        "bits": chart(
            [Line("pyengine", bits, 2, dots=True, value=f"{bits[-1][1]:.3f}" if bits else "")],
            Axis("step"), Axis("bits per byte", low=0.0),
            [(ngram, f"Kneser-Ney 5-gram: {ngram:.3f}")] if ngram else [],
            about="held-out bits per byte against step, with the line of a 5-gram model",
        ),
        "prompts": _samples(data),
        "skipped": [line for line in train if "skipped" in line],
    }  # fmt: skip


def _samples(data: Data) -> list[dict[str, Any]]:
    """Each prompt with its continuations, at evaluations spread evenly over the training."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in data.rows("samples", "pretrain.jsonl", end=True):
        by_prompt.setdefault(row["prompt"], []).append(row)
    prompts = []
    for prompt, rows in by_prompt.items():
        picked = {round(i * (len(rows) - 1) / (SHOWN - 1)) for i in range(SHOWN)}
        prompts.append({"prompt": prompt, "samples": [rows[i] for i in sorted(picked)]})
    return sorted(prompts, key=lambda p: not p["prompt"])  # the one from nothing last
