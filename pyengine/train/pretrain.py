"""Pre-training: from random weights to a base model that predicts the next token of the crawl.

The model's size follows from one dial, depth (dial.py); the number of steps from that size, the shards and the
epochs. At intervals the validation split is measured in bits per byte, which does not depend on the vocabulary,
and samples are drawn by the engine; after the last step the whole split is measured, beside an interpolated
Kneser-Ney 5-gram over the same tokens.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data import PackedLoader, TokenShards
from ..data.loader import IGNORE, Batch, make_batch
from ..engine import Engine, SamplingParams
from ..errors import UserError
from ..files import atomic_write
from ..model import Transformer, save
from ..text import Tokenizer
from .config import Config, dtype_of, model_config
from .loop import Trainer, peak_flops
from .ngram import kneser_ney_nll
from .progress import note
from .run import Run

SAMPLES = (
    4  # texts drawn at each evaluation: one from nothing, the others from beginnings of held-out documents
)
SAMPLE_TOKENS = 48
PROMPT_TOKENS = 8


def pretrain(run: Run) -> dict[str, Any]:
    """The stage: trains on shards/train, measures on shards/val, writes base/."""
    settings, tokenizer = run.config.pretrain, run.tokenizer
    train, val = (TokenShards(run.path("shards", split), tokenizer) for split in ("train", "val"))
    model = Transformer(
        model_config(run.config.model, train.vocab_size), run.config.seed, dtype_of(run.config), run.device
    )
    steps = steps_of(run.config, train.tokens)
    note(f"{model.config.parameters:,} parameters, {train.tokens:,} tokens, {steps} steps")
    trainer = Trainer(run, model, settings.optimizer, steps, run.path("base", "checkpoints"))
    loader = PackedLoader(train, settings.batch_tokens, run.config.seed, context=settings.context)

    def evaluate(step: int) -> dict[str, Any]:
        limit = None if step == steps else settings.validation_tokens
        measured = validation(model, val, tokenizer, settings.context, settings.batch_tokens, limit)
        _write_samples(run, step, model, tokenizer, val)
        note(f"step {step}: validation {measured['bits_per_byte']:.3f} bits per byte")
        return measured

    every = max(1, steps // settings.evaluations)
    summary = trainer.fit(lambda _: loader.next(), evaluate, every, position=loader)
    save(model, run.path("base"), tokenizer=run.path("tokenizer"))
    return summary | {"parameters": model.config.parameters} | _gates(run, train, val, tokenizer)


def steps_of(config: Config, tokens: int) -> int:
    """How many steps pre-training takes on shards of so many tokens."""
    settings = config.pretrain
    parameters = model_config(config.model, config.tokenizer.vocab_size).parameters
    read = min(tokens * settings.epochs, parameters * settings.tokens_per_parameter)
    return settings.steps or max(1, math.ceil(read / settings.batch_tokens))


@torch.no_grad()
def validation(
    model: Transformer,
    shards: TokenShards,
    tokenizer: Tokenizer,
    context: int,
    batch_tokens: int,
    limit: int | None = None,
) -> dict[str, float]:
    """Loss on the documents of `shards`, or the first ones up to `limit` tokens.

    Returns nats a token ("loss"), "bits_per_byte" of the documents' text, and how many tokens were "predicted"
    (all but the <|endoftext|> that begins each document). A document is read in pieces of `context`, as in
    training.
    """
    nats, tokens, read = 0.0, 0, 0
    documents = []
    for document in shards:
        if limit is not None and read and read + len(document) > limit:
            break
        documents.append(document)
        read += len(document)
    for batch in _batches(documents, context, batch_tokens):
        nll = model.loss(batch.ids, batch.targets, batch.cu_seqlens, batch.positions)
        nats += nll.double().sum().item()
        tokens += batch.trained
    size = sum(len(tokenizer.decode_bytes(document[1:].tolist())) for document in documents)
    if not tokens or not size:
        raise UserError(
            f"{shards.folder}: no text to validate on; hold out a larger share with --web.heldout"
        )
    return {"loss": nats / tokens, "bits_per_byte": nats / math.log(2) / size, "predicted": tokens}


def _batches(documents: Sequence[np.ndarray], context: int, batch_tokens: int) -> Iterator[Batch]:
    """Documents in pieces of at most `context`, packed; every token but a document's first is a target once."""
    pieces: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    for document in documents:
        after = np.append(document[1:].astype(np.int64), IGNORE)
        for first in range(0, len(document), context):
            pieces.append(document[first : first + context])
            targets.append(after[first : first + context])
            if sum(len(piece) for piece in pieces) >= batch_tokens:
                yield make_batch(pieces, targets)
                pieces, targets = [], []
    if pieces:
        yield make_batch(pieces, targets)


def _write_samples(run: Run, step: int, model: Transformer, tokenizer: Tokenizer, val: TokenShards) -> None:
    """Append this step's samples to samples/pretrain.jsonl, in place of those a killed run left."""
    start = tokenizer.special_ids["<|endoftext|>"]
    prompts = [[start]] + [val[i][:PROMPT_TOKENS].tolist() for i in range(min(len(val), SAMPLES - 1))]
    params = [
        SamplingParams(SAMPLE_TOKENS, temperature=0.8, seed=run.config.seed + i, stop=(start,), scored=False)
        for i in range(len(prompts))
    ]
    answers = Engine(model, max_batch=SAMPLES).generate(prompts, params)
    path = run.path("samples", "pretrain.jsonl")
    rows = [row for row in _rows(path) if row["step"] < step]
    for prompt, answer in zip(prompts, answers, strict=True):
        texts = {
            "prompt": tokenizer.decode(prompt[1:]),
            "text": tokenizer.decode(answer.ids, skip_special=True),
        }
        rows.append({"step": step, **texts})
    with atomic_write(path) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def _gates(run: Run, train: TokenShards, val: TokenShards, tokenizer: Tokenizer) -> dict[str, float]:
    """Compare the first loss with that of knowing nothing, and the last with the 5-gram's."""
    evaluations = run.metrics("pretrain", "eval")
    first, last = evaluations[0]["loss"], evaluations[-1]
    nothing = math.log(train.vocab_size)
    run.gate(
        "first loss against ln(vocabulary)", first / nothing, "0.95 to 1.05", 0.95 < first / nothing < 1.05
    )
    start = tokenizer.special_ids["<|endoftext|>"]
    counted: list[np.ndarray] = []
    tokens = 0
    for document in train:
        tokens += len(document)
        if counted and tokens > run.config.pretrain.ngram_tokens:
            break
        counted.append(document[1:])
    nats = kneser_ney_nll(counted, [document[1:] for document in val], train.vocab_size, start).sum()
    ngram = last["bits_per_byte"] * nats / (last["loss"] * last["predicted"])
    run.gate(
        "validation bits per byte",
        last["bits_per_byte"],
        f"< {ngram:.3f}, a Kneser-Ney 5-gram's"
        + f" of {len(counted):,} documents" * (len(counted) < len(train)),
        last["bits_per_byte"] < ngram,
    )
    return {"bits_per_byte": last["bits_per_byte"], "ngram_bits_per_byte": ngram}


def estimate(run: Run) -> list[str]:
    """What pre-training needs, in words: for the plan that --dry-run prints."""
    config, settings = run.config, run.config.pretrain
    model = model_config(config.model, config.tokenizer.vocab_size)
    state = 16 if dtype_of(config) == torch.float32 else 18  # weights, gradients, moments (masters), in bytes
    # kept for the backward pass, about: a dozen vectors of C and five of F a token and layer, in float32
    kept = 4 * (12 * model.hidden_size + 5 * model.intermediate_size) * model.layers * settings.batch_tokens
    lines = [
        f"model: {model.layers} layers of {model.hidden_size}, {model.heads} heads, {model.parameters:,} parameters",
        f"memory: about {(state * model.parameters + kept) / 2**20:,.0f} MiB for weights, optimiser and a step",
    ]
    manifest = run.path("shards", "train", "manifest.json")
    if settings.steps is None and not manifest.exists():
        return [*lines, "time: known when the shards are written, or give --pretrain.steps"]
    tokens = json.loads(manifest.read_text("utf-8"))["tokens"] if manifest.exists() else 0
    steps = steps_of(config, tokens)
    flops = steps * settings.batch_tokens * model.train_flops(settings.context / 2)
    seconds = flops / (0.3 * peak_flops(dtype_of(config), run.threads, run.device))
    return [
        *lines,
        f"time: {steps} steps, {flops:.2e} operations, about {seconds:,.0f} s of pre-training here",
    ]
