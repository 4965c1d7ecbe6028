"""Conversations and the terminal: what is shown, what is remembered, and what mistakes say."""

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from pyengine.engine import Engine, SamplingParams, Tools
from pyengine.errors import UserError
from pyengine.files import write_json
from pyengine.model import gguf, save
from pyengine.serve import Conversation, OwnFormat, TemplateFormat, TextFormat, open_model
from pyengine.text import SearchTool, Tokenizer
from tests.engine.fake import FakeRunner

from .live import small_model

README = Path(__file__).parents[2] / "README.md"
TEXT = ["Who founded Tavor? Ada Lovelace founded Tavor. I do not know. \u00e9t\u00e9 \U0001f40e"] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXT, 300)


class Script(FakeRunner):
    """Says the scripted ids; ends with <|end|> when they run out."""

    def __init__(self, ids, tokenizer, max_context=200):
        super().__init__(pages=8, vocabulary=tokenizer.vocab_size, max_context=max_context)
        self.script, self.end = list(ids), tokenizer.special_ids["<|end|>"]
        self.asked: list[list[int]] = []

    def run(self, plan, ready):
        _, logprobs = super().run(plan, ready)
        self.asked += [list(request.ids) for request in ready]
        return [self.script.pop(0) if self.script else self.end for _ in ready], logprobs


def talk(tokenizer, script, index=None, **options) -> tuple[Conversation, Script]:
    tools = Tools.for_search(SearchTool(index, tokenizer), tokenizer) if index else None
    runner = Script(tokenizer.encode(script, allowed_special="all"), tokenizer, **options)
    engine = Engine(None, tokenizer, tools, runner=runner, max_batch=2)
    how = OwnFormat(tokenizer, searches=tools is not None)
    return Conversation(engine, tokenizer, how, SamplingParams(seed=0)), runner


def test_turns_are_remembered_and_reset(tokenizer):
    chat, runner = talk(tokenizer, " Ada.<|end|> I do not know.<|end|> ete<|end|>")
    assert "".join(event.text for event in chat.ask("Who?")) == "Ada."
    assert "".join(event.text for event in chat.ask("What <|end|>?")) == "I do not know."
    shown = tokenizer.decode(runner.asked[-1])
    assert shown.startswith(
        "<|endoftext|><|user|> Who?<|end|><|assistant|> Ada.<|end|><|user|> What <|end|>?<|end|>"
    )
    special = tokenizer.special_ids["<|end|>"]
    assert runner.asked[-1].count(special) == 3, "a user's text holds no control token"
    chat.reset()
    chat.system = "Be brief."
    list(chat.ask("Who?"))
    first = tokenizer.decode(runner.asked[-1])
    assert first.startswith("<|endoftext|><|system|> Be brief.<|end|><|user|> Who?<|end|><|assistant|>")


def test_only_whole_characters_come(tokenizer):
    text = "\u00e9t\u00e9 \U0001f40e\u20ac"
    chat, _ = talk(tokenizer, text)
    events = list(chat.ask("?"))
    assert "".join(event.text for event in events) == text
    assert all("\ufffd" not in event.text for event in events)


class Index:
    def search(self, query, k):
        self.query = query
        return [{"text": "Ada founded Tavor.<|end|>", "title": "Tavor"}]


def test_a_search_is_shown_and_remembered(tokenizer):
    index = Index()
    chat, runner = talk(tokenizer, "<|search|> Tavor founded<|end|> Ada.<|end|>", index)
    shown: dict[str, str] = {}
    for event in chat.ask("Who founded Tavor?"):
        shown[event.kind] = shown.get(event.kind, "") + event.text
    assert shown == {"query": "Tavor founded", "result": "Tavor: Ada founded Tavor.<|end|>", "text": "Ada."}
    assert index.query == "Tavor founded"
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "tool", "assistant"]
    call = chat.messages[1]["tool_calls"][0]["function"]
    assert json.loads(call["arguments"]) == {"query": "Tavor founded"}
    before = runner.asked[-1]
    list(chat.ask("And?"))
    assert runner.asked[-1][: len(before)] == before, "the next turn goes on from the same ids"


@pytest.mark.parametrize("ends", ["<|end|> Ada.<|end|>", ""], ids=["whole", "cut off"])
def test_a_search_opened_inside_a_search_is_one(tokenizer, ends):
    chat, runner = talk(tokenizer, f"<|search|> Tavor<|search|> founded{ends}", Index())
    chat.params = SamplingParams(max_tokens=12 if ends else 8, stop=chat.format.stop)
    runner.script += [] if ends else tokenizer.encode(" founded" * 9)
    events = list(chat.ask("Who founded Tavor?"))
    assert "".join(e.text for e in events if e.kind == "query").startswith("Tavor founded")
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "tool", "assistant"]
    list(chat.ask("And?"))  # the conversation goes on


def test_a_stopped_answer_is_kept_and_frees_the_engine(tokenizer):
    chat, _ = talk(tokenizer, "Ada Lovelace founded Tavor.")
    answer = chat.ask("Who?")
    said = next(answer).text
    answer.close()
    assert chat.engine.unfinished == 0
    assert chat.messages[-1] == {"role": "assistant", "content": said}


def test_a_full_context_forgets_the_oldest_turn(tokenizer):
    chat, runner = talk(tokenizer, "", max_context=120)
    for n in range(8):
        list(chat.ask(f"question {n} of eight"))
    assert chat.forgotten > 0
    assert "question 7" in tokenizer.decode(runner.asked[-1])
    with pytest.raises(UserError, match="shorten"):
        list(chat.ask("x" * 500))
    assert list(chat.ask("again")) == []


def test_a_path_that_is_no_model(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}: expected a run"):
        open_model(tmp_path)
    with pytest.raises(UserError, match="nowhere: no such file or folder; expected a run"):
        open_model(str(tmp_path / "nowhere"))
    (tmp_path / "stages").mkdir()
    with pytest.raises(UserError, match="no stage with a model"):
        open_model(tmp_path)
    (tmp_path / "config.json").write_text("{")  # the first fault, not the tokenizer that is missing too
    with pytest.raises(UserError, match="config.json: not valid JSON"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("generation_config.json", "{", "generation_config.json: not valid JSON"),
        ("generation_config.json", "[" * 100_000, "generation_config.json: not valid JSON"),
        ("generation_config.json", "[1]", "generation_config.json: expected a JSON object"),
        ("generation_config.json", '{"eos_token_id": "<|end|>"}', "'<|end|>': expected an id"),
        ("generation_config.json", '{"eos_token_id": [true]}', "[True]: expected an id"),
        ("tokenizer_config.json", "{", "tokenizer_config.json: not valid JSON"),
        ("chat_template.jinja", "{% for %}", "the chat template cannot be read"),
        ("chat_template.jinja", b"\xff\xfe", "chat_template.jinja: not UTF-8"),
    ],
)
@pytest.mark.parametrize("own", [True, False], ids=["our format", "another family's"])
def test_a_broken_file_beside_the_weights_is_named(tokenizer, tmp_path, name, content, told, own):
    if not own:
        tokenizer = Tokenizer.train(TEXT, 300, special_tokens=["<|im_end|>"])
        tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save(tmp_path / "tokenizer")
    save(small_model(tokenizer), tmp_path, tmp_path / "tokenizer")
    assert isinstance(open_model(tmp_path).format, OwnFormat if own else TemplateFormat)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        open_model(tmp_path)
    assert told in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json", "model.gguf"])
def test_an_edited_template_of_our_own_format_is_told_to_be_ignored(tmp_path, name):
    tokenizer = Tokenizer.train(TEXT, 300)
    model = small_model(tokenizer)
    path = tmp_path / name if name == "model.gguf" else tmp_path

    def kept():
        if name == "model.gguf":
            return gguf.save(model, path, "Q8_0", tokenizer)
        tokenizer.save(path)
        save(model, path)
        if name == "tokenizer_config.json":
            (path / "chat_template.jinja").unlink()

    kept()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_model(path)
    tokenizer.chat_template += "{{ 'Think.' }}"
    kept()
    with pytest.warns(UserWarning, match=f"{name}: this chat template is ignored"):
        assert isinstance(open_model(path).format, OwnFormat)


def test_a_template_that_fails_is_told(tmp_path):
    tokenizer = Tokenizer.train(TEXT, 300, special_tokens=["<|im_end|>"])
    tokenizer.chat_template = "{{ 1 / (messages | length - 1) }}"
    with pytest.raises(UserError, match="does not take this conversation: division by zero"):
        TemplateFormat(tokenizer, tmp_path).prompt([{"role": "user", "content": "Who?"}])


def test_another_familys_template(tmp_path):
    special = ["<s>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer.train(TEXT, 300, special_tokens=special)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}\n"
        "<|im_start|>{{ message.role }}\n{{ message.content | trim }}<|im_end|>\n{% endfor %}\n"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}\n"
    )
    write_json(tmp_path / "tokenizer_config.json", {"bos_token": {"content": "<s>"}})
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [tokenizer.special_ids["<|im_end|>"]]})
    how = TemplateFormat(tokenizer, tmp_path)
    ids = how.prompt([{"role": "user", "content": "Who?<|im_end|>"}])
    assert tokenizer.decode(ids) == "<s><|im_start|>user\nWho?<|im_end|><|im_end|>\n<|im_start|>assistant\n"
    assert ids.count(tokenizer.special_ids["<|im_end|>"]) == 1, "the user's text is plain"
    assert how.stop == (tokenizer.special_ids["<|im_end|>"],)
    tokenizer.chat_template = (
        "{{ tools | tojson }}{% for m in messages %}{{ m.tool_calls | tojson }}{% endfor %}"
    )
    call = {"function": {"name": "f<|im_end|>", "arguments": '{"a": "<|im_end|> \\ue0007\\ue001"}'}}
    message = {"role": "assistant", "content": "x", "tool_calls": [call]}
    ids = TemplateFormat(tokenizer, tmp_path).prompt([message], [{"say": "<|im_start|>"}])
    assert not {tokenizer.special_ids[name] for name in ("<|im_end|>", "<|im_start|>")} & set(ids), (
        "as are calls"
    )
    assert tokenizer.decode(ids).count("<|im_end|>") == 2 and "\ue0007\ue001" in tokenizer.decode(ids)
    base = TextFormat(tokenizer)
    assert tokenizer.decode(base.prompt([{"role": "user", "content": "Ada"}])) == "Ada"


TOOLS_TEMPLATE = """
{%- for tool in tools or [] %}{{ tool | tojson }}
{% endfor %}
{%- for message in messages %}
    {%- if message.role == "hidden" %}{% continue %}{% endif %}
    {{- "<|im_start|>" + message.role + "\n" }}
    {%- generation %}{{ message.content }}{% endgeneration %}
    {%- for call in message.tool_calls or [] %}
        {{- "<tool_call>" + call.function.name + " " }}{{ call.function.arguments | tojson(indent=1) }}
        {%- for name, value in call.function.arguments.items() %} {{ name }}={{ value }}{% endfor %}
    {%- endfor %}<|im_end|>
{% endfor %}
{{- strftime_now("%Y") }}
"""


def test_tools_reach_a_template_as_transformers_gives_them(tmp_path):
    transformers = pytest.importorskip("transformers")
    special = ["<s>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer.train(TEXT, 300, special_tokens=special)
    tokenizer.save(tmp_path)
    peer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    parameters = {
        "type": "object",
        "properties": {"town": {"type": "string", "description": "a <b>town</b> & 'é'"}},
    }
    tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
    arguments = {"town": "Tavor & <Sons>", "days": 2}
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    messages = [
        {"role": "user", "content": "Rain?"},
        {"role": "hidden", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "No."},
    ]
    theirs = peer.apply_chat_template(messages, tools, chat_template=TOOLS_TEMPLATE, tokenize=False)
    tokenizer.chat_template = TOOLS_TEMPLATE
    how = TemplateFormat(tokenizer, tmp_path)
    assert tokenizer.decode(how.prompt(messages, tools)) == theirs
    call["function"] = {
        "name": "weather",
        "arguments": json.dumps(arguments),
    }  # as a client of OpenAI's sends it
    assert tokenizer.decode(how.prompt(messages, tools)) == theirs


def test_a_folder_of_another_family_talks(tmp_path):
    """As transformers saves it."""
    transformers = pytest.importorskip("transformers")
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    ours = Tokenizer.train(TEXT, 300, special_tokens=special)
    ours.save(tmp_path)
    peer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    peer.chat_template = TOOLS_TEMPLATE
    peer.save_pretrained(tmp_path / "qwen")
    config = transformers.Qwen2Config(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, eos_token_id=ours.special_ids["<|im_end|>"],
    )  # fmt: skip
    transformers.Qwen2ForCausalLM(config).save_pretrained(tmp_path / "qwen")
    served = open_model(tmp_path / "qwen")
    messages = [{"role": "user", "content": "Who?"}]
    assert served.tokenizer.decode(served.format.prompt(messages)) == peer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert served.format.stop == (ours.special_ids["<|im_end|>"],)
    talk = Conversation(served.engine, served.tokenizer, served.format, SamplingParams(max_tokens=4, seed=1))
    list(talk.ask("Who?"))
    assert talk.completion and len(talk.completion.ids) in range(1, 5)


@pytest.fixture(scope="module")
def run(tokenizer, tmp_path_factory):
    """A run whose SFT has finished and whose RL was interrupted."""
    from pyengine.model import ModelConfig, Transformer, save

    folder = tmp_path_factory.mktemp("runs") / "small"
    tokenizer.save(folder / "tokenizer")
    config = ModelConfig.from_depth(1, tokenizer.vocab_size, hidden_size=32, max_position_embeddings=128)
    for name in ("base", "sft"):
        save(Transformer(config), folder / name, folder / "tokenizer")
    for stage, state in (("pretrain", "finished"), ("sft", "finished"), ("rl", "started")):
        write_json(folder / "stages" / f"{stage}.json", {"state": state})
    return folder


def chat(*arguments: str, text: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pyengine.chat", *arguments]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, env=environment)


def test_piped_lines_are_answered_with_the_latest_finished_checkpoint(run):
    served = open_model(run, pages=5)
    assert served.folder == run / "sft" and served.engine.pages == 5
    options = ("--seed", "1", "--max-tokens", "8")
    done = chat(str(run), *options, text="Who?\n/seed 1\n/reset\nWho?\n/help\n/quit\nnever\n")
    assert done.returncode == 0 and done.stderr == ""
    first, second = done.stdout.split("seed 1\nforgotten\n")
    assert first and second.startswith(first) and "/quit" in second


def test_looking_inside_retrying_and_setting(run):
    options = ("--seed", "1", "--max-tokens", "8", "--inside")
    lines = "Who?\n/retry\n/set temperature 0\n/edit When?\n/set temperature x\n/set colour 3\n"
    done = chat(str(run), *options, text=lines)
    assert done.returncode == 0 and done.stderr == ""
    first, second, rest = done.stdout.split("[8 tokens", 2)
    assert "first after" in second and "others: '" in second and "temperature 0.0" in rest
    assert first.strip() and second.rstrip().endswith(first.rstrip()), "the same seed, the same answer"
    assert "error: temperature = 'x': expected a number" in rest and "expected one of max_tokens" in rest


def test_a_command_that_cannot_be_obeyed_is_told_and_the_chat_goes_on(run):
    asked = {
        "/seed \u00b2": "error: seed = '\u00b2': expected a whole number",
        "/seed 99999999999999999999": "error: sampling parameters: seed = 99999999999999999999: expected at least 0",
        "/set max_tokens 1.5": "error: max_tokens = '1.5': expected a whole number",
        "/set top_k 99999999999": "top_k = 99999999999: expected at least 0 and below 2147483648",
        "/set temperature 1e39": "temperature = 1e+39: expected at least 0 and at most 1000000",
        "/retry": "nothing was asked yet",
        "/nonsense": "there is no /nonsense",
        "/seed": "no fixed seed",
    }
    done = chat(str(run), text="\n".join(asked))
    assert done.returncode == 0 and done.stderr == ""
    for told in asked.values():
        assert told in done.stdout


def test_a_mistake_is_one_sentence(tmp_path):
    done = chat(str(tmp_path / "nowhere"), text="")
    assert done.returncode == 1 and "expected a run" in done.stderr and "Traceback" not in done.stderr


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, tokenizer, capsys):
    """As it stands there, in a folder where a run's checkpoint lies."""
    run = tmp_path / "runs" / "default"
    tokenizer.save(run / "tokenizer")
    save(small_model(tokenizer), run / "rl", run / "tokenizer")
    (run / "stages").mkdir()
    write_json(run / "stages" / "rl.json", {"state": "finished"})
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    exec(compile(code, str(README), "exec"), names)
    assert names["completion"].finish_reason in ("stop", "length")
    first, *_, last = names["talk"].messages  # an untrained model may also happen to search
    assert (first["role"], last["role"]) == ("user", "assistant")
    assert last["content"] in capsys.readouterr().out
