"""Pre-training as a stage: from shards to a base model that beats the 5-gram's bits per byte is the road's to
show; here a small one learns, is measured rightly, and leaves all that later stages need."""

import json
import math

import pytest
import torch

from pyengine.data import TokenShards, write_shards
from pyengine.errors import UserError
from pyengine.files import write_json
from pyengine.model import load
from pyengine.text import Tokenizer
from pyengine.train import loop, pretrain
from pyengine.train.__main__ import main
from pyengine.train.config import Config, ModelSettings, PretrainConfig
from pyengine.train.run import Run, inputs_hash, opened, perform
from pyengine.train.stages import STAGES

TEXTS = [f"The {colour} {animal} sat on mat number {n}." for n in range(12)
         for colour in ("red", "blue", "old", "tiny") for animal in ("cat", "dog", "hen")]  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "peak_flops", lambda *_: 1e9)
    monkeypatch.setattr(pretrain, "peak_flops", lambda *_: 1e9)
    settings = PretrainConfig(steps=40, batch_tokens=256, context=16, evaluations=4, validation_tokens=60)
    model = ModelSettings(depth=2, hidden_size=32, head_dim=16, max_positions=128)
    with opened(Config(name="r", model=model, pretrain=settings), tmp_path) as run:
        tokenizer = Tokenizer.train(TEXTS, 300)
        tokenizer.save(run.path("tokenizer"))
        write_shards(run.path("shards", "train"), TEXTS[10:], tokenizer)
        write_shards(run.path("shards", "val"), TEXTS[:10], tokenizer)
        for need in ("tokenizer", "shards"):
            run.path("stages").mkdir(exist_ok=True)
            marker = {"state": "finished", "outputs": {}, "inputs": inputs_hash(run, STAGES[need])}
            write_json(run.path("stages", f"{need}.json"), marker)
        yield run


def test_the_stage_learns_and_leaves_a_model(run, capsys):
    perform(run, STAGES["pretrain"])
    evaluations = run.metrics("pretrain", "eval")
    assert [line["step"] for line in evaluations] == [0, 10, 20, 30, 40]
    first, last = evaluations[0], evaluations[-1]
    assert abs(first["loss"] - math.log(300)) < 0.2 and last["bits_per_byte"] < 0.6 * first["bits_per_byte"]
    assert first["predicted"] < last["predicted"]  # the last one reads the whole split
    model = load(run.path("base"))
    assert model.config.layers == 2 and run.path("base", "tokenizer.json").exists()
    samples = [json.loads(line) for line in run.path("samples", "pretrain.jsonl").read_text().splitlines()]
    assert [s["step"] for s in samples] == [step for step in (0, 10, 20, 30, 40) for _ in range(4)]
    gates = json.loads(run.path("gates.json").read_text())
    assert gates["first loss against ln(vocabulary)"]["holds"]
    assert "validation bits per byte" in gates
    perform(run, STAGES["pretrain"])
    assert "pretrain: finished in" in capsys.readouterr().out


def test_validation_counts_every_token_once_whatever_the_batches(run):
    tokenizer = run.tokenizer
    val = TokenShards(run.path("shards", "val"), tokenizer)
    model = pretrain.Transformer(pretrain.model_config(run.config.model, 300), seed=1)
    small, large = (pretrain.validation(model, val, tokenizer, 16, size) for size in (32, 4096))
    assert small["predicted"] == large["predicted"] == val.tokens - len(val)
    assert small["loss"] == pytest.approx(large["loss"])
    size = sum(len(text.encode()) for text in TEXTS[:10])
    expected = large["loss"] * large["predicted"] / math.log(2) / size
    assert large["bits_per_byte"] == pytest.approx(expected)
    document = torch.from_numpy(val[0].astype("int64"))  # 16 tokens or fewer fit one piece: the plain loss
    piece = document[:16]
    bounds, positions = (
        torch.tensor([0, len(piece) - 1], dtype=torch.int32),
        torch.arange(len(piece) - 1).int(),
    )
    plain = model.loss(piece[:-1], piece[1:], bounds, positions)
    batch = next(pretrain._batches([val[0]], 16, 4096))
    nll = model.loss(batch.ids, batch.targets, batch.cu_seqlens, batch.positions)
    assert torch.equal(nll[: len(plain)], plain)


def test_impossible_settings_are_told(run):
    with pytest.raises(UserError, match="model settings: hidden_size = 100"):
        pretrain.model_config(ModelSettings(hidden_size=100), 300)
    with pytest.raises(UserError, match="expected float32 or bfloat16"):
        pretrain.dtype_of(Config(model=ModelSettings(dtype="float16")))
    assert pretrain.steps_of(Config(pretrain=PretrainConfig(epochs=2.5, batch_tokens=4096)), 10 * 4096) == 25


def test_the_plan_is_printed_and_nothing_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--dry-run", "--pretrain.steps", "100", "--tokenizer.vocab-size", "1024"]) == 0
    told = capsys.readouterr().out
    assert "923,008 parameters" in told and "100 steps" in told and "never run" in told
    assert not (tmp_path / "runs").exists()
    assert isinstance(Run(Config()).summary("pretrain"), dict)
