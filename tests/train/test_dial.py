"""One dial: depth decides what is left open, and at depth 4 it decides as the default run was tuned."""

import pytest

from pyengine.errors import UserError
from pyengine.train.__main__ import parse
from pyengine.train.config import Config, check, read_config, write_config
from pyengine.train.dial import RATES, batch_tokens, resolve
from pyengine.train.pretrain import model_config, steps_of
from pyengine.train.run import Run


def at(depth: int, *flags: str) -> Config:
    return resolve(parse(["--model.depth", str(depth), *flags]).settings)


def test_the_default_run_is_as_it_was_tuned(tmp_path):
    config = Run(Config(), tmp_path).config
    rates = {name: (o.lr, o.muon_lr) for name in RATES for o in [getattr(config, name).optimizer]}
    assert rates == {
        "pretrain": (0.01, 0.02), "sft": (0.002, 0.006), "know": (0.002, 0.02), "search": (0.001, 0.004),
        "rl": (0.0003, 0.02), "reward": (0.002, 0.02), "rlhf": (0.0007, 0.02),
    }  # fmt: skip
    assert config.pretrain.batch_tokens == 2048
    assert steps_of(config, 1_000_000) == 2930  # six passes: fewer tokens than 20 a parameter
    check(config)


def test_depth_decides_sizes_rates_and_tokens():
    configs = {depth: at(depth) for depth in (2, 4, 8, 16, 24)}
    assert [batch_tokens(depth) for depth in (1, 2, 3, 4, 6, 8, 12, 24)] == [
        128, 512, 1024, 2048, 4096, 8192, 16384, 65536,
    ]  # fmt: skip
    assert at(1).pretrain.batch_tokens == at(1).pretrain.context  # never less than one piece
    for depth, config in configs.items():
        model = model_config(config.model, config.tokenizer.vocab_size)
        assert model.hidden_size == 32 * depth and model.layers == depth
        for name, (lr, muon_lr) in RATES.items():
            optimizer = getattr(config, name).optimizer
            assert optimizer.lr == pytest.approx(lr * (4 / depth) ** 0.5, rel=5e-3)
            assert optimizer.muon_lr == muon_lr
        read = steps_of(config, 10**12) * config.pretrain.batch_tokens
        assert read == pytest.approx(20 * model.parameters, rel=1e-2)
    wide = at(4, "--model.hidden-size", "512")
    assert wide.pretrain.optimizer.lr == 0.005


def test_what_is_given_stays(tmp_path):
    flags = (
        "--pretrain.optimizer.lr",
        "3e-4",
        "--pretrain.batch-tokens",
        "3000",
        "--rl.optimizer.muon-lr",
        "0.1",
    )
    config = at(12, *flags)
    assert (config.pretrain.optimizer.lr, config.pretrain.batch_tokens) == (3e-4, 3000)
    assert config.rl.optimizer.muon_lr == 0.1 and config.rl.optimizer.lr < 3e-4
    assert resolve(config) == config
    write_config(tmp_path / "config.toml", config)
    assert resolve(read_config(tmp_path / "config.toml")) == config


def test_mistakes_are_named():
    with pytest.raises(UserError, match="model.depth = 0: expected at least 1"):
        at(0)
    with pytest.raises(UserError, match="sft.optimizer.lr = -1.0: expected at least 0"):
        at(4, "--sft.optimizer.lr", "-1")
    with pytest.raises(UserError, match="pretrain.batch_tokens = -1: expected at least 0"):
        at(4, "--pretrain.batch-tokens", "-1")
