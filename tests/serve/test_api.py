"""The server: OpenAI's shapes, streams that add up, errors that say why, many clients at once, nothing left over."""

import asyncio
import json
import re
import threading
import time

import pytest

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from pyengine.engine import Engine, SamplingParams
from pyengine.serve import OwnFormat, Served
from pyengine.serve.api import make_app
from pyengine.serve.stops import StopStrings
from pyengine.serve.worker import News, Worker
from pyengine.text import Tokenizer
from tests.engine.fake import FakeRunner

TEXT = ["Who founded Tavor? Ada Lovelace founded Tavor. I do not know."] * 3
ANSWER = "Ada founded Tavor."


class Echo(FakeRunner):
    """Answers every request with ANSWER, however it is batched."""

    def __init__(self, tokenizer, slow=0.0):
        super().__init__(pages=64, vocabulary=tokenizer.vocab_size, max_context=256)
        self.script, self.slow = [*tokenizer.encode(ANSWER), tokenizer.special_ids["<|end|>"]], slow

    def run(self, plan, ready):
        time.sleep(self.slow)
        _, logprobs = super().run(plan, ready)
        return [self.script[request.sampled % len(self.script)] for request in ready], logprobs


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXT, 300)


@pytest.fixture
def engine(tokenizer):
    return Engine(None, tokenizer, runner=Echo(tokenizer), max_batch=4)


@pytest.fixture
def client(tokenizer, engine, tmp_path):
    served = Served(engine, tokenizer, OwnFormat(tokenizer), tmp_path)
    with TestClient(make_app(served, "small")) as client:
        yield client
    assert engine.unfinished == 0
    engine._scheduler.pool.check()


def ask(client, **more):
    body = {"model": "small", "messages": [{"role": "user", "content": "Who?"}], **more}
    return client.post("/v1/chat/completions", json=body)


def streamed(response) -> tuple[str, str]:
    """(text, finish reason) of a stream of events."""
    lines = [line[6:] for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    choices = [json.loads(line)["choices"][0] for line in lines[:-1]]
    text = "".join(c["delta"].get("content") or "" if "delta" in c else c["text"] for c in choices)
    return text, choices[-1]["finish_reason"]


def test_whole_and_streamed_answers(client):
    whole = ask(client).json()
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": ANSWER, "refusal": None}
    assert whole["choices"][0]["finish_reason"] == "stop" and whole["object"] == "chat.completion"
    usage = whole["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert streamed(ask(client, stream=True)) == (ANSWER, "stop")
    assert ask(client, max_tokens=1).json()["choices"][0]["finish_reason"] == "length"


def test_an_answer_goes_on_past_its_end_if_asked(client):
    for path, what in (("chat/completions", {"messages": [{"role": "user", "content": "Who?"}]}),
                       ("completions", {"prompt": "Who"})):  # fmt: skip
        body = {**what, "max_tokens": 30, "ignore_eos": True}
        answer = client.post(f"/v1/{path}", json=body).json()
        assert (
            answer["usage"]["completion_tokens"] == 30 and answer["choices"][0]["finish_reason"] == "length"
        )


def test_fields_about_the_caller_change_nothing(client):
    more = {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "modalities": ["text"],
            "parallel_tool_calls": True, "reasoning_effort": None}  # fmt: skip
    assert ask(client, **more).json()["choices"][0]["message"]["content"] == ANSWER


def test_the_developer_is_the_system(client):
    def ids(role):
        messages = [{"role": role, "content": "Be brief."}, {"role": "user", "content": "Who?"}]
        assert client.post("/v1/chat/completions", json={"messages": messages}).status_code == 200
        return client.post("/tokenize", json={"messages": messages}).json()["tokens"]

    assert ids("developer") == ids("system")


def test_large_counts_are_whole(client, engine):
    engine.stats.computed = 123_456_789
    assert "engine_computed_tokens_total 123456789\n" in client.get("/metrics").text
    memory = re.search(r"pyengine_memory_bytes (\d+)\n", client.get("/metrics").text)
    assert int(memory[1]) > 10 << 20


def test_completions_models_health(client):
    body = {"model": "small", "prompt": "Who", "stream": True, "max_tokens": 50}
    assert streamed(client.post("/v1/completions", json=body)) == (ANSWER, "stop")
    assert client.get("/v1/models").json()["data"][0]["id"] == "small"
    assert client.get("/health").json() == {"status": "ok", "unfinished": 0}


def test_stop_strings_cut_the_answer(client):
    assert ask(client, stop=[" Tav"]).json()["choices"][0]["message"]["content"] == "Ada founded"
    assert streamed(ask(client, stop="founded", stream=True)) == ("Ada ", "stop")
    cutter = StopStrings(["abc", "x"])
    assert [cutter.push(piece) for piece in ("1a", "b", "2ab", "c3")] == ["1", "", "ab2", ""]
    assert cutter.found


@pytest.mark.parametrize(
    "body, says",
    [
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "role"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"logit_bias": {"5": 10**400}}, "logit_bias"),
        ({"seed": 1.5}, "seed: expected an integer, got 1.5"),
        ({"stream": "yes"}, 'stream: expected true or false, got "yes"'),
        ({"stream_options": []}, "stream_options: expected an object, got []"),
        ({"max_tokens": True}, "max_tokens"),
        ({"n": 17}, "n:"),
        ({"top_logprobs": 2}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"100000": 1}}, "logit_bias"),
        ({"min_p": 2}, "min_p"),
        ({"tools": [{"type": "function", "function": {"name": "weather"}}]}, "only search"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "schema is missing"),
        ({"stop": [1]}, "stop"),
        ({"tempature": 1}, "tempature: this server has no such field"),
        ({"reasoning_effort": "low"}, "reasoning_effort: this server has no such field"),
        ({"modalities": ["text", "audio"]}, 'modalities: expected ["text"]'),
        ({"stream_options": {"include_usage": True}}, "stream_options: needs stream to be true"),
        (
            {"stream": True, "stream_options": {"usage": True}},
            "stream_options.usage: this server has no such",
        ),
        ({"messages": [{"role": "user", "content": "x" * 2000}]}, "context"),
    ],
)
def test_errors_say_what_was_expected(client, body, says):
    response = ask(client, **body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert says in error["message"] and error["type"] == "invalid_request_error"


def test_bodies_that_are_no_request(client):
    assert client.post("/v1/chat/completions", content=b"{").status_code == 400
    assert client.post("/v1/chat/completions", content=b"[1]").status_code == 400
    assert client.post("/v1/chat/completions", content=b" " * (1 << 21)).status_code == 413


def test_who_looks_late_finds_tokens_together(engine, tokenizer):
    """One wake-up for many tokens, each answer's own, and none told twice."""

    async def late() -> list[News]:
        end = SamplingParams(stop=(tokenizer.special_ids["<|end|>"],))
        async with worker.answers([[1, 2]] * 3, [end] * 3) as answers:
            while engine.stats.sampled < 3 * len(engine._runner.script):
                await asyncio.sleep(0.01)
            return [news async for news in answers]

    worker = Worker(engine)
    news = asyncio.run(late())
    assert [(n.answer, n.done) for n in news] == [(0, True), (1, True), (2, True)] and worker.unfinished == 0
    for one in news:
        assert [token.id for token in one.tokens] == engine._runner.script == one.completion.ids
    worker.close()


def test_many_clients_at_once(client):
    answers = []

    def one(stream):
        response = ask(client, stream=stream)
        answers.append(
            streamed(response)[0] if stream else response.json()["choices"][0]["message"]["content"]
        )

    threads = [threading.Thread(target=one, args=(n % 2 == 0,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [ANSWER] * 16


def test_a_stopped_stream_frees_the_engine(tokenizer, tmp_path):
    """A stop string ends an endless answer: the engine must not go on with it."""
    runner = Echo(tokenizer, slow=0.002)
    runner.script = runner.script[:-1]  # never ends
    engine = Engine(None, tokenizer, runner=runner, max_batch=4)
    with TestClient(make_app(Served(engine, tokenizer, OwnFormat(tokenizer), tmp_path), "small")) as client:
        assert ask(client, stop="Lovelace"[:1] + "x", max_tokens=3).status_code == 200
        assert ask(client, stop="founded").json()["choices"][0]["message"]["content"] == "Ada "
        for _ in range(100):
            if not engine.unfinished:
                break
            time.sleep(0.01)
        assert engine.unfinished == 0 and client.get("/health").json()["unfinished"] == 0


def test_the_first_token_is_timed_when_it_comes(client, engine):
    run, begun, go = engine._runner.run, threading.Event(), threading.Event()

    def waits(plan, ready):
        begun.set()
        assert go.wait(60)
        return run(plan, ready)

    def timed() -> str:
        return re.search("first_token_seconds_count (.*)", client.get("/metrics").text)[1]

    engine._runner.run = waits
    asking = threading.Thread(target=ask, args=(client,))
    asking.start()
    try:
        assert begun.wait(60) and timed() == "0"
    finally:
        go.set()
        asking.join()
    assert timed() == "1"


def test_a_step_that_fails_is_survived(client, engine):
    """The requests of that moment get an error, later ones their answer."""
    run = engine._runner.run

    def broken(plan, ready):
        engine._runner.run = run
        raise RuntimeError("out of memory")

    engine._runner.run = broken
    failed = ask(client)
    assert (
        failed.status_code == 500 and failed.json()["error"]["message"] == "the engine failed: RuntimeError"
    )
    assert ask(client).json()["choices"][0]["message"]["content"] == ANSWER
    engine._runner.run = broken
    assert "the engine failed" in ask(client, stream=True).text
    assert ask(client).json()["choices"][0]["message"]["content"] == ANSWER
