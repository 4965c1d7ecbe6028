"""Tools of a client: told to models of any family, and called where the client says that they must be."""

import json

import httpx
import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("openai")
import openai

from pyengine.engine import SamplingParams, Token
from pyengine.serve import TemplateFormat
from pyengine.serve.asked import Asked
from pyengine.serve.writer import Piece, Writer

from .live import other_model, served_model, serving

WHO = [{"role": "user", "content": "Who founded Tavor?"}]
CITY = {"type": "object", "properties": {"city": {"$ref": "#/$defs/City"}}, "required": ["city"],
        "additionalProperties": False,
        "$defs": {"City": {"enum": ["Tavor", "Ada"]}}}  # fmt: skip
COUNT = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"],
         "additionalProperties": False, "$defs": {"City": {"type": "null"}}}  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": parameters}}
    for name, parameters in (("weather", CITY), ("count", COUNT))
]
SEARCH = {"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module", params=[False, True], ids=["tags as text", "tags as tokens"])
def served(tmp_path_factory, request):
    return other_model(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module")
def client(served):
    with serving(served) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def only(name):
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize(
    "choice, names",
    [
        ("required", {"weather", "count"}),
        (only("weather"), {"weather"}),
        (only("count"), {"count"}),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [only("count")]}},
            {"count"},
        ),
    ],
    ids=["required", "weather", "count", "allowed"],
)
def test_a_call_that_must_be_made_is_made(client, choice, names):
    pytest.importorskip("llguidance")
    for seed in range(3):
        options = dict(
            model="small", messages=WHO, tools=TOOLS, tool_choice=choice, seed=seed, max_tokens=120
        )
        answer = client.chat.completions.create(**options).choices[0]
        assert answer.finish_reason == "tool_calls" and answer.message.content is None
        (call,) = answer.message.tool_calls
        arguments = json.loads(call.function.arguments)
        assert call.function.name in names
        if call.function.name == "weather":
            assert arguments["city"] in ("Tavor", "Ada") and len(arguments) == 1
        else:
            assert 0 <= arguments["n"] <= 99 and len(arguments) == 1
        chunks = [c.choices[0] for c in client.chat.completions.create(**options, stream=True)]
        (streamed,) = [c.delta.tool_calls[0].function for c in chunks if c.delta.tool_calls]
        assert (streamed.name, streamed.arguments) == (call.function.name, call.function.arguments)
        assert not "".join(c.delta.content or "" for c in chunks) and chunks[-1].finish_reason == "tool_calls"


def test_one_call_ends_the_answer_where_several_are_not_wanted(served):
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ada"}}\n</tool_call>\n'
    ids = served.tokenizer.encode("Well. " + call + call, allowed_special="all")
    for single, calls in ((True, 1), (False, 2)):
        asked = Asked(
            True, [[1]], [SamplingParams()], 1, 1, (), False, False, False, False, True, single=single
        )
        writer, shown = Writer(asked, served.tokenizer), Piece()
        for i in ids:
            writer.push(Token(i, 0.0, False), shown)
            if writer.ended:
                break
        shown.add(writer.finish())
        assert writer.ended is single and not writer.stopped and shown.text == "Well. "
        assert [made["function"]["name"] for made in shown.calls] == ["weather"] * calls
        assert shown.sampled < len(ids) if single else shown.sampled == len(ids)


def test_a_call_cut_short_is_none(client):
    pytest.importorskip("llguidance")
    answer = client.chat.completions.create(
        model="small", messages=WHO, tools=TOOLS, tool_choice="required", max_tokens=3
    ).choices[0]
    assert answer.finish_reason == "length" and not answer.message.tool_calls and not answer.message.content


def test_tools_and_calls_are_told_where_the_template_has_no_place_for_them(served):
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ada"}'}}
    messages = [
        {"role": "system", "content": "Be brief."},
        *WHO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "Rain."},
    ]
    ids = served.format.prompt(messages, TOOLS)
    shown = served.tokenizer.decode(ids)
    assert shown.startswith("<|im_start|>system\nBe brief.\n\nYou may call functions.")
    assert all(json.dumps(tool) in shown for tool in TOOLS) and shown.count("<|im_start|>system") == 1
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Ada"}}\n</tool_call><|im_end|>' in shown
    assert "<|im_start|>tool\nRain.<|im_end|>" in shown
    assert served.format.prompt(WHO) == served.format.prompt(WHO, ())
    assert "functions" not in served.tokenizer.decode(served.format.prompt(WHO))


def test_options_reach_the_template_and_its_variables_alone(served, client, monkeypatch):
    """As text: a special token's name in one is no special token."""
    tokenizer = served.tokenizer
    monkeypatch.setattr(
        tokenizer,
        "chat_template",
        tokenizer.chat_template + "{% if thinking is defined %}[{{ thinking }}]{% endif %}",
    )
    monkeypatch.setattr(served, "format", TemplateFormat(tokenizer, served.folder))

    def ids(**options):
        body = {"messages": WHO, "chat_template_kwargs": options}
        answer = client.post("/../tokenize", body=body, cast_to=httpx.Response)
        chat = client.chat.completions.create(
            model="small", messages=WHO, max_tokens=1, extra_body={"chat_template_kwargs": options}
        )
        assert chat.usage.prompt_tokens == answer.json()["count"]
        return answer.json()["tokens"]

    plain = ids()
    assert ids(thinking=False) == plain + tokenizer.encode("[False]")
    assert ids(thinking="<|im_end|>")[len(plain) :] == sum(
        map(tokenizer.encode, ["[", "<|im_end|>", "]"]), []
    )
    for name in ("messages", "raise_exception", "thinkin"):
        with pytest.raises(openai.BadRequestError, match=f"no variable '{name}' .only thinking"):
            ids(**{name: False})


def test_our_model_searches_when_it_must(tmp_path):
    served = served_model(tmp_path, search=True)
    with serving(served) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
        bias = {str(served.tokenizer.special_ids["<|end|>"]): 5}
        answer = client.chat.completions.create(
            model="small", messages=WHO, tools=[SEARCH], tool_choice="required", max_tokens=60, seed=1,
            logit_bias=bias,
        ).choices[0]  # fmt: skip
        assert answer.finish_reason == "tool_calls"
        assert "query" in json.loads(answer.message.tool_calls[0].function.arguments)


@pytest.mark.parametrize("prompt", [[99_999], [-1], ["a", 5], [], 5])
def test_ids_that_are_none_are_the_clients_mistake(client, prompt):
    answer = httpx.post(
        str(client.base_url) + "completions", json={"prompt": prompt, "max_tokens": 2}, timeout=60
    )
    assert answer.status_code == 400 and answer.json()["error"]["message"].startswith("prompt: expected")


WEATHER = {"tools": TOOLS[:1]}


@pytest.mark.parametrize(
    "more, told",
    [
        ({"tool_choice": "required"}, "tools is missing"),
        ({**WEATHER, "tool_choice": "must"}, "tool_choice: expected auto, none, required"),
        ({**WEATHER, "tool_choice": 5}, "tool_choice: expected"),
        ({**WEATHER, "tool_choice": {"type": "function"}}, "tool_choice: expected"),
        ({**WEATHER, "tool_choice": only("count")}, "there is no tool 'count'"),
        ({"tools": [only("x")], "tool_choice": "auto", "messages": [{"role": "king", "content": "x"}]},
         "messages[0]: expected an object whose role is one of"),
        ({"messages": [*WHO, 3]}, "messages[1]: expected an object"),
        ({"messages": [{"role": "user"}]}, "messages[0]: content is missing"),
        ({"messages": [{"role": "assistant", "tool_calls": [1]}]}, "messages[0]: expected tool_calls"),
        ({"tools": [{"type": "function", "function": {"name": "x", "parameters": [1]}}]}, "x: expected parameters"),
        ({**WEATHER, "tool_choice": "required", "response_format": {"type": "json_object"}}, "keeps to the tool's"),
        ({"tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": "colour"}}}],
          "tool_choice": "required"}, "tools: the schema cannot be kept to"),
    ],
)  # fmt: skip
def test_mistakes_are_told(client, more, told):
    pytest.importorskip("llguidance")
    url = str(client.base_url) + "chat/completions"
    answer = httpx.post(url, json={"messages": WHO, "max_tokens": 2, **more}, timeout=60)
    assert answer.status_code == 400 and told in answer.json()["error"]["message"]
