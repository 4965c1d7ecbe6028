"""The command: a small model, here and behind our own server; kills; filters; what endpoints may do wrong."""

import email.utils
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter

import httpx
import pytest

pytest.importorskip("uvicorn")
from pyengine.data import encode_conversations, read_conversations
from pyengine.errors import UserError
from pyengine.files import Journal
from pyengine.model import save
from pyengine.serve import open_model
from pyengine.synthesize import Endpoint, Sampling, Talk, speakers
from pyengine.synthesize.__main__ import Command, main, synthesize
from pyengine.synthesize.finish import Filters, answers_of, finish
from pyengine.synthesize.talk import Ask, once
from pyengine.text import Tokenizer
from tests.serve.live import TEXT, served_model, serving, small_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a small model that mostly ends its messages."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer.train(TEXT, 330)
    made = small_model(tokenizer, 1024)
    tokenizer.save(folder / "tokenizer")
    save(made, folder / "small", folder / "tokenizer")
    return folder / "small"


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"Who founded Tavor {n}?"} for n in range(8)] + [{"topic": "Tavor"}, {"text": TEXT[0]}]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def command(model, prompts, out, **more):
    more = {"sampling": Sampling(max_tokens=60), "turns": 2, "filters": Filters(near=False), **more}
    return Command(str(model), prompts, out, **more)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(out):
    """Everything a journal has, by number; AssertionError if anything is there twice."""
    found = [row for row in rows(out.with_name(f"{out.stem}.journal.jsonl")) if "number" in row]
    assert len({row["number"] for row in found}) == len(found)
    return {row["number"]: (row["messages"], row["cut"]) for row in found}


def test_what_is_written_depends_on_the_seed_alone_and_can_be_trained_on(model, prompts, tmp_path):
    outs = [tmp_path / f"{name}.jsonl" for name in "abc"]
    for out, parallel, seed in zip(outs, (32, 1, 32), (0, 0, 1), strict=True):
        synthesize(command(model, prompts, out, per_prompt=2, parallel=parallel, seed=seed))
    kept = rows(outs[0])
    assert [row["messages"] for row in kept] == [row["messages"] for row in rows(outs[1])] and kept
    assert written(outs[0]) == written(outs[1]) and written(outs[0]) != written(outs[2])
    removed = rows(tmp_path / "a.removed.jsonl")
    assert len(kept) + len(removed) == 20
    assert {row["provenance"]["number"] for row in kept + removed} == set(range(20))
    about = kept[0]["provenance"]
    assert about["model"]["name"] == "small" and len(about["model"]["sha256"]) == 64
    assert about["prompt"].startswith(f"{prompts}:") and about["sampling"]["max_tokens"] == 60
    conversations, skipped = read_conversations(outs[0])
    assert not skipped
    encoded, skipped = encode_conversations(conversations, Tokenizer.load(model), 4096)
    assert len(encoded) == len(kept) and not skipped


def test_more_may_be_asked_for_later_and_filters_cost_nothing(model, prompts, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "made.jsonl"
    synthesize(command(model, prompts, whole, per_prompt=2))
    synthesize(command(model, prompts, out))
    synthesize(command(model, prompts, out, per_prompt=2))
    assert written(out) == written(whole)
    assert [row["messages"] for row in rows(out)] == [row["messages"] for row in rows(whole)]
    monkeypatch.setattr(speakers.Local, "work", None)  # nothing more is asked
    synthesize(command(model, prompts, out, per_prompt=2, filters=Filters(max_chars=1)))
    assert rows(out) == []
    with pytest.raises(UserError, match=r"was begun with sampling.max_tokens = 60, now it is 61"):
        synthesize(command(model, prompts, out, sampling=Sampling(max_tokens=61)))


def test_an_endpoint_gives_what_the_model_gives(model, prompts, tmp_path):
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    synthesize(command(model, prompts, here))
    with serving(open_model(model)) as url:
        synthesize(command(f"{url}/v1/", prompts, there, parallel=4))
    assert written(here) == written(there)
    about = rows(tmp_path / "there.journal.jsonl")[0]["model"]
    assert about == {"name": "small", "endpoint": f"{url}/v1"}


def test_a_killed_run_goes_on_and_writes_nothing_twice(model, prompts, tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "made.jsonl"
    journal = tmp_path / "made.journal.jsonl"
    flags = ["--prompts", prompts, "--per-prompt", 8, "--turns", 2, "--max-tokens", 60, "--parallel", 2]
    run = [sys.executable, "-m", "pyengine.synthesize", *map(str, [model, *flags, "--out", out])]
    with subprocess.Popen(run, stdout=subprocess.DEVNULL) as child:
        while not journal.exists() or journal.read_bytes().count(b"\n") < 6:
            assert child.poll() is None
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
    assert not out.exists() and journal.read_bytes().count(b"\n") < 81
    os.truncate(journal, journal.stat().st_size - 3)  # as if the kill had come within a line
    for path in (out, whole):
        assert main([str(model), *map(str, flags), "--out", str(path)]) == 0
    assert written(out) == written(whole) and len(written(out)) == 80
    assert [row["messages"] for row in rows(out)] == [row["messages"] for row in rows(whole)]


def test_every_reason_is_told(tmp_path):
    def row(number, *texts, **more):
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        return {"number": number, "prompt": "p:1", "messages": messages, "cut": False, "time": "now", **more}

    words = " ".join(f"word{i}" for i in range(40))
    tested = tmp_path / "test.jsonl"
    tested.write_text(json.dumps({"prompt": "Who was the first to found Tavor?"}))
    made = [
        row(0, "Who?", ""),
        row(1, "Who?", words),
        row(2, "who?", words.upper()),
        row(3, "Who?", f"{words} indeed"),
        row(4, "Who?", "Ada", cut=True),
        row(5, "Who?", "x" * 500),
        row(6, "Who?", "As an AI I cannot."),
        row(7, "So, who was the first to found tavor, then?", "Ada."),
        row(9, "Who?", "Ada."),
    ]
    with Journal(tmp_path / "j.jsonl") as journal:
        for one in [{"settings": 1}, *reversed(made)]:
            journal.append(one)
        filters = Filters(max_chars=400, phrases=("as an ai",), held_out=(tested,))
        failed = {8: row(8, "Who?", error="no room")}
        out, aside = tmp_path / "out.jsonl", tmp_path / "aside.jsonl"
        summary = finish(journal, failed, out, aside, filters, {"seed": 1})
        plain = finish(journal, failed, tmp_path / "b", tmp_path / "c", Filters(exact=False, near=False), {})
    assert [row["provenance"]["number"] for row in rows(out)] == [1, 9] and summary.kept == 2
    told = {row["provenance"]["number"]: (row["reason"], row["detail"]) for row in rows(aside)}
    assert told == {
        0: ("empty", "assistant said nothing"), 2: ("exact duplicate", "of number 1"),
        3: ("near duplicate", "of number 1"), 4: ("cut off", "assistant had not ended"),
        5: ("too long", "500 characters"), 6: ("phrase", "as an ai"),
        7: ("held out", "a question to be tested with"), 8: ("failed", "no room"),
    }  # fmt: skip
    assert summary.removed == Counter(reason for reason, _ in told.values())
    assert summary.distinct == [1.0, 1.0, 1.0]  # 41 words, all different
    assert plain.removed == {"failed": 1, "empty": 1, "cut off": 1}


def test_what_is_said_with_a_search_is_no_answer():
    search = {"role": "assistant", "content": "I look.", "tool_calls": [{"function": {"name": "search"}}]}
    last = {"role": "assistant", "content": "Ada."}
    talk = [{"role": "user", "content": "Who?"}, search, {"role": "tool", "content": "Ada."}, last]
    assert answers_of(talk) == ["Ada."]


def test_who_may_not_search_is_stopped_by_it(tmp_path, monkeypatch):
    served = served_model(tmp_path, search=True)
    asked, add = [], served.engine.add
    monkeypatch.setattr(served.engine, "add", lambda ids, params: asked.append(params) or add(ids, params))
    talks = [
        Talk(n, once(Ask([{"role": "user", "content": "Who?"}], 5, may)))
        for n, may in enumerate((True, False))
    ]
    speakers.Local(served, "small", Sampling(max_tokens=4), 2).work(talks, lambda talk, made: None)
    assert [params.tools for params in asked] == [True, False]
    assert [served.format.search in params.stop for params in asked] == [False, True]


class Server:
    """An endpoint that answers each request with the next of these: a status, a response, or an error to raise."""

    def __init__(self, monkeypatch, *answers):
        self.answers, self.bodies = list(answers), []
        monkeypatch.setattr(
            Endpoint, "_client", lambda _: httpx.AsyncClient(transport=httpx.MockTransport(self))
        )
        monkeypatch.setattr(speakers, "LONGEST_WAIT", 0.01)

    def __call__(self, request):
        self.bodies.append(json.loads(request.content or "null"))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return (
            httpx.Response(answer, json={"error": {"message": "busy"}}) if isinstance(answer, int) else answer
        )


def answer(text, reason="stop"):
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return httpx.Response(200, json={"choices": [choice], "usage": {"completion_tokens": 3}})


def ask(endpoint):
    """What is made of one question."""
    made = []
    talk = Talk(0, once(Ask([{"role": "user", "content": "Who?"}], 5)))
    endpoint.work([talk], lambda _, whole: made.append(whole))
    return made[0]


def test_what_may_pass_is_told_and_tried_again(monkeypatch, capsys):
    late = httpx.Response(429, headers={"Retry-After": "7"}, text="slow down")
    server = Server(
        monkeypatch, late, 503, httpx.ConnectError("refused"), httpx.ReadTimeout("late"), answer(" Ada. ")
    )
    endpoint = Endpoint("http://host/v1", "m", Sampling(top_k=3), 2)
    assert ask(endpoint).messages == [{"role": "assistant", "content": "Ada."}] and endpoint.tokens == 3
    assert server.bodies[-1] == {
        "model": "m", "messages": [{"role": "user", "content": "Who?"}], "seed": 5, "temperature": 0.8, "top_p": 1.0,
        "top_k": 3, "max_tokens": 512,
    }  # fmt: skip
    problems = ["429 slow down", "503 busy", "refused", "no answer within 600 s"]
    assert capsys.readouterr().out == "".join(f"  http://host/v1: {p}; asking again\n" for p in problems)


def test_an_endpoint_that_keeps_silent_is_not_waited_for_without_end():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = Endpoint(
            f"http://127.0.0.1:{silent.getsockname()[1]}/v1", "m", Sampling(), 1, retries=0, timeout=0.2
        )
        with pytest.raises(UserError, match=r"the last: no answer within 0.2 s; give the command again"):
            ask(endpoint)


def test_an_endpoint_that_says_when_to_ask_again_is_asked_then(monkeypatch):
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    asked = [httpx.Response(429, headers={"Retry-After": when}) for when in ("7", "1e9", date)]
    Server(monkeypatch, *asked, 503, answer("Ada."))
    monkeypatch.setattr(speakers, "LONGEST_WAIT", 60.0)
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    monkeypatch.setattr(speakers.asyncio, "sleep", sleep)
    assert ask(Endpoint("http://host/v1", "m", Sampling(), 1)).messages[-1]["content"] == "Ada."
    assert waits[:2] == [7, 60] and 20 < waits[2] <= 30 and 2 <= waits[3] <= 4


@pytest.mark.parametrize("answers, told", [
    ([503, 503, httpx.ConnectError("refused")], "no answer in 3 tries, the last: refused; give the command again"),
    ([401], "401 busy; the key is read from OPENAI_API_KEY"),
    ([404], "404 busy; expected a base URL as https://host/v1"),
    ([httpx.Response(200, text="<html>")], "expected an answer in OpenAI's form, got '<html>'"),
])  # fmt: skip
def test_what_will_not_pass_ends_the_run(monkeypatch, answers, told):
    Server(monkeypatch, *answers)
    with pytest.raises(UserError, match=told):
        ask(Endpoint("http://host/v1", "m", Sampling(), 2, retries=2))


@pytest.mark.parametrize("base, key, told", [
    ("http://", "", "no host in it"),
    ("http://[::1", "", "not a URL"),
    ("http://host:port/v1", "", "not a URL"),
    ("http://me:secret@host/v1", "", "keep what the endpoint asks for out of its URL"),
    ("http://me:secret@host:port/v1", "", "keep what the endpoint asks for out of its URL"),
    ("http://me:se/cret@host/v1", "", "keep what the endpoint asks for out of its URL"),
    ("https://secret@/v1", "", "keep what the endpoint asks for out of its URL"),
    ("http://host/v1", "s\u00e9same", "OPENAI_API_KEY: a key has"),
    ("http://host/v1", "sesame\n", "OPENAI_API_KEY: a key has"),
])  # fmt: skip
def test_a_mistaken_url_or_key_is_told_before_any_try(base, key, told):
    with pytest.raises(UserError) as caught:
        Endpoint(base, "m", Sampling(), 1, key)
    assert told in str(caught.value) and not any(s in str(caught.value) for s in ("sesame", "cret"))


def test_what_one_conversation_cannot_have_is_its_own_matter(monkeypatch):
    Server(monkeypatch, 400, answer("x", "content_filter"), answer("Ada", "length"), answer(None))
    endpoint = Endpoint("http://host/v1", "m", Sampling(), 1)
    made = [ask(endpoint) for _ in range(4)]
    assert [m.error for m in made] == ["400 busy", "the answer ended with 'content_filter'", "", ""]
    assert [m.cut for m in made] == [False, False, True, False] and made[3].messages[-1]["content"] == ""


def test_the_only_model_needs_no_name(monkeypatch):
    def listing(*names):
        return httpx.Response(200, json={"data": [{"id": name} for name in names]})

    Server(monkeypatch, listing("one"), listing("one", "two"))
    assert Endpoint("http://host/v1/", "", Sampling(), 1).about == {
        "name": "one",
        "endpoint": "http://host/v1",
    }
    with pytest.raises(UserError, match="give --name, one of one, two"):
        Endpoint("http://host/v1", "", Sampling(), 1)


def test_failures_are_asked_for_again_and_all_failing_is_said(model, prompts, tmp_path, capsys):
    out, long = tmp_path / "made.jsonl", tmp_path / "long.txt"
    long.write_text("word " * 3000)
    assert main([str(model), "--prompts", str(long), "--out", str(out)]) == 1
    assert "every conversation failed, the first with: the prompt has" in capsys.readouterr().err
    assert rows(tmp_path / "made.removed.jsonl")[0]["reason"] == "failed" and written(out) == {}
    assert main([str(tmp_path), "--prompts", str(prompts), "--out", str(tmp_path / "no.jsonl")]) == 1
    assert not (tmp_path / "no.journal.jsonl").exists()
