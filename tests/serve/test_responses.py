"""OpenAI's client.responses against a live server: answers, streams, tools, schemas, and what is refused."""

import json

import httpx
import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("openai")
import openai

from .live import other_model, served_model, serving
from .test_tools import TOOLS

WHO = "Who founded Tavor?"
FLAT = [{"type": "function", **tool["function"]} for tool in TOOLS]  # as this API has them


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with serving(served_model(tmp_path_factory.mktemp("model"), search=True)) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


OPTIONS = dict(model="small", instructions="Be brief.", temperature=0.8, top_p=0.9, extra_body={"seed": 4})


def test_a_response_says_what_the_chat_says(client):
    whole = client.responses.create(input=WHO, max_output_tokens=20, **OPTIONS)
    chat = client.chat.completions.create(
        model="small", max_tokens=20, temperature=0.8, top_p=0.9, seed=4,
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": WHO}],
    )  # fmt: skip
    assert whole.output_text == chat.choices[0].message.content and whole.output_text
    cut = chat.choices[0].finish_reason == "length"
    assert whole.status == ("incomplete" if cut else "completed") and whole.error is None
    assert (whole.incomplete_details.reason if cut else None) == ("max_output_tokens" if cut else None)
    assert whole.instructions == "Be brief." and whole.temperature == 0.8 and whole.max_output_tokens == 20
    assert whole.usage.input_tokens == chat.usage.prompt_tokens
    assert whole.usage.output_tokens == chat.usage.completion_tokens
    assert chat.usage.prompt_tokens_details.cached_tokens == whole.usage.input_tokens - 1
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": WHO}]},
    ]
    again = client.responses.create(input=items, max_output_tokens=20, **{**OPTIONS, "instructions": None})
    assert again.output_text == whole.output_text
    more = [*items, *(item.to_dict() for item in again.output), {"role": "user", "content": "And then?"}]
    assert client.responses.create(
        input=more, max_output_tokens=4, **{**OPTIONS, "instructions": None}
    ).output


def test_tokens_of_an_input_are_counted(client, url):
    for more in ({}, {"tools": FLAT[:0]}):
        counted = client.responses.input_tokens.count(
            model="small", input=WHO, instructions="Be brief.", **more
        )
        whole = client.responses.create(input=WHO, max_output_tokens=1, **OPTIONS)
        assert counted.object == "response.input_tokens" and counted.input_tokens == whole.usage.input_tokens
    assert client.responses.input_tokens.count(input="who " * 500).input_tokens > 500, "more than the context"
    wrong = httpx.post(f"{url}/v1/responses/input_tokens", json={"input": 3})
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "input"
    with pytest.raises(openai.NotFoundError, match="other"):
        client.responses.input_tokens.count(model="other", input=WHO)


def test_a_stream_is_the_response_in_typed_events(client):
    ask = dict(input=WHO, max_output_tokens=20, **OPTIONS)
    whole = client.responses.create(**ask, top_logprobs=2, include=["message.output_text.logprobs"])
    events = list(client.responses.create(**ask, top_logprobs=2, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", whole.status]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert "".join(event.delta for event in events[4:-4]) == whole.output_text == events[-4].text
    last = events[-1].response
    assert last.output_text == whole.output_text and last.usage.output_tokens == whole.usage.output_tokens
    told = [entry.logprob for event in events[4:-4] for entry in event.logprobs]
    assert told == [entry.logprob for entry in whole.output[0].content[0].logprobs][: len(told)] and told
    with client.responses.stream(**ask) as stream:  # the client's own reading of the events
        assert (
            stream.get_final_response().output_text == whole.output_text
            if whole.status == "completed"
            else True
        )


def test_a_schema_is_kept_to(client):
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [1, 2]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    wish = {"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}}
    made = client.responses.create(model="small", input=WHO, text=wish)
    assert json.loads(made.output_text) in ({"n": 1}, {"n": 2}) and made.text.format.type == "json_schema"
    wish["format"]["schema"] = {"type": "colour"}
    with pytest.raises(openai.BadRequestError, match="text.format: the schema cannot be kept to"):
        client.responses.create(model="small", input=WHO, text=wish)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "count"},
                                    {"type": "allowed_tools", "mode": "required", "tools": [FLAT[1]]}])  # fmt: skip
def test_calls_are_items_of_their_own(tmp_path, choice):
    pytest.importorskip("llguidance")
    with serving(other_model(tmp_path)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
        ask = dict(model="small", input=WHO, tools=FLAT, tool_choice=choice, extra_body={"seed": 1})
        made = client.responses.create(**ask)
        (call,) = made.output
        assert (
            call.type == "function_call" and call.name in ("weather", "count") and made.status == "completed"
        )
        assert choice == "required" or call.name == "count"
        json.loads(call.arguments)
        events = list(client.responses.create(**ask, stream=True))
        assert [event.type.removeprefix("response.") for event in events[2:]] == [
            "output_item.added", "function_call_arguments.delta", "function_call_arguments.done",
            "output_item.done", "completed",
        ]  # fmt: skip
        assert events[3].delta == events[5].item.arguments == call.arguments
        turns = [{"role": "user", "content": WHO}, call.to_dict(),
                 {"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}]  # fmt: skip
        assert client.responses.create(model="small", input=turns, tools=FLAT, max_output_tokens=5).output


@pytest.mark.parametrize(
    "body, told",
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id: this server keeps nothing"),
        ({"conversation": "conv_1"}, "conversation: this server keeps nothing"),
        ({"store": True}, "store: expected false"),
        ({"background": True}, "background: expected false"),
        ({"truncation": "auto"}, 'truncation: expected "disabled"'),
        ({"reasoning": {"effort": "low"}}, "reasoning: this server has no such field"),
        ({"text": {"verbosity": "low"}}, "text.verbosity: this server has no such field"),
        ({"include": ["reasoning.encrypted_content"]}, "include: expected message.output_text.logprobs, got"),
        ({"tools": [{"type": "web_search"}]}, "tools: expected tools of the type function"),
        ({"input": None}, "input: expected a text or a list of items"),
        ({"input": [{"type": "reasoning"}]}, "input[0]: expected a message, a function_call or"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0]: expected parts"),
        ({"input": []}, "input: expected a list of at least one message"),
        ({"max_output_tokens": 0}, "max_tokens = 0: expected at least 1"),
    ],
)
def test_what_cannot_be_asked_is_told(url, body, told):
    answer = httpx.post(f"{url}/v1/responses", json={"model": "small", "input": WHO, **body}, timeout=60)
    assert answer.status_code == 400 and told in answer.json()["error"]["message"], answer.text


def test_an_error_in_a_stream_is_an_event(tmp_path, monkeypatch):
    served = served_model(tmp_path)

    def broken(most=1):
        raise RuntimeError("out of memory")

    with serving(served) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
        with monkeypatch.context() as broke:
            broke.setattr(served.engine, "step", broken)
            last = list(client.responses.create(model="small", input=WHO, stream=True))[-1]
    assert last.type == "response.failed" and "the engine failed" in last.response.error.message
