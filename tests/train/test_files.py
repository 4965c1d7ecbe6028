"""Pre-training on files: a parquet file goes the road of configs/gpt2-124m.toml."""

import json
from pathlib import Path

import pytest

from pyengine.model import load
from pyengine.train import loop
from pyengine.train.__main__ import main, parse
from pyengine.train.dial import resolve
from pyengine.train.pretrain import model_config, steps_of
from pyengine.world import World

from . import tiny

CONFIG = Path(__file__).parents[2] / "configs" / "gpt2-124m.toml"


def test_the_shape_is_gpt2s():
    config = resolve(parse(["--config", str(CONFIG)]).settings)
    model = model_config(config.model, config.tokenizer.vocab_size)
    assert (model.layers, model.hidden_size, model.heads, model.head_dim) == (12, 768, 12, 64)
    assert round(model.parameters / 1e6) == 124
    assert steps_of(config, 10**10) == pytest.approx(20 * model.parameters / 524_288, abs=1)
    assert steps_of(config, 10**9) == -(-(10**9) // 524_288)  # one pass over what there is


def test_a_parquet_file_becomes_a_model(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "peak_flops", lambda *_: 1e9)
    texts = [d.text for d in World(tiny.ROAD.closed_world()).documents if len(d.text) > 300][:120]
    columns = {  # some of FineWeb-Edu's
        "text": texts, "id": [f"<urn:uuid:{i}>" for i in range(len(texts))],
        "url": [f"https://site{i % 40}.example/{i}" for i in range(len(texts))],
        "language": ["en"] * len(texts), "score": [3.5] * len(texts),
    }  # fmt: skip
    Path("edu").mkdir()
    parquet.write_table(pyarrow.table(columns), "edu/000_00000.parquet")
    small = (
        "--web.source edu --web.heldout 0.2 --tokenizer.vocab-size 400 --model.depth 1 --model.hidden-size 32"
    )
    small += (
        " --model.head-dim 16 --model.intermediate-size 48 --pretrain.steps 20 --pretrain.batch-tokens 512"
    )
    small += (
        " --pretrain.evaluations 2 --pretrain.validation-tokens 500 --pretrain.ngram-tokens 2000 --threads 1"
    )
    stages = ["crawl", "clean", "tokenizer", "shards", "pretrain"]
    assert main([*stages, "--config", str(CONFIG), *small.split()]) == 0
    folder = Path("runs/gpt2-124m")
    assert load(folder / "base").config.hidden_size == 32
    assert len((folder / "web" / "documents.jsonl").read_text().splitlines()) > 50
    bound = json.loads((folder / "gates.json").read_text())["validation bits per byte"]["bound"]
    assert "5-gram's of" in bound and "documents" in bound
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "eval"]
    assert losses[1] < losses[0] - 0.01  # of the same held-out tokens
