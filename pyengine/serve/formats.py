"""How a conversation becomes a prompt, and which ids end the answer: three kinds of model.

    OwnFormat         ours, with <|user|>, <|assistant|>, <|search|> ...
    TemplateFormat    another family's, by the chat template in its checkpoint
    TextFormat        a base model, which has never seen a conversation and continues the last message

A chat template gives one text, in which a special token's name in a user's message looks like the token
itself. So messages are rendered with a mark in place of each content, and of each such name elsewhere in them; the
text around the marks is encoded with special tokens, and what they stand for as plain text.
"""

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .. import gguf
from ..errors import UserError
from ..files import read_json
from ..text import SPECIAL_TOKENS, Tokenizer, render
from ..text.chat import TEMPLATE, text_of
from ..text.formats import plain_template

MARK = re.compile("\ue000([0-9]+)\ue001")
OPEN_CALL, CLOSE_CALL = "<tool_call>", "</tool_call>"  # how models of other families write calls
# For templates that have no place for tools, in the words that most of the others use.
TOOLS = """You may call functions. Their signatures:
<tools>
{tools}
</tools>
To call one, write a JSON object with its name and arguments between tags:
<tool_call>
{{"name": NAME, "arguments": ARGUMENTS}}
</tool_call>"""
Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]
Options = Mapping[str, Any]
NO_OPTIONS: Options = {}


class Format(Protocol):
    """What a Conversation asks of it."""

    @property
    def stop(self) -> tuple[int, ...]:
        """Ids of which any ends an answer."""
        ...

    @property
    def search(self) -> int | None:
        """The id that opens a search."""
        ...

    @property
    def spaced(self) -> bool:
        """Whether every text stands behind a space that is not its own, as in our template."""
        ...

    @property
    def tools(self) -> tuple[str, ...] | None:
        """Names of the tools that the model knows; None: whatever the prompt describes."""
        ...

    @property
    def options(self) -> frozenset[str]:
        """What a client may tell the chat template beside the conversation."""
        ...

    def prompt(self, messages: Messages, tools: Tools = (), options: Options = NO_OPTIONS) -> list[int]:
        """The ids of a conversation, up to where the model goes on. tools: OpenAI's descriptions of them."""
        ...

    def opening(self) -> list[int]:
        """The ids with which a call begins; after them comes its JSON, or our model's query."""
        ...


class OwnFormat:
    """Our special tokens. searches: <|search|> opens a call instead of ending the answer."""

    def __init__(self, tokenizer: Tokenizer, searches: bool = False):
        self._tokenizer = tokenizer
        kept = {"<|search|>"} if searches else set()
        self.stop = tuple(i for name, i in tokenizer.special_ids.items() if name not in kept)
        self.search, self.tools = tokenizer.special_ids["<|search|>"], ("search",)
        self.spaced, self.options = True, frozenset[str]()

    def prompt(self, messages: Messages, tools: Tools = (), options: Options = NO_OPTIONS) -> list[int]:
        return render(messages, self._tokenizer, add_generation_prompt=True)[0]

    def opening(self) -> list[int]:
        return [self.search]


class TextFormat:
    """No format: the text of the last message, to be continued."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.stop = tuple(tokenizer.special_ids.values())
        self.search, self.tools = None, ()
        self.spaced, self.options = False, frozenset[str]()

    def prompt(self, messages: Messages, tools: Tools = (), options: Options = NO_OPTIONS) -> list[int]:
        start = self._tokenizer.special_ids.get("<|endoftext|>")
        text = text_of(messages[-1], "the last message")
        return [*([] if start is None else [start]), *self._tokenizer.encode(text)]

    def opening(self) -> list[int]:
        raise UserError("a base model knows no tools")


class TemplateFormat:
    """The chat template of a checkpoint's folder or GGUF file, with the token names and end ids it gives."""

    def __init__(self, tokenizer: Tokenizer, folder: Path):
        assert tokenizer.chat_template is not None
        self._tokenizer = tokenizer
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
        )
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        environment.filters["tojson"] = _json
        try:
            wanted = meta.find_undeclared_variables(environment.parse(tokenizer.chat_template))
            self._has_place_for_tools = "tools" in wanted
            self._template = environment.from_string(tokenizer.chat_template)
        except TemplateError as error:
            raise UserError(f"{folder}: the chat template cannot be read: {error}") from None
        self._names, ends = (_roles_of_file if folder.is_file() else _roles_of_folder)(folder)
        ours = {"messages", "tools", "add_generation_prompt", *self._names, *environment.globals}
        self.options = frozenset(wanted - ours)
        self.stop = tuple(sorted(ends))
        self.search, self.tools = None, None
        self.spaced = False
        names = sorted(tokenizer.special_ids, key=len, reverse=True)  # of two that begin alike the longer
        self._dangerous = re.compile("|".join(["[\ue000\ue001]", *map(re.escape, names)]))

    def prompt(self, messages: Messages, tools: Tools = (), options: Options = NO_OPTIONS) -> list[int]:
        if not self._has_place_for_tools:
            messages = _told(messages, tools)
        plain: list[str] = []  # what the marks stand for
        marked = [
            {
                **self._marked(_called(message), plain),
                "content": _mark(text_of(message, f"message {n}"), plain),
            }
            for n, message in enumerate(messages, 1)
        ]
        try:
            text = self._template.render(
                messages=marked, tools=self._marked(list(tools), plain) or None, add_generation_prompt=True,
                **self._names, **self._marked(options, plain),
            )  # fmt: skip
        except Exception as error:  # a template is a program: it may also divide by 0
            raise UserError(f"the model's chat template does not take this conversation: {error}") from None
        ids: list[int] = []
        for n, part in enumerate(MARK.split(text)):
            if n % 2:
                ids += self._tokenizer.encode(plain[int(part)])
            else:
                ids += self._tokenizer.encode(part, allowed_special="all")
        return ids

    def _marked(self, value: Any, plain: list[str]) -> Any:
        """Tools, options, or the fields of a message beside its content: marks in the place of the names of special
        tokens, and of what looks like a mark."""
        if isinstance(value, str):
            return self._dangerous.sub(lambda found: _mark(found.group(), plain), value)
        if isinstance(value, Mapping):
            return {key: self._marked(part, plain) for key, part in value.items()}
        return [self._marked(part, plain) for part in value] if isinstance(value, list) else value

    def opening(self) -> list[int]:
        return self._tokenizer.encode(OPEN_CALL + "\n", allowed_special="all")


class Generation(Extension):
    """{% generation %} ... {% endgeneration %}: marks for a training loss around what is an answer; plain text here."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def format_of(tokenizer: Tokenizer, folder: Path, searches: bool = False) -> Format:
    """The format of the model in `folder`, or in a GGUF file; UserError for a broken file of any that say it.

    Ours is known without them, but others read them where we do not: what is broken there is told here too, and a chat
    template that says something else is told to be ignored, in a warning.
    """
    told = TemplateFormat(tokenizer, folder) if tokenizer.chat_template else TextFormat(tokenizer)
    if not all(name in tokenizer.special_ids for name in SPECIAL_TOKENS):
        return told
    given, ours = (plain_template(text or "").strip() for text in (tokenizer.chat_template, TEMPLATE))
    if given != ours:
        places = (folder / "chat_template.jinja", folder / "tokenizer_config.json")
        file = next((place for place in places if place.is_file()), folder)
        warnings.warn(
            f"{file}: this chat template is ignored, since the model has the special tokens of pyengine, whose "
            "conversations always go by pyengine's own template",
            stacklevel=2,
        )
    return OwnFormat(tokenizer, searches)


def _roles_of_folder(folder: Path) -> tuple[dict[str, Any], set[int]]:
    """(names of special tokens by their role, ids that end an answer) of a Hugging Face directory."""
    given = _read(folder / "tokenizer_config.json").items()
    named = {k: v.get("content") if isinstance(v, dict) else v for k, v in given if k.endswith("_token")}
    ends: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        end = _read(folder / name).get("eos_token_id")
        ids = [] if end is None else end if isinstance(end, list) else [end]
        if not all(type(i) is int for i in ids):
            raise UserError(f"{folder / name}: eos_token_id = {end!r}: expected an id, or a list of ids")
        ends.update(ids)
    return {name: text for name, text in named.items() if isinstance(text, str)}, ends


def _roles_of_file(path: Path) -> tuple[dict[str, Any], set[int]]:
    """The same of a GGUF file, which numbers them: tokenizer.ggml.ROLE_token_id."""
    values = gguf.read(path).values
    tokens = values.get("tokenizer.ggml.tokens", [])
    ids = {role: values.get(f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos", "eot", "eom")}
    ends = {i for role, i in ids.items() if role != "bos" and i is not None}
    names = {f"{role}_token": tokens[i] for role, i in ids.items() if i is not None and i < len(tokens)}
    return names, ends


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


# What templates count on beside jinja itself, as Hugging Face's renderer has it.


def _refuse(message: str):
    raise TemplateError(message)


def _now(how: str) -> str:
    return datetime.now().strftime(how)


def _json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """For a model: jinja's own filter writes for HTML, with <, > and & as codes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _mark(text: str, plain: list[str]) -> str:
    """A mark for a text that is to be encoded as plain text."""
    plain.append(text)
    return f"\ue000{len(plain) - 1}\ue001"


def _told(messages: Messages, tools: Tools) -> list[Mapping[str, Any]]:
    """A conversation whose tools and calls are told in contents."""
    told: list[Mapping[str, Any]] = []
    for n, message in enumerate(messages, 1):
        calls = [
            f"{OPEN_CALL}\n{_json({k: call['function'][k] for k in ('name', 'arguments')})}\n{CLOSE_CALL}"
            for call in _called(message).get("tool_calls") or ()
        ]
        said = text_of(message, f"message {n}")
        told.append(
            {**message, "content": "\n".join([*([said] if said else []), *calls])} if calls else message
        )
    if tools:
        words = TOOLS.format(tools="\n".join(map(_json, tools)))
        if told and told[0].get("role") == "system":
            system = text_of(told.pop(0), "message 1")
            words = f"{system}\n\n{words}" if system else words
        told.insert(0, {"role": "system", "content": words})
    return told


def _called(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message whose calls have arguments as templates expect them: objects, where OpenAI has their JSON."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = dict(call["function"])
        if isinstance(function.get("arguments"), str):
            try:
                function["arguments"] = json.loads(function["arguments"])
            except ValueError:
                pass  # a model's mistake, shown as it was
        calls.append({**call, "function": function})
    return {**message, "tool_calls": calls}
