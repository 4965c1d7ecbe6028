"""Checkpoints of a training under way: a Hugging Face directory with the training state beside the weights.

    <folder>/step-000200/  config.json model.safetensors ...  the model, as any reader of checkpoints takes it
                           training.safetensors               optimiser tensors, random generator's state
                           training.json                      step, and what else the loop needs to go on
                           manifest.json                      SHA-256 of each of these files

A checkpoint is written under a temporary name, flushed, and renamed: it exists whole or not at all. Reading
checks every hash; one that fails is named and the one before it is used. The last few are kept.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from ..errors import UserError
from ..files import atomic_write, file_hash, sync_folder, write_json
from ..model import Transformer, hf
from .optimizer import Optimizer
from .progress import note

KEEP = 2


class _Written(dict):
    """What a checkpoint holds. A name that it lacks was not written by the version that wrote it."""

    def __init__(self, path: Path, values: Mapping[str, Any]):
        super().__init__(values)
        self._path = path

    def __missing__(self, name: str) -> Any:
        raise UserError(
            f"{self._path}: holds no {name!r}, so another version of pyengine wrote it; go on with that version, or "
            f"remove {self._path.parent.parent} to begin this training anew"
        )


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose hashes hold."""

    path: Path
    state: dict[str, Any]  # training.json

    @property
    def step(self) -> int:
        return self.state["step"]


def save(
    folder: Path, step: int, model: Transformer, optimizer: Optimizer, state: dict[str, Any], keep: int = KEEP
) -> Path:
    """Write the checkpoint of `step` below `folder`, then drop all but the last `keep`."""
    final, temporary = folder / f"step-{step:06d}", folder / f".step-{step:06d}.part"
    shutil.rmtree(temporary, ignore_errors=True)
    hf.save(model, temporary)
    tensors = {name: t.detach().cpu().contiguous() for name, t in optimizer.tensors().items()}
    tensors["random"] = torch.get_rng_state()
    with atomic_write(temporary / "training.safetensors", "wb") as file:
        file.write(to_bytes(tensors))
    write_json(temporary / "training.json", {"step": step, "updates": optimizer.updates, **state})
    hashes = {path.name: file_hash(path) for path in sorted(temporary.iterdir())}
    write_json(temporary / "manifest.json", hashes)
    if final.exists():  # left by a run that went further before it was set back
        shutil.rmtree(final)
    os.rename(temporary, final)
    sync_folder(folder)
    for old in _steps(folder)[keep:]:
        shutil.rmtree(old)
    return final


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; each newer one that is not is named."""
    for path in _steps(folder):
        if problem := _problem(path):
            note(f"{problem}; looking for the checkpoint before it")
            continue
        state = path / "training.json"
        text = state.read_text(encoding="utf-8")
        return Checkpoint(path, json.loads(text, object_hook=partial(_Written, state)))
    return None


@torch.no_grad()
def restore(checkpoint: Checkpoint, model: Transformer, optimizer: Optimizer) -> None:
    """Put model, optimiser and random generator back to where they were, in place, bit for bit."""
    stored = hf.load_kind(type(model), checkpoint.path)
    for ours, theirs in zip(model.parameters(), stored.parameters(), strict=True):
        ours.copy_(theirs)
    path = checkpoint.path / "training.safetensors"
    tensors = _Written(path, load_file(path))
    torch.set_rng_state(tensors["random"])
    optimizer.load(tensors)
    optimizer.updates = checkpoint.state["updates"]


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _problem(path: Path) -> str:
    """What is wrong with a checkpoint, in a few words; empty if every hash holds."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{path / 'manifest.json'} is missing or damaged"
    for name, digest in manifest.items():
        if not (path / name).exists():
            return f"{path / name} is missing"
        if file_hash(path / name) != digest:
            return f"{path / name} is truncated or changed"
    return ""
