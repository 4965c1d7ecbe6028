"""The chat template: our ids and mask are those that transformers renders from the Jinja text."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from pyengine.errors import UserError
from pyengine.text import SPECIAL_TOKENS, Tokenizer, render
from pyengine.text.chat import check_mask, parse_assistant, search_call

FUZZ = settings(max_examples=100, deadline=None)
# Special names in contents are plain text with us and control tokens in other programs: left out of equality.
CONTENT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["\n a \n", "{{ x }}", "{% if %}", " "]
)
QUERY = CONTENT | st.sampled_from(
    [
        'a "quoted" \\ \\\\n "query": {}',
        "\n\t\x01\x7f\b\f\r",
        "\u00e9\U0001f600\ud7ff",
        "a/b",
        "\\u0041",
        '}"',
    ]
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["How many moons has Tavor? Tavor has two moons. I do not know. 12345"] * 3, 340)


@pytest.fixture(scope="module")
def peer(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    tokenizer.save(folder)
    return AutoTokenizer.from_pretrained(folder)


@st.composite
def conversations(draw):
    messages = [{"role": "system", "content": draw(CONTENT)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(CONTENT)})
        if draw(st.booleans()):
            call = search_call(draw(QUERY), draw(st.none() | CONTENT))
            function = call["tool_calls"][0]["function"]
            query = json.loads(function["arguments"])
            form = draw(st.sampled_from(["object", "ascii", "spaced", "as is"]))
            if form != "as is":
                spaced = json.dumps(query, indent=2)
                function["arguments"] = {"object": query, "ascii": json.dumps(query), "spaced": spaced}[form]
            messages += [call, {"role": "tool", "content": draw(CONTENT)}]
        messages.append({"role": "assistant", "content": draw(CONTENT)})
    return messages[: draw(st.sampled_from([len(messages), len(messages) - 1]))] or messages


@FUZZ
@given(messages=conversations(), prompt=st.booleans())
def test_equals_transformers(tokenizer, peer, messages, prompt):
    ids, mask = (
        render(messages, tokenizer, add_generation_prompt=prompt) if _sayable(messages) else (None, None)
    )
    if ids is None:
        return
    theirs = peer.apply_chat_template(
        messages, add_generation_prompt=prompt, return_dict=True, return_assistant_tokens_mask=True
    )
    assert theirs["input_ids"] == ids
    assert theirs["assistant_masks"] == mask


def _sayable(messages) -> bool:
    return not any("<|" in json.dumps(m) for m in messages)


def test_layout(tokenizer):
    t = tokenizer
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Who?"},
        search_call("Tavor"),
        {"role": "tool", "content": "Two moons."},
        {"role": "assistant", "content": "Two."},
    ]
    ids, mask = render(messages, t)
    query = [t.search, *t.encode(" Tavor"), t.end]
    answer = [*t.encode(" Two."), t.end]
    forced = [t.result, *t.encode(" Two moons."), t.end, t.assistant]
    prompt = [
        t.endoftext,
        t.system,
        *t.encode(" Be kind."),
        t.end,
        t.user,
        *t.encode(" Who?"),
        t.end,
        t.assistant,
    ]
    assert ids == prompt + query + forced + answer
    assert mask == [0] * len(prompt) + [1] * len(query) + [0] * len(forced) + [1] * len(answer)
    assert render(messages[:2], t, add_generation_prompt=True)[0] == prompt
    assert parse_assistant(query, t) == search_call("Tavor")
    assert parse_assistant(answer, t) == messages[-1] == parse_assistant(answer[:-1], t)


def test_weight_zero_is_not_trained(tokenizer):
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "bad", "weight": 0},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "good"},
    ]
    ids, mask = render(messages, tokenizer)
    assert [i for i, m in zip(ids, mask, strict=True) if m] == [*tokenizer.encode(" good"), tokenizer.end]


@FUZZ
@given(names=st.lists(st.sampled_from(SPECIAL_TOKENS) | st.text(max_size=5)))
def test_contents_cannot_forge_control_tokens(tokenizer, names):
    text = "".join(names)
    special = set(tokenizer.special_ids.values())
    messages = [{"role": "user", "content": text}, search_call(text), {"role": "tool", "content": text}]
    messages.append({"role": "assistant", "content": text})
    ids, _ = render(messages, tokenizer)
    t = tokenizer
    layout = [t.endoftext, t.user, t.end, t.assistant, t.search, t.end, t.result, t.end, t.assistant, t.end]
    assert [i for i in ids if i in special] == layout


USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def _call(**function):
    message = copy.deepcopy(search_call("x"))
    message["tool_calls"][0]["function"].update(function)
    return message


@pytest.mark.parametrize(
    "messages, sentence",
    [
        ([], "non-empty list"),
        ("text", "non-empty list"),
        ([USER, "x"], "message 2: expected an object"),
        ([{"role": "robot", "content": ""}], "unknown role 'robot'"),
        ([USER, {"role": "system", "content": ""}], "can only come first"),
        ([USER, {"role": "user", "content": 3}], "content must be text"),
        ([USER, {"role": "assistant"}], "needs content or tool_calls"),
        ([USER, ANSWER, ANSWER], "two assistant messages in a row"),
        ([USER, {"role": "tool", "content": ""}], "must follow an assistant message with tool_calls"),
        ([USER, search_call("x"), ANSWER], "expected a tool message"),
        ([{**USER, "tool_calls": [1]}], "only an assistant message"),
        ([USER, _call(name="rm")], "only tool is 'search'"),
        ([USER, _call(arguments="{")], "not JSON"),
        ([USER, _call(arguments={"q": 1})], 'expected tool call arguments {"query": text}'),
    ],
)
def test_malformed_conversations_are_named(tokenizer, messages, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        render(messages, tokenizer, where="chats.jsonl:7")
    assert str(error.value).startswith("chats.jsonl:7")


def test_masks_that_train_nothing_or_everything_are_refused():
    check_mask([0, 1], "x")
    with pytest.raises(UserError, match="chats.jsonl:7: nothing to train on"):
        check_mask([0, 0], "chats.jsonl:7")
    with pytest.raises(UserError, match="chats.jsonl:7: the loss mask covers every token"):
        check_mask([1, 1], "chats.jsonl:7")
