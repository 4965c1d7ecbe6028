"""From a path to a model that answers: a run's folder, a Hugging Face directory, or a GGUF file.

A run gives its latest finished checkpoint and, where its stages made one, the search index of its crawl; a
directory gives what is in it.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..devices import device_of
from ..engine import Engine, Tools
from ..errors import UserError
from ..text import SearchTool, Tokenizer
from .formats import Format, TextFormat, format_of

KvDtype = Literal["auto", "int8"]

# Stage and folder of the checkpoint it writes, latest first.
CHECKPOINTS = (("rl", "rl"), ("search", "search"), ("know", "know"), ("sft", "sft"), ("pretrain", "base"))


@dataclass
class Served:
    """A model ready to answer, and how it wants to be asked."""

    engine: Engine
    tokenizer: Tokenizer
    format: Format
    folder: Path


def open_model(
    path: str | os.PathLike,
    max_batch: int = 16,
    with_search: bool = True,
    pages: int | None = None,
    kv_dtype: KvDtype = "auto",
    device: str = "cpu",
) -> Served:
    """Load what `path` names; UserError says what was expected where it is not there.

    pages: of the cache; kv_dtype: what they hold. device: where it computes, "cpu", "cuda" or "cuda:N".
    """
    path, place = Path(path), device_of(device)
    if (path / "config.json").exists() or (path.suffix == ".gguf" and path.is_file()):
        folder, base, index = path, False, None
    elif (path / "stages").is_dir():
        folder, base = checkpoint_of(path)
        index = path / "web" / "index.sqlite"
    else:
        missing = "" if path.exists() else "no such file or folder; "
        raise UserError(
            f"{path}: {missing}expected a run (a folder made by `python -m pyengine.train`), a Hugging Face "
            "directory with a config.json, or a .gguf file"
        )
    from ..model import load

    # the model first: what has no sound config.json is no model, whatever else it lacks
    model = load(folder, device=place)
    tokenizer = Tokenizer.load(folder)
    tools = None
    if with_search and index is not None and index.exists() and not base:
        tools = _search_of(index, tokenizer)
    engine = Engine(model, tokenizer, tools, max_batch=max_batch, pages=pages, kv_dtype=kv_dtype)
    how = format_of(tokenizer, folder, searches=tools is not None)
    return Served(engine, tokenizer, TextFormat(tokenizer) if base else how, folder)


def _search_of(index: Path, tokenizer: Tokenizer) -> Tools:
    """The search tool over a run's index, as the model was taught to use it."""
    from ..train.dialogue import RESULT_TOKENS, SEARCH_RESULTS
    from ..web.index import SearchIndex

    search = SearchTool(SearchIndex(index), tokenizer, k=SEARCH_RESULTS, max_tokens=RESULT_TOKENS)
    return Tools.for_search(search, tokenizer, max_calls=1, max_result=RESULT_TOKENS)


def checkpoint_of(run: Path) -> tuple[Path, bool]:
    """(folder, whether it is the base model) of the latest finished checkpoint of a run."""
    for stage, name in CHECKPOINTS:
        marker = run / "stages" / f"{stage}.json"
        if marker.exists() and json.loads(marker.read_text(encoding="utf-8")).get("state") == "finished":
            return run / name, stage == "pretrain"
    raise UserError(
        f"{run}: no stage with a model has finished; run `python -m pyengine.train --name {run.name}`"
    )
