"""Conversations as ids: the chat template, and which of its tokens the assistant is trained on.

    <|endoftext|>[<|system|> ..<|end|>]<|user|> question<|end|><|assistant|> answer<|end|>

A search takes the place of an answer, and what it found goes between the two:

    <|assistant|><|search|> query<|end|><|result|> passages<|end|><|assistant|> answer<|end|>

Every text stands behind a space, as words do in running text: so a name is spelled by the same tokens wherever
it stands, and is copied token by token.

Messages are OpenAI's: {"role": "system" | "user" | "assistant" | "tool", "content": text}; an assistant that
searches has "tool_calls": [{"type": "function", "function": {"name": "search", "arguments": arguments}}] with
arguments '{"query": "..."}', and the next message has the role "tool". The loss mask is 1 on what the model
itself must write: everything after <|assistant|> up to and including <|end|>. It is 0 on <|assistant|> and
<|result|>..<|end|>, which the engine forces, and on an assistant message with "weight": 0.

Contents are always encoded as plain text. `TEMPLATE` says the same in Jinja, for other programs; those find
special tokens by name inside contents too, so there (only) a text could forge one.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
    "<|search|>",
    "<|result|>",
    "<|pad|>",
)
UNTRAINED = "nothing to train on; expected at least one assistant message (of weight 1)"
TEMPLATE = r"""
{%- macro text(content) -%}
  {%- if content is string -%}{{- content -}}
  {%- elif content -%}{%- for part in content -%}{{- part.text -}}{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{%- macro spaced(text) -%}{{- ' ' ~ text if text else '' -}}{%- endmacro -%}
{#- The query of a search: arguments are an object, or the same as JSON text, which is unescaped here. -#}
{%- macro query(arguments) -%}
  {%- if arguments is mapping -%}{{- arguments.query -}}
  {%- else -%}
    {%- set body = arguments.split('"query"', 1)[1].split(':', 1)[1].strip()[:-1].strip()[1:-1] -%}
    {%- set ns = namespace(plain=true, high=0) -%}
    {%- for part in body.split('\\') -%}
      {%- if ns.plain -%}{{- part -}}{%- set ns.plain = false -%}
      {%- elif part == '' -%}{{- '\\' -}}{%- set ns.plain = true -%}
      {%- elif part[0] == 'u' -%}
        {%- set code = part[1:5] | int(base=16) -%}
        {%- if 55296 <= code < 56320 -%}{%- set ns.high = code -%}
        {%- else -%}
          {%- if 56320 <= code < 57344 -%}
            {%- set code = (ns.high - 55296) * 1024 + code + 9216 -%}
          {%- endif -%}
          {{- '%c' | format(code) ~ part[5:] -}}
        {%- endif -%}
      {%- else -%}
        {{- {'n': '\n', 't': '\t', 'r': '\r', 'b': '\b', 'f': '\f'}.get(part[0], part[0]) ~ part[1:] -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{{- '<|endoftext|>' -}}
{%- for message in messages -%}
  {%- if message.role == 'system' or message.role == 'user' -%}
    {{- '<|' ~ message.role ~ '|>' ~ spaced(text(message.content)) ~ '<|end|>' -}}
  {%- elif message.role == 'tool' -%}
    {{- '<|result|>' ~ spaced(text(message.content)) ~ '<|end|>' -}}
  {%- elif message.role == 'assistant' -%}
    {{- '<|assistant|>' -}}
    {%- generation -%}
      {{- spaced(text(message.content)) -}}
      {%- if message.tool_calls -%}
        {{- '<|search|>' ~ spaced(query(message.tool_calls[0].function.arguments)) -}}
      {%- endif -%}
      {{- '<|end|>' -}}
    {%- endgeneration -%}
  {%- else -%}{{- raise_exception('unknown role ' ~ message.role) -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
""".strip()

Message = Mapping[str, Any]


def render(
    messages: Sequence[Message],
    tokenizer: "Tokenizer",
    *,
    add_generation_prompt: bool = False,
    where: str = "conversation",
) -> tuple[list[int], list[int]]:
    """(ids, mask) of a conversation, equally long; mask is 1 on the tokens the assistant is trained on.

    add_generation_prompt appends <|assistant|>, where the model goes on. `where` (file and line, say) begins
    the sentence of the UserError that a malformed conversation raises.
    """
    check(messages, where)
    t = tokenizer
    ids, mask = [t.special_ids["<|endoftext|>"]], [0]

    def add(new: Sequence[int], trained: int = 0) -> None:
        ids.extend(new)
        mask.extend([trained] * len(new))

    end, search = [t.special_ids["<|end|>"]], [t.special_ids["<|search|>"]]
    for message in messages:
        role, content = message["role"], spaced(text_of(message, where), t)
        add([t.special_ids["<|result|>" if role == "tool" else f"<|{role}|>"]])
        if role == "assistant":
            if message.get("tool_calls"):
                content += search + spaced(query_of(message, where), t)
            add(content + end, trained=int(is_trained(message)))
        else:
            add(content + end)
    if add_generation_prompt:
        add([t.special_ids["<|assistant|>"]])
    return ids, mask


def is_trained(message: Mapping[str, Any]) -> bool:
    """Whether training learns to write a message: the assistant's, unless its weight is 0."""
    return message["role"] == "assistant" and message.get("weight", 1) != 0


def spaced(text: str, tokenizer: "Tokenizer") -> list[int]:
    """The ids of a message's text behind its space; nothing for an empty text."""
    return tokenizer.encode(" " + text) if text else []


def unspaced(ids: Sequence[int], tokenizer: "Tokenizer") -> str:
    """The text of a message's ids, special tokens left out."""
    return tokenizer.decode(ids, skip_special=True).removeprefix(" ")


def check_mask(mask: Sequence[int], where: str) -> None:
    """Refuse a conversation on which nothing, or everything, would be trained: both mean a broken mask."""
    if not any(mask):
        raise UserError(f"{where}: {UNTRAINED}")
    if all(mask):
        raise UserError(
            f"{where}: the loss mask covers every token; a conversation begins with tokens not trained on"
        )


def check(messages: Any, where: str) -> None:
    """Raise UserError unless `messages` is a conversation that the template can say."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UserError(f"{where}: expected a non-empty list of messages, got {_brief(messages)}")
    before = None
    for n, message in enumerate(messages, 1):
        here = f"{where}, message {n}"
        if not isinstance(message, Mapping) or "role" not in message:
            raise UserError(f"{here}: expected an object with role and content, got {_brief(message)}")
        role = message["role"]
        text_of(message, here)
        if role not in ("system", "user", "assistant", "tool"):
            raise UserError(f"{here}: unknown role {_brief(role)}; expected system, user, assistant or tool")
        if role == "system" and n > 1:
            raise UserError(f"{here}: a system message can only come first")
        if message.get("tool_calls") and role != "assistant":
            raise UserError(f"{here}: only an assistant message can have tool_calls, this one is {role}")
        searched = before is not None and bool(before.get("tool_calls"))
        if role == "tool" and not searched:
            raise UserError(f"{here}: a tool message must follow an assistant message with tool_calls")
        if searched and role != "tool":
            raise UserError(f"{here}: after tool_calls expected a tool message, got {role}")
        if role == "assistant":
            if message.get("tool_calls"):
                query_of(message, here)
            elif message.get("content") is None:
                raise UserError(f"{here}: an assistant message needs content or tool_calls")
            if before is not None and before["role"] == "assistant":
                raise UserError(f"{here}: two assistant messages in a row; join them")
        before = message


def text_of(message: Message, where: str) -> str:
    """The text of a message: a string, null (nothing), or OpenAI's list of text parts."""
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else [content]
    if all(
        isinstance(p, Mapping) and isinstance(p.get("text"), str) and p.get("type") == "text" for p in parts
    ):
        return "".join(p["text"] for p in parts)
    raise UserError(f"{where}: content must be text, got {_brief(content)}")


def query_of(message: Message, where: str) -> str:
    """The query of a message's one search call."""
    calls = message["tool_calls"]
    if not isinstance(calls, Sequence) or len(calls) != 1:
        raise UserError(f"{where}: expected one tool call in a message, got {_brief(calls)}")
    function = calls[0].get("function") if isinstance(calls[0], Mapping) else None
    if not isinstance(function, Mapping) or function.get("name") != "search":
        raise UserError(f"{where}: the only tool is 'search', got {_brief(calls[0])}")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            raise UserError(f"{where}: tool call arguments are not JSON: {_brief(arguments)}") from None
    if (
        not isinstance(arguments, Mapping)
        or list(arguments) != ["query"]
        or not isinstance(arguments["query"], str)
    ):
        raise UserError(f'{where}: expected tool call arguments {{"query": text}}, got {_brief(arguments)}')
    return arguments["query"]


def search_call(query: str, content: str | None = None) -> dict[str, Any]:
    """The assistant message that searches for `query`."""
    arguments = json.dumps({"query": query}, ensure_ascii=False)
    call = {"id": "search", "type": "function", "function": {"name": "search", "arguments": arguments}}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


def parse_assistant(ids: Sequence[int], tokenizer: "Tokenizer") -> dict[str, Any]:
    """The assistant message in what a model wrote after <|assistant|>, with or without its <|end|>."""
    ids = [int(i) for i in ids]
    if tokenizer.special_ids["<|end|>"] in ids:
        ids = ids[: ids.index(tokenizer.special_ids["<|end|>"])]
    search = tokenizer.special_ids["<|search|>"]
    if search in ids:
        at = ids.index(search)
        return search_call(unspaced(ids[at + 1 :], tokenizer), unspaced(ids[:at], tokenizer) or None)
    return {"role": "assistant", "content": unspaced(ids, tokenizer)}


def _brief(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
