"""From a source to shards: the closed world over HTTP, and a folder of pages, through the same stages."""

import json
import random
import socket

import pytest

from pyengine.data import TokenShards
from pyengine.errors import UserError
from pyengine.train import prepare
from pyengine.train.config import Config, TokenizerConfig, WebConfig
from pyengine.train.run import Run, opened, perform
from pyengine.train.stages import STAGES
from pyengine.world import WorldConfig

ADJECTIVES = "old blue quiet heavy narrow broken famous cheap distant warm".split()
NOUNS = "bridge market tower river school harbour garden kitchen museum station valley library".split()
BEFORE = ("crawl", "clean", "tokenizer", "shards")


def go(root, **settings) -> Run:
    config = Config(name="r", world=WorldConfig.tiny(), tokenizer=TokenizerConfig(400), **settings)
    with opened(config, root) as run:
        for name in BEFORE:
            perform(run, STAGES[name])
    return run


def prose(dice):
    return " ".join(
        f"The {dice.choice(ADJECTIVES)} {dice.choice(NOUNS)} was {dice.choice(ADJECTIVES)}"
        f" in the year {dice.randrange(1000, 2000)}, and nobody in the {dice.choice(NOUNS)} knew why."
        for _ in range(20)
    )


def rows(run, *path):
    return [json.loads(line) for line in run.path(*path).read_text("utf-8").splitlines()]


def test_the_closed_world_becomes_shards_the_same_each_time(tmp_path):
    run = go(tmp_path / "a", web=WebConfig(heldout=0.1))
    documents, heldout = rows(run, "web", "documents.jsonl"), rows(run, "web", "heldout.jsonl")
    for split, kept in (("train", documents), ("val", heldout)):
        shards = TokenShards(run.path("shards", split), run.tokenizer, verify=True)
        assert len(shards) == len(kept) > 0
        assert run.tokenizer.decode(shards[0][1:]) == kept[0]["text"]
    cutoff = run.world.config.cutoff
    assert all(row["date"] <= cutoff for row in documents)
    assert any(row["date"] > cutoff for row in rows(run, "web", "later", "documents.jsonl"))
    gates = json.loads(run.path("gates.json").read_text())
    assert {"extraction F1 on unseen looks", "near-duplicates found", "e-mails masked"} <= set(gates)
    before = {name: run.marker(name)["finished"] for name in BEFORE}
    again = go(tmp_path / "a", web=WebConfig(heldout=0.1))
    assert {name: again.marker(name)["finished"] for name in BEFORE} == before  # nothing was missing
    other = go(tmp_path / "b", web=WebConfig(heldout=0.1))
    for name in ("documents.jsonl", "heldout.jsonl"):
        assert run.path("web", name).read_bytes() == other.path("web", name).read_bytes()
    assert run.marker("shards")["outputs"] == other.marker("shards")["outputs"]


def test_gates_do_not_hold_on_nothing(tmp_path, monkeypatch):
    run = Run(Config(name="r", world=WorldConfig.tiny()), tmp_path)
    perfect = {"f1_unseen": 1.0, "plain_f1_unseen": 0.9, "duplicates_found": 1.0, "emails_masked": 1.0}
    for count in (0, 3):
        counts = dict.fromkeys(("pages_unseen", "duplicates", "emails"), count)
        monkeypatch.setattr(prepare, "measure", lambda *_, found=perfect | counts: found)
        prepare._gates(run)
        gates = json.loads(run.path("gates.json").read_text())
        held = {name: gate["holds"] for name, gate in gates.items()}
        assert held["near-duplicates found"] == held["e-mails masked"] == (count > 0)
        assert gates["e-mails masked"]["n"] == count


def test_a_taken_port_is_no_end(tmp_path, capsys):
    run = Run(Config(name="r", world=WorldConfig.tiny()), tmp_path)
    with socket.create_server(("127.0.0.1", prepare.WORLD_PORT + 1)):
        with prepare._served(run, "cutoff") as base:
            assert str(prepare.WORLD_PORT + 1) not in base
    assert "is taken" in capsys.readouterr().out


def test_a_folder_of_pages_is_read_as_it_is(tmp_path):
    folder = tmp_path / "pages"
    folder.mkdir()
    dice = random.Random(0)
    for i in range(30):
        sentences = prose(dice)
        (folder / f"{i}.html").write_text(
            f"<html><title>Page {i}</title><body><p>{sentences}</p></body></html>"
        )
    run = go(tmp_path, web=WebConfig(source=str(folder), heldout=0.3))
    assert run.marker("crawl")["outputs"] == {}
    assert "and nobody in the" in rows(run, "web", "documents.jsonl")[0]["text"]
    with pytest.raises(UserError, match="nowhere"):
        go(tmp_path, web=WebConfig(source=str(tmp_path / "nowhere")))


def test_too_few_documents_are_told_with_what_to_give(tmp_path):
    (tmp_path / "none.txt").write_text("Too short.")
    with pytest.raises(UserError, match=r"none.txt: none of 1 documents is kept; .*removed.jsonl says why"):
        go(tmp_path / "a", web=WebConfig(source=str(tmp_path / "none.txt")))
    (tmp_path / "one.txt").write_text(prose(random.Random(0)))
    with pytest.raises(UserError, match=r"jsonl is empty: too few documents to hold out --web.heldout = 0.5"):
        go(tmp_path / "b", web=WebConfig(source=str(tmp_path / "one.txt"), heldout=0.5))
