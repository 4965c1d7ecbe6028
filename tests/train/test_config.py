"""Settings: flags over files over defaults, and one clear sentence for every mistake."""

import pytest

from pyengine.errors import UserError
from pyengine.train.__main__ import main, parse
from pyengine.train.config import Config, as_table, read_config, write_config


def test_flags_go_over_the_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        'seed = 5\n[pretrain]\nsteps = 7\n[pretrain.optimizer]\nlr = 1\n[sft]\nconversations = "a.jsonl"\n'
    )
    command = parse(["pretrain", "--config", str(file), "--pretrain.steps", "9"])
    settings = command.settings
    assert command.stages == ("pretrain",)
    assert (settings.seed, settings.pretrain.steps, settings.pretrain.optimizer.lr) == (5, 9, 1.0)
    assert settings.sft.conversations.name == "a.jsonl"


def test_written_configuration_reads_back_equal(tmp_path):
    config = parse(["--seed", "4", "--rl.problems", "p.jsonl", "--model.kv-heads", "2"]).settings
    write_config(tmp_path / "c.toml", config)
    assert read_config(tmp_path / "c.toml") == config
    assert as_table(Config())["model"]["depth"] == Config().model.depth


@pytest.mark.parametrize(
    "text, told",
    [
        ("sede = 1", "unknown setting sede; did you mean seed?"),
        ("[pretrain]\nstep = 1", "unknown setting pretrain.step; did you mean pretrain.steps?"),
        ("[pretrain]\nsteps = 1.5", "pretrain.steps = 1.5 should be of type int"),
        ("pretrain = 3", "pretrain is a section"),
        ("seed = true", "seed = True should be of type int"),
        ("seed = ", "not valid TOML"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path, capsys, text, told):
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=".*") as caught:
        read_config(file)
    assert told in str(caught.value) and str(file) in str(caught.value)
    assert main(["--config", str(file)]) == 1
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err


def test_mistakes_on_the_command_line_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments, told in ((["pretrian"], "there is no stage"), (["--resume"], "no run to continue")):
        assert main(arguments) == 1
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--threads", "-1"], "threads = -1: expected"),
        (["--name", "../evil"], "names a folder in runs/"),
        (["--web.source", "nowhere"], "web.source = 'nowhere': expected"),
        (["--know.facts", "none.jsonl"], "know.facts = none.jsonl: there is no such file"),
        (["--sft.conversations", "none.jsonl"], "sft.conversations = none.jsonl: there is no such file"),
        (["--pretrain.evaluations", "0"], "pretrain.evaluations = 0: expected at least 1"),
        (["--model.hidden-size", "33"], "model settings: hidden_size = 33"),
        (["--model.dtype", "float16"], "expected float32 or bfloat16"),
        (["--tokenizer.vocab-size", "100"], "tokenizer.vocab_size = 100: expected at least 264"),
        (["--pretrain.context", "4096"], "expected 1 to model.max_positions, 1024"),
        (["--sft.optimizer.rule", "sgd"], "sft.optimizer.rule = 'sgd': expected adamw or muon"),
        (["--config", "."], "cannot be read as a configuration file"),
    ],
)
def test_mistakes_are_told_before_the_road_begins(tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    for more in ([], ["--dry-run"]):
        assert main([*arguments, *more]) == 1
        assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()
