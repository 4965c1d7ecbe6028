"""OpenAI's /v1/responses over the chat: its body becomes a chat's, and the answer becomes items and typed events.

Nothing is kept between requests: a conversation is sent whole, as the items of `input`.
"""

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .asked import CALLER, CONSTRAINTS, SAMPLING, ApiError, Asked, field, known
from .shapes import WRITE, Use
from .writer import Piece

LOGPROBS = "message.output_text.logprobs"
PASSED = {
    "model", "temperature", "top_p", "stream", "parallel_tool_calls", "service_tier", "structured_outputs",
    "chat_template_kwargs", *SAMPLING, *CONSTRAINTS, *CALLER,
}  # fmt: skip
NAMES = PASSED | {
    "input", "instructions", "max_output_tokens", "stream_options", "text", "tools", "tool_choice", "top_logprobs",
    "include", "truncation", "background",
}  # fmt: skip
KEEPS = ("previous_response_id", "conversation", "prompt")
CHATS = {"messages": "input", "response_format": "text.format"}  # what a chat's fields are called here


def as_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a chat that asks the same; ApiError for what cannot be asked."""
    for name in KEEPS:
        if body.get(name) is not None:
            raise ApiError(
                f"{name}: this server keeps nothing; send the whole conversation as input", param=name
            )
    if body.get("store"):
        raise ApiError("store: expected false; this server keeps nothing", param="store")
    known(body, NAMES)
    known(field(body, "stream_options", dict, {}), {"include_obfuscation"}, "stream_options.")
    given = field(body, "instructions", str, "")
    messages = [{"role": "system", "content": given}] if given else []
    chat = {name: value for name, value in body.items() if name in PASSED and value is not None}
    chat["messages"] = messages + _messages(body.get("input"))
    chat["max_completion_tokens"] = field(body, "max_output_tokens", int, None)
    include = field(body, "include", list, [])
    if unknown := [what for what in include if what != LOGPROBS]:
        raise ApiError(f"include: expected {LOGPROBS}, got {WRITE(unknown[0])[:100]}", param="include")
    chat["top_logprobs"] = field(body, "top_logprobs", int, 0)
    chat["logprobs"] = bool(include or chat["top_logprobs"])
    text = field(body, "text", dict, {})
    known(text, {"format"}, "text.")
    if (wish := field(text, "format", dict, None)) is not None:
        chat["response_format"] = {"type": wish.get("type"), "json_schema": wish}
    chat["tools"] = [_tool(tool) for tool in field(body, "tools", list, [])]
    if (choice := body.get("tool_choice")) is not None:
        chat["tool_choice"] = _choice(choice)
    return chat


def _messages(given: Any) -> list[dict[str, Any]]:
    """A chat's messages of a text, or of items."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list):
        raise ApiError("input: expected a text or a list of items", param="input")
    made: list[dict[str, Any]] = []
    for i, item in enumerate(given):
        where = f"input[{i}]"
        kind = item.get("type", "message") if isinstance(item, dict) else None
        if kind == "message":
            made.append({"role": item.get("role"), "content": _text(item.get("content"), where)})
        elif kind == "function_call":
            call = {
                "id": item.get("call_id"), "type": "function",
                "function": {"name": item.get("name"), "arguments": item.get("arguments")},
            }  # fmt: skip
            if not made or made[-1]["role"] != "assistant":
                made.append({"role": "assistant", "content": None})
            made[-1].setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            output = _text(item.get("output"), where)
            made.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
        else:
            raise ApiError(
                f"{where}: expected a message, a function_call or a function_call_output", param=where
            )
    return made


def _text(content: Any, where: str) -> Any:
    """What a chat has for the content of an item: its parts are texts by another name."""
    if not isinstance(content, list):
        return content
    kinds = ("input_text", "output_text", "text")
    if not all(
        isinstance(p, dict) and p.get("type") in kinds and isinstance(p.get("text"), str) for p in content
    ):
        raise ApiError(f"{where}: expected parts of the types input_text or output_text", param=where)
    return "".join(part["text"] for part in content)


def _tool(tool: Any) -> dict[str, Any]:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise ApiError("tools: expected tools of the type function", param="tools")
    return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type" and v is not None}}


def _choice(choice: Any) -> Any:
    """A chat's tool_choice, which has names one level further in."""

    def named(tool: Any) -> Any:
        return {"type": "function", "function": tool} if isinstance(tool, dict) else tool

    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "function":
        return named(choice)
    if kind == "allowed_tools" and isinstance(choice.get("tools"), list):
        return {"type": kind, kind: {**choice, "tools": list(map(named, choice["tools"]))}}
    return choice


def renamed(error: ApiError) -> ApiError:
    """An error about a chat, as one about a response."""
    about = error.body["error"]
    for chat, here in CHATS.items():
        if about["param"] == chat:
            about["param"] = here
        about["message"] = about["message"].replace(f"{chat}:", f"{here}:")
    return error


class Responses:
    """The answer of /v1/responses (a Shape): a message and calls, whole or as typed events. body: of the request."""

    def __init__(self, body: Mapping[str, Any], asked: Asked, model: str):
        self._asked, self._use, self._all = asked, Use(asked), Piece()
        self._message = f"msg_{uuid.uuid4().hex}"
        self._open = False  # whether the message has begun
        self._told = self._numbers = 0  # entries of log-probabilities, and events, sent
        params = asked.params[0]
        self._head = {
            "id": f"resp_{uuid.uuid4().hex}", "object": "response", "created_at": int(time.time()), "model": model,
            "error": None, "incomplete_details": None, "previous_response_id": None, "background": False,
            "truncation": "disabled", "parallel_tool_calls": not asked.single, "temperature": params.temperature,
            "top_p": params.top_p, "text": body.get("text") or {"format": {"type": "text"}},
            "tool_choice": body.get("tool_choice") or "auto", "tools": body.get("tools") or [],
            **{name: body.get(name) for name in ("instructions", "max_output_tokens", "metadata", "user")},
        }  # fmt: skip

    def add(self, index: int, piece: Piece) -> None:
        self._use.add(index, piece)
        self._all.add(piece)

    def whole(self) -> dict[str, Any]:
        cut = self._all.reason == "length"
        made = self._response("incomplete" if cut else "completed", self._items())
        use = self._use
        made["incomplete_details"] = {"reason": "max_output_tokens"} if cut else None
        made["usage"] = {
            "input_tokens": use.prompt, "output_tokens": use.sampled, "total_tokens": use.prompt + use.sampled,
            "input_tokens_details": {"cached_tokens": use.cached, "cache_write_tokens": use.prompt - use.cached},
            "output_tokens_details": {"reasoning_tokens": 0},
        }  # fmt: skip
        return made

    def start(self) -> Iterator[str]:
        for what in ("created", "in_progress"):
            yield self._event(what, response=self._response("in_progress", []))

    def events(self, index: int, piece: Piece) -> Iterator[str]:
        self.add(index, piece)
        if piece.text:
            yield from self._begin()
            entries = self._all.logprobs[self._told :]
            self._told += len(entries)
            yield self._event("output_text.delta", **self._at(), delta=piece.text, logprobs=entries)

    def end(self) -> Iterator[str]:
        whole = self.whole()
        for index, item in enumerate(whole["output"]):
            if item["type"] == "message":
                yield from self._begin()
                part = item["content"][0]
                text, logprobs = part["text"], part["logprobs"]
                yield self._event("output_text.done", **self._at(), text=text, logprobs=logprobs)
                yield self._event("content_part.done", **self._at(), part=part)
            else:
                begun = {**item, "status": "in_progress", "arguments": ""}
                yield self._event("output_item.added", output_index=index, item=begun)
                at, said = {"item_id": item["id"], "output_index": index}, item["arguments"]
                yield self._event("function_call_arguments.delta", **at, delta=said)
                yield self._event("function_call_arguments.done", **at, name=item["name"], arguments=said)
            yield self._event("output_item.done", output_index=index, item=item)
        yield self._event(whole["status"], response=whole)

    def failed(self, error: ApiError) -> Iterator[str]:
        made = self._response("failed", [])
        code = "invalid_prompt" if error.status == 400 else "server_error"  # OpenAI's names
        made["error"] = {"code": code, "message": str(error)}
        yield self._event("failed", response=made)

    def _begin(self) -> Iterator[str]:
        """The events of a message that begins."""
        if not self._open:
            self._open = True
            begun = {**self._text_item("in_progress"), "content": []}
            yield self._event("output_item.added", output_index=0, item=begun)
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            yield self._event("content_part.added", **self._at(), part=part)

    def _at(self) -> dict[str, Any]:
        return {"item_id": self._message, "output_index": 0, "content_index": 0}

    def _event(self, what: str, **more: Any) -> str:
        made = {"type": f"response.{what}", "sequence_number": self._numbers, **more}
        self._numbers += 1
        return f"event: response.{what}\ndata: {WRITE(made)}\n\n"

    def _response(self, status: str, output: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {**self._head, "status": status, "output": output, "usage": None}

    def _items(self) -> list[dict[str, Any]]:
        """The message, unless there are only calls, and the calls."""
        calls = [
            {
                "id": "fc_" + call["id"].removeprefix("call_"), "type": "function_call", "status": "completed",
                "call_id": call["id"], **call["function"],
            }
            for call in self._all.calls
        ]  # fmt: skip
        status = "incomplete" if self._all.reason == "length" else "completed"
        return [self._text_item(status), *calls] if self._all.text or not calls else calls

    def _text_item(self, status: str) -> dict[str, Any]:
        part = {
            "type": "output_text",
            "text": self._all.text,
            "annotations": [],
            "logprobs": self._all.logprobs,
        }
        return {
            "id": self._message,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [part],
        }
