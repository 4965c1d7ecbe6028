"""Quantise a model: a GGUF file of 8 or 4 bits a weight, and what it costs.

    python -m pyengine.quantize runs/default --type int8          # writes runs/default/rl.Q8_0.gguf
    python -m pyengine.quantize path/to/model --type int4 --out small.gguf --text held_out.jsonl

The engine keeps such a file's weights quantised in memory; llama.cpp and its relatives load it too. Perplexity
before and after is measured on a run's held-out documents, or on the text given.
"""

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from .command import run
from .devices import device_of
from .errors import UserError
from .kernels import _native
from .model import Transformer, gguf, hf, load, over_documents
from .ranges import AT_LEAST_1, check_ranges
from .serve.loading import checkpoint_of
from .text import Tokenizer
from .text.formats import read_texts

# int4 is Q4_1: its minimum for each block costs half a bit, and less perplexity than Q4_0 (docs/lab-notes.md).
KINDS = {"int8": "Q8_0", "int4": "Q4_1"}
CONTEXT = 1024  # tokens that a prediction sees at most
ROWS = 256  # of logits at a time


@dataclass(frozen=True)
class Command:
    """Quantise a model into a GGUF file."""

    model: tyro.conf.Positional[Path]
    """a run's folder, a Hugging Face directory, or a .gguf file"""
    type: Literal["int8", "int4", "Q8_0", "Q4_0", "Q4_1", "F16", "BF16", "F32"] = "int8"
    """how matrices are stored; int8 is Q8_0, int4 is Q4_1"""
    out: Path | None = None
    """file to write; beside the model by default"""
    pure: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """store the embedding and the output layer like the rest, instead of in 8 bits"""
    text: Path | None = None
    """text or JSONL to measure perplexity on; a run's held-out documents by default"""
    tokens: Annotated[int, AT_LEAST_1] = 16_384
    """tokens of the text to measure on"""
    device: str = "cpu"
    """where perplexity is measured: cpu, cuda or cuda:N"""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """show the traceback of a mistake"""


@torch.no_grad()
def perplexity(model: Transformer, documents: Iterable[list[int]]) -> float:
    """exp of the mean negative log-likelihood of each document's ids after its first."""
    total, count = 0.0, 0
    for ids in documents:
        rows = torch.tensor(ids[:-1])
        bounds = torch.tensor([0, len(rows)], dtype=torch.int32)
        positions = torch.arange(len(rows), dtype=torch.int32)
        with _native.one_torch_thread():
            hidden = model(rows.to(model.device), positions, over_documents(bounds))
            for at in range(0, len(rows), ROWS):
                logits = model.logits(hidden[at : at + ROWS])
                targets = torch.tensor(ids[at + 1 : at + 1 + len(logits)]).to(model.device)
                total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").double().item()
        count += len(rows)
    return math.exp(total / count)


def documents_of(path: Path, tokenizer: Tokenizer, tokens: int, context: int = CONTEXT) -> list[list[int]]:
    """The first `tokens` ids of a text's documents, cut to the context; each begins as in pre-training."""
    start = [tokenizer.special_ids["<|endoftext|>"]] if "<|endoftext|>" in tokenizer.special_ids else []
    found: list[list[int]] = []
    for text in read_texts(path):
        ids = tokenizer.encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))
        for at in range(0, len(ids), context - 1):
            if tokens <= 0:
                return found
            part = [*start, *ids[at : at + context - 1][:tokens]]
            if len(part) > 1:
                found.append(part)
                tokens -= len(part)
    if not found:
        raise UserError(f"{path}: no text to measure perplexity on; give --text a file with some")
    return found


def quantize(command: Command) -> tuple[Path, list[tuple[str, int, float | None]]]:
    """Write the file; returns its path and (what, bytes, perplexity) before and after."""
    check_ranges(command)
    path, text, device = command.model, command.text, device_of(command.device)
    if (path / "stages").is_dir():
        held_out = path / "web" / "heldout.jsonl"
        text = text or (held_out if held_out.exists() else None)
        path = checkpoint_of(path)[0]
    kind = KINDS.get(command.type, command.type)
    name, stored = path.name, None
    if path.is_file():
        name, stored = path.stem, path.stat().st_size
    out = command.out or path.with_name(f"{name}.{kind}.gguf")
    if out.resolve() == path.resolve():
        raise UserError(f"{out}: this is the model itself; give --out another name")
    before = load(path, torch.float32) if path.is_file() else hf.load(path)
    tokenizer = Tokenizer.load(path)
    context = min(CONTEXT, before.config.max_position_embeddings)
    documents = documents_of(text, tokenizer, command.tokens, context) if text else None
    gguf.save(before, out, kind, tokenizer, kind if command.pure else None, name=name)
    rows: list[tuple[str, int, float | None]] = [
        (path.name, stored or sum(p.nbytes for p in before.parameters()), None),
        (out.name, out.stat().st_size, None),
    ]
    if documents:
        found = (perplexity(model, documents) for model in (before.to(device), load(out, device=device)))
        rows = [(what, size, value) for (what, size, _), value in zip(rows, found, strict=True)]
    return out, rows


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    command = tyro.cli(Command, args=arguments, prog="pyengine.quantize")
    return run(lambda: report(*quantize(command)), command.debug)


def report(out: Path, rows: list[tuple[str, int, float | None]]) -> None:
    """Print what was measured of the file written."""
    console = Console(soft_wrap=True)
    table = Table("", "MB", "perplexity")
    for what, size, value in rows:
        table.add_row(
            what, f"{size / 1e6:.2f}", "not measured: no --text" if value is None else f"{value:.4f}"
        )
    console.print(table)
    console.print(f"wrote {out}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
