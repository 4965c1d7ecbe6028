"""Settings: flags over files over defaults, and one clear sentence for every mistake."""

import typing
from dataclasses import fields, is_dataclass, replace

import pytest

from pyengine.errors import UserError
from pyengine.ranges import Range, check_ranges
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
        (["--threads", "-1"], "threads = -1: expected at least 0"),
        (["--seed", "-1"], "seed = -1: expected at least 0 and below 4294967296"),
        (["--rl.group", "0"], "rl.group = 0: expected at least 2 (replies are judged against each other)"),
        (["--rl.grades", "1", "6"], "rl.grades = 6: expected at least 1 and at most 5"),
        (["--rl.grades"], "rl.grades is empty"),
        (["--rl.kl", "nan"], "rl.kl = nan: expected a finite number, at least 0"),
        (["--know.wordings", "9"], "know.wordings = 9: expected at least 1 and at most 8"),
        (["--know.unknown", "0.75"], "know.unknown = 0.75: expected less than know.known, 0.75"),
        (["--model.hidden-size", "-8"], "model.hidden_size = -8: expected at least 1"),
        (["--world.cutoff", "soon"], "world.cutoff = 'soon': expected a date"),
        (["--world.relations", "mood"], "world.relations = 'mood': expected some of profession"),
        (["--name", "../evil"], "names a folder in runs/"),
        (["--web.source", "nowhere"], "web.source = 'nowhere': expected"),
        (["--know.facts", "none.jsonl"], "know.facts = none.jsonl: there is no such file"),
        (["--sft.conversations", "none.jsonl"], "sft.conversations = none.jsonl: there is no such file"),
        (["--pretrain.evaluations", "0"], "pretrain.evaluations = 0: expected at least 1"),
        (["--model.hidden-size", "33"], "model settings: hidden_size = 33"),
        (["--model.dtype", "float16"], "expected float32 or bfloat16"),
        (["--tokenizer.vocab-size", "100"], "tokenizer.vocab_size = 100: expected at least 264"),
        (["--pretrain.context", "4096"], "expected at most model.max_positions, 1024"),
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


def test_rows_that_cannot_be_used_are_told_before_the_road_begins(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    good, bad = '{"question": "Who %s?", "answer": "Ada"}\n', '{"question": "Who?"}\n'
    facts = tmp_path / "facts.jsonl"
    facts.write_text("".join(good % i for i in range(3)) + bad * 5)
    assert main(["--know.facts", "facts.jsonl", "--dry-run"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "left out: facts.jsonl:4:" in told and "2 more rows of facts.jsonl; 3 are used" in told
    assert main(["rl", "--know.facts", "facts.jsonl", "--dry-run"]) == 0
    assert "left out" not in capsys.readouterr().out, "no stage asked for reads it"
    for text, says in (
        (good % 1 + bad, "at least two rows that can be used, found 1"),
        (bad, "none of 1 rows"),
    ):
        facts.write_text(text)
        assert main(["--know.facts", "facts.jsonl"]) == 1
        assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()


def test_a_conversation_without_an_answer_is_told_before_the_road_begins(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked, silent = '{"messages": [{"role": "user", "content": "Who?"}%s]}\n', ""
    unweighed = ', {"role": "assistant", "content": "Ada", "weight": 0}'
    answered = ', {"role": "assistant", "content": "Ada"}'
    chats = tmp_path / "chats.jsonl"
    chats.write_text("".join(asked % turn for turn in (silent, unweighed, answered, answered)))
    assert main(["sft", "--sft.conversations", "chats.jsonl", "--dry-run"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "left out: chats.jsonl:1: nothing to train on" in told
    assert "left out: chats.jsonl:2: nothing to train on" in told
    chats.write_text(asked % silent + asked % answered)
    assert main(["sft", "--sft.conversations", "chats.jsonl", "--dry-run"]) == 1
    assert "expected at least two rows that can be used, found 1" in " ".join(capsys.readouterr().err.split())


def numbers(node, prefix=""):
    """(name, value, its ranges) of every number in a tree of settings, and of every tuple of numbers."""
    hints = typing.get_type_hints(type(node), include_extras=True)
    plain = typing.get_type_hints(type(node))
    for field in fields(node):
        value, name = getattr(node, field.name), prefix + field.name
        if is_dataclass(value):
            yield from numbers(value, name + ".")
        elif {int, float} & {plain[field.name], *typing.get_args(plain[field.name])}:
            yield (
                name,
                value,
                [r for r in getattr(hints[field.name], "__metadata__", ()) if isinstance(r, Range)],
            )


def changed(node, name, value):
    """The tree with one setting changed."""
    section, _, rest = name.partition(".")
    return replace(node, **{section: changed(getattr(node, section), rest, value) if rest else value})


def test_every_number_has_a_range_and_is_held_to_it():
    found = list(numbers(Config()))
    assert len(found) > 90
    check_ranges(Config())
    for name, value, ranges in found:
        assert len(ranges) == 1, f"{name} has no range"
        below = min(x for x in (ranges[0].ge, ranges[0].gt) if x is not None) - 1
        wrong = (below,) if isinstance(value, tuple) else below
        with pytest.raises(UserError, match=f"^{name} = {below}: expected "):
            check_ranges(changed(Config(), name, wrong))
