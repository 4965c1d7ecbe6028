"""The loop: learns, equals plain PyTorch, accumulates, skips what cannot be trusted and names it."""

import dataclasses
import math

import pytest
import torch
from pyengine.kernels import use_backend

from bench.plain_torch import PlainTransformer, document_mask
from pyengine.errors import UserError
from pyengine.train import loop
from pyengine.train.config import OptimizerConfig
from pyengine.train.optimizer import schedule

from . import tiny


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_one_batch_is_learnt_by_heart(tmp_path, rule):
    settings = OptimizerConfig(rule=rule, lr=1e-2)
    trained = tiny.train(tmp_path, steps=60, every=60, batches=lambda _: tiny.batch(0), config=settings)
    losses = [line["loss"] for line in trained.run.metrics("tiny", "train")]
    assert abs(losses[0] - math.log(61)) < 0.5 and losses[-1] < 0.05


def test_steps_equal_those_of_plain_torch(tmp_path):
    """Twenty AdamW steps beside torch.optim.AdamW on the plain model, on each backend of the ops."""
    settings = OptimizerConfig(rule="adamw", lr=3e-3, weight_decay=0.1, warmup=0.2)
    plain = PlainTransformer(loop.Transformer(tiny.MODEL, seed=1))
    groups = {2: [], 1: []}
    for weight in plain.weights:
        groups[weight.dim()].append(weight)
    optimizer = torch.optim.AdamW(
        [{"params": groups[2], "weight_decay": 0.1}, {"params": groups[1], "weight_decay": 0.0}],
        betas=(settings.beta1, settings.beta2), eps=settings.eps,
    )  # fmt: skip
    expected = []
    for step in range(20):
        b = tiny.batch(step)
        mask = document_mask(b.cu_seqlens)
        loss = plain.loss(b.ids[None], b.targets[None], b.positions[None], mask).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.weights, settings.clip)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * schedule(settings, step, 20)
        optimizer.step()
        expected.append(loss.item())
    for backend in ("reference", "cpu"):
        with use_backend("reference") if backend == "reference" else torch.enable_grad():
            trained = tiny.train(tmp_path / backend, steps=20, every=20, config=settings)
        losses = [line["loss"] for line in trained.run.metrics("tiny", "train")]
        assert max(abs(a - b) for a, b in zip(losses, expected, strict=True)) < 1e-4, backend
        for ours, theirs in zip(trained.model.parameters(), plain.weights, strict=True):
            assert (ours - theirs).abs().max() < 5e-4, backend


def test_pieces_of_a_batch_give_its_gradients(tmp_path):
    documents, settings = (9, 1, 20, 5, 5), OptimizerConfig(rule="adamw")
    weights = torch.linspace(-1, 2, 40)

    def batches(step):
        return dataclasses.replace(tiny.batch(step, documents), weights=weights)

    whole = tiny.train(tmp_path / "a", steps=4, batches=batches, config=settings)
    pieces = tiny.train(tmp_path / "b", steps=4, batches=batches, config=settings, micro_tokens=10)
    for a, b in zip(whole.model.parameters(), pieces.model.parameters(), strict=True):
        assert (a - b).abs().max() < 1e-4
    assert [len(p.ids) for p in tiny.batch(0, documents).split(10)] == [10, 20, 10]
    bounds = [p.cu_seqlens.tolist() for p in tiny.batch(0, documents).split(10)]
    assert bounds == [[0, 9, 10], [0, 20], [0, 5, 10]]
    assert len(list(tiny.batch(0, documents).split(1000))) == 1


def test_out_of_memory_halves_the_pieces_and_is_recorded(tmp_path, monkeypatch):
    plain = loop.Transformer.loss

    def loss(self, ids, targets, *rest):
        if (targets.numpy() >= 0).sum() > 25:  # not counting what fills a recorded step up
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return plain(self, ids, targets, *rest)

    settings = OptimizerConfig(rule="adamw", lr=1e-3)  # Muon would round the gradients' last bits to bfloat16
    calm = tiny.train(tmp_path / "a", steps=3, config=settings)
    monkeypatch.setattr(loop.Transformer, "loss", loss)
    tight = tiny.train(tmp_path / "b", steps=3, config=settings)
    assert tight.worker.micro_tokens == 20
    assert '"micro_tokens": 20' in (tmp_path / "b/tiny/checkpoints/step-000003/training.json").read_text()
    for a, b in zip(calm.model.parameters(), tight.model.parameters(), strict=True):
        assert (a - b).abs().max() < 1e-4
    with pytest.raises(UserError, match="out of memory with one document of 26 tokens"):
        tiny.train(tmp_path / "c", steps=3, batches=lambda step: tiny.batch(step, (26,)))


def with_weights(value):
    def batches(step):
        batch = tiny.batch(step)
        return dataclasses.replace(batch, weights=torch.full((30,), value if step == 4 else 1.0))

    return batches


@pytest.mark.parametrize(
    "value, told",
    [(math.nan, "its loss is nan"), (math.inf, "its loss is"), (0.0, "no token of the batch counts")],
)
def test_a_bad_step_is_skipped_and_named(tmp_path, capsys, value, told):
    trained = tiny.train(tmp_path, steps=8, batches=with_weights(value))
    assert f"step 5 skipped: {told}" in capsys.readouterr().out
    assert trained.skipped == 1 and trained.optimizer.updates == 7
    assert all(torch.isfinite(p).all() for p in trained.model.parameters())
    assert [line["step"] for line in trained.run.metrics("tiny", "train") if "skipped" in line] == [5]


def test_an_outlier_is_skipped(tmp_path, capsys):
    def batches(step):
        return dataclasses.replace(tiny.batch(step), normaliser=30.0 if step != 40 else 1e-3)

    trained = tiny.train(tmp_path, steps=44, every=44, batches=batches)
    assert "step 41 skipped: its gradient norm" in capsys.readouterr().out and trained.skipped == 1


def test_training_that_only_fails_is_given_up(tmp_path):
    def batches(step):
        return dataclasses.replace(tiny.batch(step), weights=torch.full((30,), math.nan))

    with pytest.raises(UserError, match="10 steps in a row were skipped, the last because its loss is nan"):
        tiny.train(tmp_path, steps=30, batches=batches)


def test_a_step_without_a_batch_counts(tmp_path):
    trained = tiny.train(tmp_path, steps=5, batches=lambda step: None if step == 2 else tiny.batch(step))
    assert trained.done == 5 and trained.optimizer.updates == 4


def test_a_batch_of_a_quarter_of_the_rate_moves_a_quarter_as_far(tmp_path):
    start = list(loop.Transformer(tiny.MODEL, seed=1).parameters())
    moved = []
    for rate in (1.0, 0.25):
        batch = dataclasses.replace(loop.WeightedBatch.of(tiny.batch(0)), rate=rate)
        settings = OptimizerConfig(rule="adamw", lr=1e-2, warmup=0, warmdown=0)
        trained = tiny.train(tmp_path / str(rate), steps=1, batches=lambda _, b=batch: b, config=settings)
        moved.append([w - before for w, before in zip(trained.model.parameters(), start, strict=True)])
    for far, near in zip(*moved, strict=True):
        torch.testing.assert_close(near, far / 4, rtol=1e-3, atol=1e-6)
    assert max(far.abs().max() for far in moved[0]) > 5e-3


def test_advantages_push_both_ways(tmp_path):
    """Weights of either sign: the rewarded document becomes likelier, the punished one less so."""
    both = tiny.batch(3, (9, 9))
    weights = torch.cat([torch.ones(9), -torch.ones(9)])
    reward = dataclasses.replace(both, weights=weights, normaliser=9.0)
    trained = tiny.train(tmp_path, steps=5, batches=lambda _: reward)
    arguments = both.ids, both.targets, both.cu_seqlens, both.positions
    before = loop.Transformer(tiny.MODEL, seed=1).loss(*arguments).view(2, 9).mean(1)
    after = trained.model.loss(*arguments).view(2, 9).mean(1)
    assert after[0] < before[0] and after[1] > before[1]


def test_the_schedule_rises_stays_and_falls():
    settings = OptimizerConfig(warmup=0.1, warmdown=0.5, floor=0.1)
    rates = [schedule(settings, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9:50] == [1.0] * 41
    assert rates[75] == pytest.approx(0.55) and rates[-1] == pytest.approx(0.118)
    assert [schedule(OptimizerConfig(warmup=0, warmdown=0), step, 3) for step in range(3)] == [1.0] * 3


def test_an_unknown_rule_is_refused():
    with pytest.raises(UserError, match="expected adamw or muon"):
        loop.Optimizer(loop.Transformer(tiny.MODEL), OptimizerConfig(rule="sgd"))


def test_tokens_without_a_target_do_not_count(tmp_path):
    def batches(step):
        batch = tiny.batch(step)
        return dataclasses.replace(batch, targets=batch.targets.where(torch.arange(30) != 4, -100))

    full, trained = tiny.train(tmp_path / "a", steps=2), tiny.train(tmp_path / "b", steps=2, batches=batches)
    b = tiny.batch(0)
    nll = loop.Transformer(tiny.MODEL, seed=1).loss(b.ids, b.targets, b.cu_seqlens, b.positions)
    first = [t.run.metrics("tiny", "train")[0]["loss"] for t in (full, trained)]
    assert first[0] == pytest.approx(nll.mean().item()), first
    assert first[1] == pytest.approx((nll.sum() - nll[4]).item() / 29)


def test_two_trainings_in_one_stage_keep_their_own_metrics(tmp_path):
    with tiny.opened(tiny.Config(name="tiny"), tmp_path) as run:
        run.stage = "rl"
        for folder in ("rl", "rl/format"):
            model = loop.Transformer(tiny.MODEL, seed=1)
            trainer = loop.Trainer(run, model, OptimizerConfig(), 2, run.path(folder, "checkpoints"))
            trainer.fit(tiny.batch, lambda step: {})
    assert len(run.metrics("rl", "train")) == len(run.metrics("rl/format", "train")) == 2


def test_no_step_is_faster_than_the_ceiling(tmp_path, monkeypatch):
    """A ceiling measured beside other work is measured again when a step goes above it."""
    with tiny.opened(tiny.Config(name="tiny"), tmp_path) as run:
        trainer, batch = tiny.trainer(run, 2), tiny.batch(0)
        trainer._peak = 1.0
        monkeypatch.setattr(loop, "peak_flops", lambda *_: 2.0)
        assert trainer._speed(batch, 1.0)["mfu"] == 1  # the second measurement, too, was disturbed
        monkeypatch.setattr(loop, "peak_flops", lambda *_: 8 * trainer._peak)
        assert trainer._speed(batch, 0.5)["mfu"] == 0.25 and trainer._speed(batch, 1.0)["mfu"] == 0.125
