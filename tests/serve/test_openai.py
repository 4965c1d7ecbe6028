"""OpenAI's own client against a live server with a small real model: its calls work as they are."""

import json
import math
import re
import threading
import time
from importlib.util import find_spec

import httpx
import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("openai")
import openai

from pyengine.engine import Engine, SamplingParams, constraint
from pyengine.engine.sampling import STUCK
from pyengine.errors import UserError
from pyengine.model import ModelConfig, Transformer
from pyengine.serve import grammar
from pyengine.serve.api import Limits
from pyengine.serve.grammar import Grammars
from pyengine.serve.scoring import likelihoods

from .live import idle, served_model, serving

WHO = [{"role": "user", "content": "Who founded Tavor?"}]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return served_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def url(served):
    with serving(served) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def direct(served, messages, **params) -> str:
    """What the engine answers when asked without a server."""
    params = SamplingParams(stop=served.format.stop, **params)
    worked = served_model(served.folder)  # an engine of its own
    done = worked.engine.generate([served.format.prompt(messages)], params)[0]
    return served.tokenizer.decode(done.ids, skip_special=True)


def test_chat_whole_and_streamed_is_what_the_engine_says(served, client):
    options = dict(model="small", messages=WHO, seed=4, max_tokens=20, temperature=0.8, top_p=0.9)
    whole = client.chat.completions.create(**options)
    text = direct(served, WHO, seed=4, max_tokens=20, temperature=0.8, top_p=0.9)
    assert whole.choices[0].message.content == text and whole.choices[0].finish_reason in ("stop", "length")
    assert whole.usage.completion_tokens <= 20 and whole.usage.prompt_tokens > 5
    chunks = list(
        client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[0].choices[0].delta.role == "assistant"


def test_what_the_cache_knew_of_a_prompt_is_told(tmp_path):
    with serving(served_model(tmp_path)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)

        def cached(text, **more):
            usage = client.completions.create(model="small", prompt=text, max_tokens=2, **more).usage
            assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
            return usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens

        prompt = "Who founded Tavor? " * 20
        size, known = cached(prompt, n=3)  # three answers share it: what the first of them found
        assert size > 64 and known == 0
        assert cached(prompt) == (size, size - 1)  # the last is computed, for its logits
        longer, known = cached(prompt + "I do not know.")
        assert longer > size and known == 64, "a full page is shared, what is behind it is another's"
        assert cached([prompt, "Ada"])[1] == size - 1


def test_n_answers_are_those_of_n_seeds(client):
    options = dict(model="small", messages=WHO, max_tokens=12)
    several = client.chat.completions.create(**options, n=3, seed=10)
    texts = [choice.message.content for choice in several.choices]
    assert [choice.index for choice in several.choices] == [0, 1, 2] and len(set(texts)) > 1
    for i, text in enumerate(texts):
        one = client.chat.completions.create(**options, seed=10 + i)
        assert one.choices[0].message.content == text
    streamed = {0: "", 1: "", 2: ""}
    for chunk in client.chat.completions.create(**options, n=3, seed=10, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(streamed.values()) == texts


def test_logprobs_add_up(client):
    options = dict(
        model="small", messages=WHO, max_tokens=8, seed=1, logprobs=True, top_logprobs=5, temperature=2.0
    )
    whole = client.chat.completions.create(**options)
    content = whole.choices[0].logprobs.content
    assert (
        b"".join(bytes(t.bytes) for t in content).decode("utf-8", "replace")
        == whole.choices[0].message.content
    )
    for token in content:
        top = [t.logprob for t in token.top_logprobs]
        assert len(top) == 5 and top == sorted(top, reverse=True) and sum(map(math.exp, top)) <= 1.0001
        assert token.logprob <= top[0] + 1e-6
    chunks = client.chat.completions.create(**options, stream=True)
    assert [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content] == content
    old = client.completions.create(model="small", prompt="Who", max_tokens=6, seed=1, logprobs=2).choices[0]
    assert len(old.logprobs.tokens) == len(old.logprobs.text_offset) == len(old.logprobs.top_logprobs)
    assert "".join(old.logprobs.tokens) == old.text and old.logprobs.text_offset[0] == 0


def test_completions_of_several_prompts_texts_and_ids(served, client):
    ids = served.tokenizer.encode("Ada")
    options = dict(model="small", max_tokens=5, temperature=0)
    both = client.completions.create(prompt=["Who", "Ada"], **options)
    assert [c.index for c in both.choices] == [0, 1]
    start = [served.tokenizer.special_ids["<|endoftext|>"]]
    assert client.completions.create(prompt=start + ids, **options).choices[0].text == both.choices[1].text
    echoed = client.completions.create(prompt="Ada", echo=True, **options)
    assert echoed.choices[0].text == "Ada" + both.choices[1].text


def test_an_echo_tells_how_likely_the_prompt_is(served, client):
    options = dict(model="small", temperature=0, logprobs=3)
    text, ids = "Who founded Tavor?", served.tokenizer.encode("Who founded Tavor?")
    start = served.tokenizer.special_ids["<|endoftext|>"]
    engine = served_model(served.folder).engine  # of its own: the server's belongs to its thread
    (truth,) = likelihoods(engine.model, [([start, *ids], len(ids))], 3)
    told = client.completions.create(prompt=text, echo=True, max_tokens=4, **options).choices[0]
    assert told.logprobs.token_logprobs[: len(ids)] == truth.logprobs.tolist()
    assert len(told.logprobs.tokens) == len(ids) + 4 and "".join(told.logprobs.tokens) == told.text
    assert told.logprobs.text_offset[len(ids)] == len(text)
    for token, own, top in zip(
        told.logprobs.tokens, told.logprobs.token_logprobs, told.logprobs.top_logprobs, strict=True
    ):
        assert top[token] == own and max(top.values()) >= own and len(top) in (3, 4)
    alone = client.completions.create(prompt=[text, ids], echo=True, max_tokens=0, **options)
    assert [c.text for c in alone.choices] == [text, text] and alone.usage.completion_tokens == 0
    first, second = (choice.logprobs for choice in alone.choices)
    assert first.token_logprobs == truth.logprobs.tolist() and alone.choices[0].finish_reason == "length"
    assert second.token_logprobs[0] is second.top_logprobs[0] is None  # nothing stands before it
    assert len(second.token_logprobs) == len(ids)
    chunks = client.completions.create(prompt=text, echo=True, max_tokens=4, stream=True, **options)
    streamed = [p for c in chunks if c.choices[0].logprobs for p in c.choices[0].logprobs.token_logprobs]
    assert streamed == told.logprobs.token_logprobs
    # every sampled token has the likelihood that it has once it is a prompt
    again = [start, *ids, *engine.generate([[start, *ids]], SamplingParams(4, 0.0))[0].ids]
    (later,) = likelihoods(engine.model, [(again, 4)])
    assert told.logprobs.token_logprobs[-4:] == later.logprobs.tolist()
    with pytest.raises(openai.BadRequestError, match="suffix"):
        client.completions.create(model="small", prompt=text, suffix="!")


def test_an_answer_goes_on_from_a_beginning(client):
    options = dict(model="small", temperature=0, max_tokens=8)
    whole = client.chat.completions.create(messages=WHO, **options).choices[0].message.content
    opening = whole[: whole.index(" ", 1)] if " " in whole[1:] else whole[:2]
    begun = [*WHO, {"role": "assistant", "content": opening}]
    more = {"extra_body": {"continue_final_message": True}}
    rest = client.chat.completions.create(messages=begun, **options, **more).choices[0].message.content
    assert (opening + rest).startswith(whole), "a beginning that the model would have written changes nothing"
    for wrong in (WHO, [begun[-1]]):
        with pytest.raises(openai.BadRequestError, match="continue_final_message"):
            client.chat.completions.create(messages=wrong, **options, **more)


def test_json_by_a_schema(client):
    pytest.importorskip("llguidance")
    schema = {
        "type": "object", "additionalProperties": False, "required": ["name", "sizes", "kind"],
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
            "kind": {"enum": ["town", "river"]},
        },
    }  # fmt: skip
    wish = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema, "strict": True}}
    for seed in range(5):
        answer = client.chat.completions.create(
            model="small", messages=WHO, response_format=wish, seed=seed, max_tokens=150
        )
        made = json.loads(answer.choices[0].message.content)
        assert answer.choices[0].finish_reason == "stop" and list(made) == ["name", "sizes", "kind"]
        assert made["kind"] in ("town", "river") and len(made["name"]) <= 8 and len(made["sizes"]) <= 3
    with pytest.raises(openai.BadRequestError, match="schema"):
        bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "colour"}}}
        client.chat.completions.create(model="small", messages=WHO, response_format=bad)


def test_constraints_as_other_servers_name_them(client):
    pytest.importorskip("llguidance")

    def said(**wish):
        answer = client.chat.completions.create(
            model="small", messages=WHO, max_tokens=60, seed=3, temperature=1.5, extra_body=wish
        ).choices[0]
        assert answer.finish_reason == "stop"
        return answer.message.content

    towns = [" Tavor", 'Ada "A" L\u00e9', "x\ny"]
    for wish in ({"guided_choice": towns}, {"structured_outputs": {"choice": towns}}):
        assert said(**wish) in towns
    for wish in ({"guided_regex": "[0-9]{3}-x"}, {"structured_outputs": {"regex": "[0-9]{3}-x"}}):
        assert re.fullmatch("[0-9]{3}-x", said(**wish))
    for rules in ('root ::= "a" ("b" | "c")+ "."', 'start: "a" /[bc]+/ "."'):  # llama.cpp's and Lark's way
        for wish in ({"grammar": rules}, {"structured_outputs": {"grammar": rules}}):
            assert re.fullmatch(r"a[bc]+\.", said(**wish, logit_bias={"46": 8}))
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [1, 2]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    for wish in ({"guided_json": schema}, {"json_schema": schema}, {"guided_json": json.dumps(schema)},
                 {"structured_outputs": {"json": schema}}):  # fmt: skip
        assert json.loads(said(**wish)) in ({"n": 1}, {"n": 2})
    for wish, told in (
        ({"guided_regex": "("}, "guided_regex: the expression cannot be kept to: .*unclosed"),
        ({"grammar": "root ::= leaf"}, "grammar: the grammar cannot be kept to: .*'leaf' not found"),
        ({"guided_choice": []}, "guided_choice: expected a list of texts"),
        ({"guided_json": "{"}, "guided_json: expected a schema"),
        ({"structured_outputs": {"regex": 3}}, "structured_outputs.regex: expected a text"),
        ({"structured_outputs": {"tag": "x"}}, "structured_outputs.tag: this server has no such field"),
        ({"grammar": "x", "guided_regex": "x"}, "keeps to one of them"),
    ):
        with pytest.raises(openai.BadRequestError, match=told):
            said(**wish)


@pytest.fixture(scope="module")
def grammars(served):
    pytest.importorskip("llguidance")
    return Grammars(served.tokenizer, served.format.stop)


@pytest.mark.parametrize(
    "kind, given",
    [
        ("regex", "(a{1000}){1000}"),
        ("regex", "b(a{1000}){1000}"),
        ("regex", "(.{1,900}x){900}|(.{1,900}y){900}"),
        ("json", {"type": "string", "pattern": "^((ab){1000}){1000}$"}),
        ("json", {"enum": ["".join(chr(97 + i * j % 26) for j in range(30)) for i in range(20_000)]}),
        ("grammar", "root ::= (([a-z]{900}){900}){900}"),
        ("choice", [str(i) for i in range(50_000)]),
        ("grammar", "root ::= r0\n" + "".join(f"r{i} ::= [a-z] r{i + 1}\n" for i in range(4000))),
        ("json", {"$ref": "#/$defs/0", "$defs": {str(i): {"items": {"$ref": f"#/$defs/{i + 1}"}, "type": "array"}
                                                 for i in range(3000)} | {"3000": {"type": "null"}}}),
    ],
)  # fmt: skip
def test_a_hostile_constraint_is_refused_before_others_notice(grammars, kind, given):
    """Or kept to, where it is only long. In the server's own process the first would take it 1 to 7 seconds, and the
    last two would end it."""
    start = time.thread_time()
    try:
        getattr(grammars, kind)(given)
    except UserError as error:
        assert re.match("the (expression|schema|grammar|choice) cannot be kept to: .", str(error))
        assert "\n" not in str(error)
    assert time.thread_time() - start < 0.5
    assert grammars.regex("[a-z]{3}").start()


def test_a_constraint_that_takes_too_long_is_refused_or_ends_the_answer(served, grammars, monkeypatch):
    engine = served_model(served.folder).engine
    params = SamplingParams(5, grammar=grammars.regex("[a-z]{9}"), stop=served.format.stop)
    monkeypatch.setattr(grammar, "SLOWEST", 0)
    with pytest.raises(UserError, match="the expression cannot be kept to: it is too large"):
        grammars.regex("[0-9]*")
    (ended,) = engine.generate([[1, 2]], params)
    assert ended.finish_reason == "refused" and ended.error == f"{STUCK} it is too large"


def test_a_constraint_that_takes_long_holds_up_its_own_answer_alone(served, client, monkeypatch):
    """The library's, streamed; and whoever leaves meanwhile is not waited for."""
    asked = dict(model="small", messages=WHO, seed=3, max_tokens=30, stream=True)
    rule = {"extra_body": {"guided_regex": "[a-z]{4}( [a-z]{4}){3}"}}

    def text(stream):
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    plain, kept = (
        text(client.chat.completions.create(**asked)),
        text(client.chat.completions.create(**asked, **rule)),
    )
    allow, begun, opened = grammar.Follower.allow, threading.Event(), threading.Event()

    def held_up(self, words):
        if threading.current_thread().name != "engine":
            begun.set()
            assert opened.wait(60)
        allow(self, words)

    monkeypatch.setattr(grammar.Follower, "allow", held_up)
    monkeypatch.setattr(constraint, "QUICK", 0.0)  # the engine's thread computes the first mask, and no other
    try:
        held, left = (client.chat.completions.create(**asked, **rule) for _ in range(2))
        assert begun.wait(60)
        assert text(client.chat.completions.create(**asked)) == plain
        left.close()
        ends = time.monotonic() + 60
        while served.engine.unfinished > 1:
            assert time.monotonic() < ends
            time.sleep(0.01)
    finally:
        opened.set()
    assert text(held) == kept and re.fullmatch("[a-z]{4}( [a-z]{4}){3}", kept)


@pytest.mark.parametrize("expression", ["(a{1000}){1000}", "b(a{1000}){1000}", "(?:a?){500}a{500}"])
def test_what_the_library_gives_up_after_a_token_is_refused_before_any(grammars, expression):
    with pytest.raises(UserError, match="the expression cannot be kept to: .*too many"):
        grammars.regex(expression)


@pytest.mark.parametrize("kind, given, told", [
    ("json", {"$ref": "#"}, "the schema cannot be kept to: no text fits it"),
    ("json", {"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}}, "no text fits it"),
    ("grammar", "root ::= a\na ::= root", "the grammar cannot be kept to: no text fits it"),
    ("json", {"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "no text that fits it ends"),
    ("grammar", 'start: "x" start', "no text that fits it ends"),
    ("json", {"$ref": "#/$defs/b"}, "'/$defs/b' does not exist"),
])  # fmt: skip
def test_a_constraint_that_leads_nowhere_is_told_in_plain_words(grammars, kind, given, told):
    with pytest.raises(UserError) as caught:
        getattr(grammars, kind)(given)
    assert told in str(caught.value)


@pytest.mark.parametrize("more", [-1, 1, 40, 2000])
def test_a_constraint_on_a_model_with_more_ids_or_fewer_than_its_tokenizer(served, grammars, more):
    """No id beyond the tokenizer's is sampled, and no step fails."""
    ids = served.tokenizer.vocab_size + more
    model = Transformer(ModelConfig.from_depth(1, ids, hidden_size=32, max_position_embeddings=64), seed=3)
    params = SamplingParams(
        9, temperature=3.0, seed=1, grammar=grammars.regex("[0-9]{3}-x"), stop=served.format.stop
    )
    for answer in Engine(model, max_batch=2).generate([[1, 2]] * 2, params):
        assert re.fullmatch("[0-9]{3}-x", served.tokenizer.decode(answer.ids, skip_special=True))


def test_a_constraint_given_up_within_an_answer_is_the_askers_mistake(client):
    """Whole, in a stream and as a response, beside an answer that goes on."""
    pytest.importorskip("llguidance")
    told = f"{STUCK} .*too many expressions"
    asked = {"max_tokens": 80, "extra_body": {"guided_regex": "[0-9]{12}(a{1000}){1000}"}}
    ask = {"model": "small", "messages": WHO, **asked}
    plain = {"model": "small", "messages": WHO, "seed": 4, "max_tokens": 80}
    text = client.chat.completions.create(**plain).choices[0].message.content
    neighbour = client.chat.completions.create(**plain, stream=True)
    with pytest.raises(openai.BadRequestError, match=told):
        client.chat.completions.create(**ask)
    with pytest.raises(openai.APIError, match=told) as error:
        list(client.chat.completions.create(**ask, stream=True))
    assert error.value.type == "invalid_request_error"
    response = {"model": "small", "input": "Who?", "max_output_tokens": 80, "extra_body": asked["extra_body"]}
    last = list(client.responses.create(**response, stream=True))[-1]
    assert last.type == "response.failed" and last.response.error.code == "invalid_prompt"
    assert re.match(told, last.response.error.message)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in neighbour) == text


def test_fields_as_other_servers_name_them(served, client):
    def ask(**more):
        options = dict(model="small", messages=WHO, seed=5, max_tokens=24, temperature=0.9)
        return client.chat.completions.create(**options, extra_body=more)

    def said(**more):
        return ask(**more).choices[0].message.content

    text = said()
    defaults = {"skip_special_tokens": True, "use_beam_search": False, "cache_prompt": True, "store": True,
                "add_generation_prompt": True, "metadata": {"a": "b"}, "user": "u", "stop_token_ids": []}  # fmt: skip
    assert text == said(top_k=-1) == said(top_k=0) == said(chat_template_kwargs={}) == said(**defaults)
    params = SamplingParams(24, seed=5, temperature=0.9, stop=served.format.stop)
    ids = served_model(served.folder).engine.generate([served.format.prompt(WHO)], params)[0].ids
    at = next(i for i in range(1, len(ids)) if ids[i] not in ids[:i])
    cut = ask(stop_token_ids=[ids[at]], ignore_eos=True)
    assert cut.choices[0].finish_reason == "stop" and cut.usage.completion_tokens == at + 1
    assert cut.choices[0].message.content == served.tokenizer.decode(ids[:at]).removeprefix(" ")
    longer = ask(stop_token_ids=[ids[at]], min_tokens=20)
    assert longer.usage.completion_tokens >= 20
    assert ask(min_tokens=24, logit_bias={str(served.format.stop[0]): 100}).usage.completion_tokens == 24
    for wish, told in (
        ({"min_tokens": 25}, "min_tokens = 25: expected at most max_tokens = 24"),
        ({"min_tokens": -1}, "min_tokens = -1: expected at least 0"),
        ({"min_tokens": 2, "guided_choice": ["a"]}, "min_tokens: an answer ends where its constraint does"),
        ({"top_k": -2}, "top_k = -2: expected at least 0"),
        ({"stop_token_ids": [10**9]}, "stop_token_ids: expected up to 64 ids below"),
        ({"stop_token_ids": "2"}, "stop_token_ids: expected an array"),
        ({"skip_special_tokens": False}, "skip_special_tokens: expected true"),
        ({"add_generation_prompt": False}, "add_generation_prompt: expected true, or false where"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "no variable 'enable_thinking' .none"),
    ):
        if "guided_choice" not in wish or find_spec("llguidance"):
            with pytest.raises(openai.BadRequestError, match=told):
                said(**wish)


def test_penalties_and_biases_reach_the_sampler(served, client):
    only = client.chat.completions.create(
        model="small",
        messages=WHO,
        max_tokens=4,
        logit_bias={"65": 100},
        extra_body={"top_k": 1, "min_p": 0.5},
    )
    assert len(set(only.choices[0].message.content)) == 1
    endless = {str(i): -100 for i in served.format.stop}
    options = dict(model="small", messages=WHO, max_tokens=30, temperature=0, logit_bias=endless)
    spread = client.chat.completions.create(**options, presence_penalty=2, frequency_penalty=2)
    plain = client.chat.completions.create(**options)
    assert spread.choices[0].message.content != plain.choices[0].message.content


def test_a_search_is_the_clients_if_it_brings_the_tool(served, client):
    search = served.tokenizer.special_ids["<|search|>"]
    tool = {"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}
    end = served.tokenizer.special_ids["<|end|>"]
    options = dict(model="small", messages=WHO, max_tokens=60, seed=2, presence_penalty=80,
                   logit_bias={str(search): 60, str(end): 3})  # fmt: skip
    asked = client.chat.completions.create(**options, tools=[tool]).choices[0]
    assert asked.finish_reason == "tool_calls"
    call = asked.message.tool_calls[0]
    assert call.function.name == "search" and "query" in json.loads(call.function.arguments)
    deltas = [
        c.choices[0].delta for c in client.chat.completions.create(**options, tools=[tool], stream=True)
    ]
    streamed = [d.tool_calls[0] for d in deltas if d.tool_calls]
    assert [s.function for s in streamed] == [call.function] or streamed[0].function.name == "search"
    turns = [*WHO, asked.message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": "Ada."}]
    assert client.chat.completions.create(model="small", messages=turns, max_tokens=5).choices[0].message
    assert client.chat.completions.create(**options).choices[0].finish_reason == "stop", "nobody searches"


def test_a_search_of_the_server_is_hidden_or_shown(tmp_path):
    served = served_model(tmp_path, search=True)
    special = served.tokenizer.special_ids
    body = {
        "messages": WHO, "max_tokens": 60, "seed": 2, "events": True, "logprobs": True,
        "logit_bias": {str(special["<|search|>"]): 60, str(special["<|end|>"]): 3}, "presence_penalty": 80,
    }  # fmt: skip
    with serving(served) as url:
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()["choices"][0]
        body["tool_choice"] = "none"
        none = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()["choices"][0]
    kinds = [token["kind"] for token in answer["tokens"]]
    assert kinds[0] == "query" and "result" in kinds
    found = "".join(t["text"] for t in answer["tokens"] if t["kind"] == "result")
    assert "Ada founded Tavor.<|end|>" in found and "Ada founded" not in answer["message"]["content"]
    assert all("logprob" in t for t in answer["tokens"] if not t.get("forced"))
    assert "result" not in [token["kind"] for token in none["tokens"]]


def test_models_tokens_health_metrics(served, client, url):
    assert client.models.list().data[0].id == "small" and client.models.retrieve("small").id == "small"
    made = httpx.post(f"{url}/tokenize", json={"prompt": "Ada \u00e9t\u00e9 <|end|>"}).json()
    assert (
        made["count"] == len(made["tokens"]) and served.tokenizer.special_ids["<|end|>"] not in made["tokens"]
    )
    assert (
        httpx.post(f"{url}/detokenize", json={"tokens": made["tokens"]}).json()["prompt"]
        == "Ada \u00e9t\u00e9 <|end|>"
    )
    chat = httpx.post(f"{url}/tokenize", json={"messages": WHO}).json()
    assert chat["tokens"] == served.format.prompt(WHO)
    assert httpx.get(f"{url}/health").json()["status"] == "ok"
    client.chat.completions.create(model="small", messages=WHO, max_tokens=3)
    metrics = httpx.get(f"{url}/metrics").text
    numbers = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    assert float(numbers["pyengine_generated_tokens_total"]) > 0 and numbers["pyengine_pages_held"] == "0"
    assert float(numbers['pyengine_responses_total{path="/v1/chat/completions",status="200"}']) > 0


def test_errors_are_the_clients_exceptions(client, url):
    def create(**options):
        return client.chat.completions.create(**{"model": "small", "messages": WHO, **options})

    with pytest.raises(openai.NotFoundError, match="this server has 'small'"):
        create(model="gpt-7")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        create(temperature=-1)
    with pytest.raises(openai.BadRequestError) as caught:
        create(messages=[{"role": "user", "content": "x " * 500}])
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "messages"
    with pytest.raises(openai.BadRequestError, match="role"):
        create(messages=[{"role": "king", "content": "x"}])
    for path, status in (("/v1/nothing", 404), ("/v1/chat/completions", 405)):
        error = httpx.get(url + path)
        assert error.status_code == status and error.json()["error"]["message"]


def test_a_client_that_goes_away_frees_its_pages(served, client, url, monkeypatch):
    step = served.engine.step

    def slow_step():  # no answer is done in 0.15 s
        time.sleep(5e-3)
        return step()

    monkeypatch.setattr(served.engine, "step", slow_step)
    long = dict(model="small", messages=WHO, max_tokens=200, temperature=2.0,
                logit_bias={str(i): -100 for i in served.format.stop})  # fmt: skip
    stream = client.chat.completions.create(**long, stream=True)
    for _, _ in zip(range(4), stream, strict=False):
        pass
    assert served.engine.pages_held
    stream.close()
    with pytest.raises(openai.APITimeoutError):  # an answer asked for whole, too
        client.with_options(timeout=0.15).chat.completions.create(**{**long, "n": 8})
    before = served.engine.stats.sampled
    idle(served.engine)
    assert served.engine.stats.sampled - before < 8 * 100, "it went on writing for nobody"


def test_limits_of_time_and_queue(tmp_path):
    served = served_model(tmp_path, context=4096, max_batch=2)
    endless = {"messages": WHO, "logit_bias": {str(i): -100 for i in served.format.stop}}
    with serving(served, Limits(body=2000, waiting=2, seconds=0.4)) as url:
        post = f"{url}/v1/chat/completions"
        start = time.monotonic()
        answer = httpx.post(post, json=endless, timeout=60).json()["choices"][0]
        assert (
            answer["finish_reason"] == "length"
            and answer["message"]["content"]
            and time.monotonic() - start < 3
        )
        busy = httpx.post(post, json={**endless, "n": 3})
        assert busy.status_code == 429 and busy.json()["error"]["type"] == "rate_limit_error"
        assert httpx.post(post, content=b" " * 2001).status_code == 413


def test_keys_hosts_and_origins(served):
    with serving(served, api_key="secret", hosts=("127.0.0.1", "localhost")) as url:
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()
        assert openai.OpenAI(base_url=f"{url}/v1", api_key="secret").models.list().data
        assert (
            httpx.get(f"{url}/metrics").status_code == 401 and httpx.get(f"{url}/health").status_code == 200
        )
        assert "default-src 'none'" in httpx.get(f"{url}/").headers["content-security-policy"]
        key = {"Authorization": "Bearer secret"}
        assert httpx.get(f"{url}/v1/models", headers={**key, "Host": "evil.example"}).status_code == 403
        assert (
            httpx.get(f"{url}/v1/models", headers={**key, "Origin": "http://evil.example"}).status_code == 403
        )
        assert httpx.get(f"{url}/v1/models", headers={**key, "Origin": url}).status_code == 200
