"""The page: sections come with their data, nothing from outside runs or is fetched, and it costs next to nothing."""

import json
import random
import re
import time
from html.parser import HTMLParser

import pytest

from pyengine import report
from pyengine.files import write_json
from pyengine.report import page
from pyengine.report.page import SECTIONS, render
from pyengine.train.config import Config, write_config
from pyengine.train.rlhf import turning_point
from pyengine.train.run import Run

from .fixture import HOSTILE, build, finish, rlhf


class Checker(HTMLParser):
    """Collects elements, addresses and ids; notices tags that do not close in order."""

    VOID = {"meta", "br", "img", "link", "hr", "input"}

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.handlers: list[str] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "srcset", "action", "data", "xlink:href"):
                self.addresses.append(value)
            if name == "id":
                self.ids.append(value)
            if name.startswith("on"):
                self.handlers.append(name)
            if name == "style":
                assert "url(" not in value
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if not self._open or self._open[-1] not in ("style", "script"):
            self.text.append(data)


def names(run: Run) -> list[str]:
    return render(run)[1]


def test_an_empty_run_has_a_page(tmp_path):
    run = Run(Config(name="empty"), tmp_path)
    run.folder.mkdir()
    text, shown = render(run)
    assert shown == []
    assert "not yet" in text


def test_sections_come_with_their_data(tmp_path):
    run, seen = build(tmp_path, until="crawl"), []
    seen = names(run)
    assert seen == ["web", "cost"]
    for until, more in (
        ("clean", {"gates"}),
        ("tokenizer", {"tokens"}),
        ("pretrain", {"pretrain"}),
        ("demo", {"base"}),
        ("sft", {"chat"}),
        ("know", {"know", "choices"}),
        ("search", {"search"}),
        ("rl", {"rl"}),
        ("rlhf", {"rlhf"}),
        ("evaluate", {"talks"}),
    ):
        now = names(build(tmp_path, until=until))
        assert set(now) >= set(seen) | more
        assert set(seen).isdisjoint(more)
        seen = now
    order = [section.name for section in SECTIONS]
    assert seen == sorted(seen, key=order.index)


def test_the_whole_page_is_there(tmp_path):
    run = build(tmp_path)
    assert names(run) == [section.name for section in SECTIONS]
    text = " ".join(Checker(render(run)[0]).text)
    for words in (
        "97.1 %",
        "missed",
        "Kneser-Ney 5-gram: 0.512",
        "82.6–87.1 %",
        "Move 37",
        "+29.0 points",
        "8.4 nats",
        "(step 21): until the end it lost",
    ):
        assert words in text


def test_a_gold_reward_that_did_not_turn_or_is_not_known_is_told_plainly(tmp_path):
    run = build(tmp_path)
    result = json.loads(run.path("rlhf", "result.json").read_text())
    for turning, says in (
        (turning_point(result["curve"][:6]), "did not turn in 60 steps"),
        (None, "did not turn"),
    ):
        write_json(run.path("rlhf", "result.json"), result | {"turning": turning})
        text = " ".join(" ".join(Checker(render(run)[0]).text).split())
        assert (says in text) == (turning is not None) and "This is over-optimisation" not in text
    run = build(tmp_path / "people", until="reward")
    run.stage = "rlhf"
    rlhf(run, random.Random(0), "", gold=False)
    text = " ".join(Checker(render(run)[0]).text)
    assert "nobody knows the gold reward" in text and "of three true" not in text


@pytest.mark.parametrize("live", [False, True])
def test_nothing_from_outside_runs_or_is_fetched(tmp_path, live):
    run = build(tmp_path, words=HOSTILE)
    text, _ = render(run, live)
    found = Checker(text)
    assert found.tags.count("script") == (1 if live else 0)
    assert "img" not in found.tags and "iframe" not in found.tags and "link" not in found.tags
    assert found.handlers == []
    assert all(address.startswith("#") for address in found.addresses)
    assert len(set(found.ids)) == len(found.ids)
    assert "url(" not in text and "@import" not in text
    shown = "".join(found.text)
    assert shown.count("<script>alert('x')</script>") > 10  # it is shown, as text
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'") and "script-src 'unsafe" not in policy


def test_only_an_unfinished_page_reads_itself_again(tmp_path):
    run = build(tmp_path, until="pretrain")
    finish(run, "demo", {}, state="started")
    alive, still = render(run, live=True)[0], render(run)[0]
    assert "location.reload" in alive and "running the stage demo" in alive
    assert "location.reload" not in still and 'http-equiv="refresh"' not in still
    assert "interrupted" in still


def test_half_written_files_are_not_there_yet(tmp_path):
    run = build(tmp_path)
    for name in ("metrics.jsonl", "rl/rollouts.jsonl", "samples/pretrain.jsonl"):
        path = run.path(name)
        path.write_bytes(path.read_bytes()[:-20])
    run.path("rl", "result.json").write_text('{"before": ')
    assert "pretrain" in names(run) and "rl" in names(run)


def test_numbers_that_are_none_do_not_stop_it(tmp_path):
    run = build(tmp_path, until="pretrain")
    run.stage = "pretrain"
    run.log("train", 601, loss=float("nan"), skipped="its loss is nan")
    run.gate("recall", float("nan"), ">= 90 %", False)
    text = " ".join(Checker(render(run)[0]).text)
    assert "its loss is nan" in text and "undefined" in text


def test_the_same_files_give_the_same_page(tmp_path):
    run = build(tmp_path)
    first = render(run)[0]
    page._bodies.clear()
    assert render(run)[0] == first


def test_writing_is_atomic(tmp_path, monkeypatch):
    run = build(tmp_path, until="clean")
    report.write(run, live=True)
    before = run.path("report.html").read_text()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        report.write(run, live=False)
    assert run.path("report.html").read_text() == before
    assert [p.name for p in run.folder.iterdir() if "report" in p.name] == ["report.html"]


def test_refresh_is_cheap_and_rare(tmp_path):
    run = build(tmp_path)
    report.refresh(run, now=True)
    first = run.path("report.html").stat().st_mtime_ns
    started = time.perf_counter()
    for _ in range(1000):
        report.refresh(run)  # not yet time
    assert time.perf_counter() - started < 0.5
    assert run.path("report.html").stat().st_mtime_ns == first
    run.stage = "rl"
    run.log("train", 81, reward=0.9, pass_at_1=0.9)
    times = []
    for _ in range(3):  # the least of three: other work on the machine is not the page's
        started = time.perf_counter()
        report.refresh(run, now=True)
        times.append(time.perf_counter() - started)
    assert min(times) < 1.0
    assert run.path("report.html").stat().st_mtime_ns > first


def test_refresh_outlives_what_it_cannot_draw(tmp_path, monkeypatch):
    run = build(tmp_path, until="clean")
    monkeypatch.setattr(page, "render", lambda *_: 1 / 0)
    report.refresh(run, now=True)
    assert not run.path("report.html").exists()


def test_a_stopped_process_leaves_a_still_page(tmp_path):
    run = build(tmp_path, until="clean")
    report.refresh(run, now=True)
    assert "location.reload" in run.path("report.html").read_text()
    report.settle(run)
    text = run.path("report.html").read_text()
    assert "location.reload" not in text
    run.path("report.html").unlink()
    report.settle(run)  # it is still: left alone
    assert not run.path("report.html").exists()


def test_command_line(tmp_path, capsys):
    from pyengine.report.__main__ import main

    run = build(tmp_path)
    write_config(run.path("config.toml"), run.config)
    assert main([str(run.folder)]) == 0
    assert run.path("report.html").exists()
    assert main([str(tmp_path / "nothing")]) == 1
    assert "no config.toml" in capsys.readouterr().err


def test_measurements_that_are_missing_are_no_end(tmp_path):
    """No right answer, no pass@k, nothing planted: what JSON has no number for is null."""
    run = build(tmp_path)
    result = json.loads(run.path("rl", "result.json").read_text())
    for exam in (result["before"], *result["controls"].values()):
        del exam["pass_at_k"]
        exam["tokens_per_right"] = float("inf")
    write_json(run.path("rl", "result.json"), result | {"largest_logprob_difference": float("nan")})
    truth = json.loads(run.path("web", "truth.json").read_text())
    nothing = {"duplicates": 0, "duplicates_found": float("nan"), "emails": 0, "emails_masked": float("nan")}
    write_json(run.path("web", "truth.json"), truth | nothing)
    text, shown = render(run)
    assert shown == [section.name for section in SECTIONS] and "none right" in text


def test_a_persons_own_pages_are_not_told_as_the_world(tmp_path):
    from dataclasses import replace

    run = build(tmp_path)
    run.config = replace(run.config, web=replace(run.config.web, source="http://handbook.example/"))
    given = run.path("know", "result.json")
    result = json.loads(given.read_text())
    for table in result.values():
        if "groups" in table:
            table["groups"] = {"given": table["groups"]["known"]}
    for path in (given, run.path("search", "result.json"), run.path("evaluate", "result.json")):
        write_json(path, result)
    text = " ".join(Checker(render(run)[0]).text)
    assert "http://handbook.example/" in text and "given" in text
    for words in (
        "invented encyclopedia",
        "Three kinds of questions",
        "Passages were quoted",
        "published after",
    ):
        assert words not in text


def test_a_refusal_after_a_search_is_told_as_one():
    from pyengine.report.sections.talks import verdict

    reply = {"text": "I don't know.", "action": "search", "right": False}
    assert verdict(reply) == "refuses"
    assert verdict(reply | {"text": "The oboe."}) == "wrong"
    assert verdict(reply | {"text": "The oboe.", "right": True}) == "right"
