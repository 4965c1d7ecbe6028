"""A training, and a whole road, small enough to be run, killed and resumed dozens of times in a test."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch

from pyengine import report
from pyengine.files import write_json
from pyengine.model import ModelConfig, Transformer
from pyengine.train import loop
from pyengine.train.config import Config, OptimizerConfig
from pyengine.train.loop import Trainer, WeightedBatch
from pyengine.train.run import Run, inputs_hash, opened, perform
from pyengine.train.stages import STAGES
from pyengine.web import SearchIndex
from pyengine.world.config import WorldConfig

MODEL = ModelConfig(61, 32, 2, 2, 1, 16, 40)
loop.peak_flops = lambda dtype, threads, device: 1e9  # no time for measuring it


def batch(step: int, documents=(9, 1, 20)) -> WeightedBatch:
    """Documents that count upwards from a random start: easy to learn."""
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(0, 40, (len(documents),), generator=generator).tolist()
    rows = [torch.arange(start, start + n + 1) for start, n in zip(starts, documents, strict=True)]
    return WeightedBatch(
        ids=torch.cat([row[:-1] for row in rows]),
        targets=torch.cat([row[1:] for row in rows]),
        positions=torch.cat([torch.arange(n, dtype=torch.int32) for n in documents]),
        cu_seqlens=torch.tensor([0, *torch.tensor(documents).cumsum(0)], dtype=torch.int32),
    )


def trainer(run: Run, steps: int, dtype=torch.float32, **more) -> Trainer:
    settings = OptimizerConfig(lr=1e-2) if "config" not in more else more.pop("config")
    model = more.pop("kind", Transformer)(MODEL, seed=run.config.seed, dtype=dtype)
    return Trainer(run, model, settings, steps, run.path("checkpoints"), **more)


def train(
    root: Path,
    steps: int = 12,
    every: int = 3,
    batches=batch,
    evaluate=None,
    minutes=10.0,
    shard=False,
    **more,
) -> Trainer:
    """Train in root/tiny from the newest checkpoint there, evaluating with a use of the random generator."""
    with opened(Config(name="tiny", checkpoint_minutes=minutes, shard=shard), root) as run:
        run.stage = "tiny"
        torch.manual_seed(run.config.seed)
        made = trainer(run, steps, **more)
        made.fit(batches, evaluate or (lambda step: {"random": torch.rand(()).item()}), every)
    return made


def digest(trained: Trainer) -> str:
    """Hash of every bit of the weights and of the optimiser's state."""
    found = hashlib.sha256()
    for tensor in (*trained.model.parameters(), *trained.optimizer.tensors().values()):
        found.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _road() -> Config:
    c = Config(name="tiny", seed=1, world=replace(WorldConfig.tiny(), passers=80))
    return replace(
        c,
        tokenizer=replace(c.tokenizer, vocab_size=512),
        model=replace(c.model, depth=1, hidden_size=32),
        pretrain=replace(c.pretrain, steps=30, batch_tokens=1024, evaluations=5),
        demo=replace(c.demo, samples=1),
        sft=replace(c.sft, count=150, evaluations=1),
        know=replace(c.know, samples=2, replay=10, wordings=1),
        search=replace(c.search, replay=10),
        rl=replace(c.rl, steps=2, problems_per_step=3, group=4, exam=20, evaluations=1, replay=2, max_tokens=24),
        reward=replace(c.reward, demonstrations=10, requests=8, held_out=8, answers=3, rankings_per_step=4,
                       evaluations=1),
        rlhf=replace(c.rlhf, steps=4, requests_per_step=3, group=3, max_tokens=24, replay=2, evaluations=2, examined=6,
                     exam=10),
    )  # fmt: skip


ROAD = _road()  # the settings of a run whose model is far too small to learn anything
LEARNING = ("pretrain", "sft", "know", "search", "rl", "reward", "rlhf")


def prepare(root: Path, config: Config = ROAD) -> None:
    """What crawling and cleaning would leave in root/tiny: the world's own documents."""
    with opened(config, root) as run:
        rows = [
            {"id": d.id, "url": f"http://world/{d.id}", "title": d.title, "text": d.text, "later": d.later}
            for d in run.world.documents
        ]
        early = [row for row in rows if not row["later"]]
        run.path("web").mkdir(parents=True)
        for name, part in (("heldout", early[::20]), ("documents", early[1:])):
            run.path("web", f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        SearchIndex.build(run.path("web", "index.sqlite"), rows)
        done = {"state": "finished", "outputs": {}, "seconds": 0.0, "summary": {}}
        for stage in ("crawl", "clean"):
            marker = {"stage": stage, "inputs": inputs_hash(run, STAGES[stage]), **done}
            write_json(run.path("stages", f"{stage}.json"), marker)


def go(run: Run) -> None:
    """Every stage from the tokenizer to the final table, those that are done left alone."""
    for name, stage in STAGES.items():
        if name not in ("crawl", "clean", "report"):
            perform(run, stage)


def road(root: Path) -> str:
    """Go the road in root/tiny, from wherever it was left; returns a hash of what every stage has learnt."""
    with opened(ROAD, root, page=report.refresh) as run:
        go(run)
        found = hashlib.sha256()
        for stage in LEARNING:
            folder = "base" if stage == "pretrain" else stage
            found.update(run.path(folder, "model.safetensors").read_bytes())
        for name in (
            "know/labels.jsonl",
            "rl/rollouts.jsonl",
            "reward/rankings.jsonl",
            "rlhf/rollouts.jsonl",
        ):
            found.update(run.path(name).read_bytes())
    return found.hexdigest()
