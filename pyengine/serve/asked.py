"""What a client may ask for, checked: a JSON body becomes an Asked, or an ApiError in OpenAI's shape."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..engine import SamplingParams
from ..engine.sampling import MAX_TOP, Grammar
from ..errors import UserError
from ..text.chat import text_of
from .formats import NO_OPTIONS, TextFormat
from .grammar import Grammars
from .loading import Served

MAX_CHOICES = 16  # answers a request may ask for
MAX_STOPS = 8
MAX_STOP_IDS = 64
MAX_BIASES = 1024
JSON = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    list: "an array",
    dict: "an object",
}
ROLES = ("system", "developer", "user", "assistant", "tool")
# What an answer must keep to: as vLLM's server names it, today in structured_outputs and earlier by itself, and
# llama.cpp's.
KINDS = ("json", "regex", "choice", "grammar")
CONSTRAINTS = {f"guided_{kind}": kind for kind in KINDS} | {"json_schema": "json", "grammar": "grammar"}
# About the caller, not about the answer.
CALLER = {"user", "safety_identifier", "metadata", "prompt_cache_key", "prompt_cache_retention", "store"}
# Fields of which one value asks for nothing.
ONLY: Mapping[str, tuple[Any, ...]] = {
    "service_tier": ("auto", "default"), "modalities": (["text"],), "background": (False,),
    "truncation": ("disabled",), "skip_special_tokens": (True,), "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,), "use_beam_search": (False,), "cache_prompt": (True,),
}  # fmt: skip
# Of these, what other servers' clients send as a matter of course.
DEFAULTS = {
    "skip_special_tokens", "spaces_between_special_tokens", "include_stop_str_in_output", "use_beam_search",
    "cache_prompt",
}  # fmt: skip
SAMPLING = {
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "logit_bias", "seed", "ignore_eos", "min_tokens", "stop_token_ids",
}  # fmt: skip
BOTH = {
    "model", "n", "stop", "stream", "stream_options", "max_tokens", "logprobs", "events", "response_format",
    "structured_outputs", *SAMPLING, *CONSTRAINTS, *CALLER, *DEFAULTS,
}  # fmt: skip
CHAT = BOTH | {
    "messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls",
    "continue_final_message", "chat_template_kwargs", "add_generation_prompt", "service_tier", "modalities",
}  # fmt: skip
COMPLETE = BOTH | {"prompt", "echo", "best_of"}
STREAM_OPTIONS = {"include_usage", "include_obfuscation"}

T = TypeVar("T")


class ApiError(Exception):
    """An error as the client sees it."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ):
        super().__init__(message)
        about = {"message": message, "type": kind, "param": param, "code": code}
        self.body: dict[str, dict[str, Any]] = {"error": about}
        self.status = status


@dataclass(frozen=True)
class Asked:
    """A request, checked. prompts: one answer each, already n times over. spaced: as the Format has it."""

    chat: bool
    prompts: list[list[int]]
    params: list[SamplingParams]  # one a prompt
    n: int
    prompt_tokens: int  # each different prompt counted once
    stop: tuple[str, ...]
    stream: bool
    logprobs: bool  # whether the answer shows them
    usage: bool  # whether a stream ends with its usage
    events: bool  # our extension: tokens, searches and what they found, in a field `tokens`
    calls: bool  # a search is the client's to make
    opened: str = (
        ""  # by the prompt, so that the answer must be a call: "query" of our search, or "call" in JSON
    )
    single: bool = False  # at most one call
    spaced: bool = False
    echo: tuple[str, ...] = ()  # what each answer begins with
    echoed: tuple[int, ...] = ()  # of each prompt the ids, its last ones, that this is the text of
    silent: bool = False  # the answer is what it begins with, and no more
    ends: frozenset[int] = frozenset()  # ids by which the client ends an answer, which are not shown


class Checker:
    """Checks bodies for one served model."""

    def __init__(self, served: Served):
        self.served = served
        self._grammars: Grammars | None = None

    def chat(self, body: Mapping[str, Any]) -> Asked:
        """A body of /v1/chat/completions."""
        served, (prompt, tools, forced) = self.served, self.conversation(body)
        continued = bool(body.get("continue_final_message"))
        shown = field(body, "logprobs", bool, False)
        top = field(body, "top_logprobs", int, 0)
        if top and not shown:
            raise ApiError("top_logprobs: needs logprobs to be true", param="top_logprobs")
        grammar = self._grammar(body)
        opened = ""
        if forced:
            if grammar is not None:
                raise ApiError(
                    "response_format: an answer that must call a tool keeps to the tool's parameters instead",
                    param="response_format",
                )
            opened = "call" if served.format.search is None else "query"
            if opened == "call":
                grammar = self._of("tools", lambda made: made.call([tool["function"] for tool in tools]))
        choice = body.get("tool_choice")
        mine = not tools and choice != "none" and grammar is None and served.engine.tools is not None
        params = self._params(body, [prompt], top if shown else None)
        stop = served.format.stop
        if not mine and not tools and served.format.search is not None:
            stop = (*stop, served.format.search)  # a search that nobody would make ends the answer
        if tools:
            stop = tuple(i for i in stop if i != served.format.search)
        params = replace(params, stop=self._ends(body, stop), grammar=grammar, tools=mine)
        return self._asked(
            body, True, [prompt], params, logprobs=shown, calls=bool(tools), opened=opened,
            single=not field(body, "parallel_tool_calls", bool, True),
            spaced=served.format.spaced and not continued and grammar is None,
        )  # fmt: skip

    def conversation(self, body: Mapping[str, Any]) -> tuple[list[int], list[dict[str, Any]], bool]:
        """Of a body of /v1/chat/completions (the prompt's ids, the client's tools, whether one must be called)."""
        known(body, CHAT)
        tools, forced = self._tools(body)
        continued = field(body, "continue_final_message", bool, False)
        if continued and forced:
            raise ApiError(
                "continue_final_message: an answer that must call a tool cannot go on from a text",
                param="continue_final_message",
            )
        if field(body, "add_generation_prompt", bool, not continued) == continued:
            raise ApiError(
                "add_generation_prompt: expected true, or false where continue_final_message is true",
                param="add_generation_prompt",
            )
        options = self.options(body)
        prompt = (self._continued if continued else self.prompt)(body.get("messages"), tools, options)
        return prompt + (self.served.format.opening() if forced else []), tools, forced

    def options(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What a body tells the chat template, checked."""
        given, known = field(body, "chat_template_kwargs", dict, {}), self.served.format.options
        if unknown := sorted(set(given) - known):
            has = f"only {', '.join(sorted(known))}" if known else "none"
            raise ApiError(
                f"chat_template_kwargs: the model's chat template has no variable {unknown[0][:100]!r} ({has})",
                param="chat_template_kwargs",
            )
        return given

    def prompt(
        self, messages: Any, tools: Sequence[Mapping[str, Any]] = (), options: Mapping[str, Any] = NO_OPTIONS
    ) -> list[int]:
        """The ids of a conversation in OpenAI's shape."""
        check_messages(messages)
        try:
            return self.served.format.prompt(known_roles(messages), tools, options)
        except (UserError, KeyError, TypeError, AttributeError) as error:
            raise ApiError(f"messages: {error}", param="messages") from None

    def _continued(
        self, messages: Any, tools: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
    ) -> list[int]:
        """The ids of a conversation whose last message is the beginning of the answer."""
        check_messages(messages)
        last = messages[-1]
        if last["role"] != "assistant" or last.get("tool_calls") or len(messages) < 2:
            raise ApiError(
                "continue_final_message: expected the last of several messages to be the assistant's, without calls",
                param="continue_final_message",
            )
        ids = self.prompt(messages[:-1], tools, options)
        text = " " * self.served.format.spaced + text_of(last, "the last message")
        return ids + self.served.tokenizer.encode(text)

    def complete(self, body: Mapping[str, Any]) -> Asked:
        """A body of /v1/completions."""
        known(body, COMPLETE)
        prompt = body.get("prompt")
        several = prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else None
        prompts = [self._ids(one) for one in several or [prompt]]
        top = field(body, "logprobs", int, None)
        echo = field(body, "echo", bool, False)
        silent = echo and body.get("max_tokens") == 0  # only the prompt's likelihood is wanted
        params = self._params({**body, "max_tokens": 1} if silent else body, prompts, top)
        stop = self._ends(body, TextFormat(self.served.tokenizer).stop)
        params = replace(params, stop=stop, grammar=self._grammar(body), tools=False)
        more: dict[str, Any] = {}
        if echo:
            given = several or [prompt]
            texts = [one if isinstance(one, str) else self.served.tokenizer.decode(one) for one in given]
            before = len(self._ids(""))  # what our format puts before a text
            counts = [
                len(ids) - before * isinstance(one, str) for ids, one in zip(prompts, given, strict=True)
            ]
            more = {"silent": silent, "echo": texts, "echoed": counts}
        return self._asked(body, False, prompts, params, logprobs=top is not None, **more)

    def _ids(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            return TextFormat(self.served.tokenizer).prompt([{"role": "user", "content": prompt}])
        if isinstance(prompt, list) and prompt and all(type(i) is int for i in prompt):
            size = self.served.tokenizer.vocab_size
            if not all(0 <= i < size for i in prompt):
                raise ApiError(f"prompt: expected ids below {size}", param="prompt")
            return prompt
        raise ApiError("prompt: expected a text, or a list of texts or of ids", param="prompt")

    def _asked(
        self,
        body: Mapping[str, Any],
        chat: bool,
        prompts: list[list[int]],
        params: SamplingParams,
        echo: Sequence[str] = (),
        echoed: Sequence[int] = (),
        **more: Any,
    ) -> Asked:
        n = field(body, "n", int, 1)
        if not 1 <= n * len(prompts) <= MAX_CHOICES:
            raise ApiError(f"n: expected 1 to {MAX_CHOICES} answers a request", param="n")
        if field(body, "best_of", int, n) != n:
            raise ApiError("best_of: is not supported beside n", param="best_of")
        stop = body.get("stop") or ()
        stop = (stop,) if isinstance(stop, str) else stop
        if (
            not isinstance(stop, Sequence)
            or len(stop) > MAX_STOPS
            or not all(isinstance(s, str) and s for s in stop)
        ):
            raise ApiError(f"stop: expected a text or up to {MAX_STOPS} texts", param="stop")
        options = field(body, "stream_options", dict, {})
        if options and not body.get("stream"):
            raise ApiError("stream_options: needs stream to be true", param="stream_options")
        known(options, STREAM_OPTIONS, "stream_options.")
        if params.min_tokens and params.grammar is not None:
            raise ApiError("min_tokens: an answer ends where its constraint does", param="min_tokens")
        each = []
        for prompt in prompts:
            room = self.served.engine.max_context - len(prompt)
            most, least = min(params.max_tokens, room), min(params.min_tokens, room)
            own = replace(params, max_tokens=most, min_tokens=least)
            for i in range(n):
                each.append(own if params.seed is None else replace(own, seed=(params.seed + i) % 2**63))
        return Asked(
            chat, list(_each(prompts, n)), each, n, sum(map(len, prompts)), tuple(stop),
            field(body, "stream", bool, False), usage=field(options, "include_usage", bool, False),
            events=field(body, "events", bool, False), echo=_each(echo, n), echoed=_each(echoed, n),
            ends=frozenset(body.get("stop_token_ids") or ()),
            **{"calls": False, **more},
        )  # fmt: skip

    def _params(
        self, body: Mapping[str, Any], prompts: list[list[int]], logprobs: int | None
    ) -> SamplingParams:
        context = self.served.engine.max_context
        for prompt in prompts:
            if len(prompt) >= context:
                raise ApiError(
                    f"the prompt has {len(prompt)} tokens; the context holds {context}",
                    param="messages" if "messages" in body else "prompt", code="context_length_exceeded",
                )  # fmt: skip
        if logprobs is not None and not 0 <= logprobs <= MAX_TOP:
            raise ApiError(f"logprobs: expected 0 to {MAX_TOP} of the likeliest", param="logprobs")
        chat = "messages" in body
        limit = field(
            body, "max_completion_tokens", int, field(body, "max_tokens", int, context if chat else 16)
        )
        try:
            return SamplingParams(
                max_tokens=limit,
                temperature=field(body, "temperature", float, 1.0),
                min_tokens=field(body, "min_tokens", int, 0),
                top_k=0
                if body.get("top_k") == -1
                else field(body, "top_k", int, 0),  # vLLM's and llama.cpp's "off"
                top_p=field(body, "top_p", float, 1.0),
                min_p=field(body, "min_p", float, 0.0),
                repetition_penalty=field(body, "repetition_penalty", float, 1.0),
                presence_penalty=field(body, "presence_penalty", float, 0.0),
                frequency_penalty=field(body, "frequency_penalty", float, 0.0),
                logit_bias=self._biases(field(body, "logit_bias", dict, {})),
                seed=field(body, "seed", int, None),
                logprobs=logprobs,
                scored=field(body, "events", bool, False),
            )
        except UserError as error:
            raise ApiError(str(error)) from None

    def _ends(self, body: Mapping[str, Any], stop: tuple[int, ...]) -> tuple[int, ...]:
        """The ids that end an answer: `stop` unless it is to go on past its end (as vLLM's and llama.cpp's servers let
        it), and the client's own."""
        own, size = field(body, "stop_token_ids", list, []), self.served.tokenizer.vocab_size
        if len(own) > MAX_STOP_IDS or not all(type(i) is int and 0 <= i < size for i in own):
            raise ApiError(
                f"stop_token_ids: expected up to {MAX_STOP_IDS} ids below {size}", param="stop_token_ids"
            )
        return (*(() if field(body, "ignore_eos", bool, False) else stop), *own)

    def _biases(self, given: Mapping[str, Any]) -> dict[int, float]:
        size = self.served.tokenizer.vocab_size
        try:
            biases = {int(token): float(bias) for token, bias in given.items()}
        except (TypeError, ValueError, OverflowError):
            raise ApiError("logit_bias: expected ids and numbers", param="logit_bias") from None
        if len(biases) > MAX_BIASES or not all(0 <= token < size for token in biases):
            raise ApiError(f"logit_bias: expected up to {MAX_BIASES} ids below {size}", param="logit_bias")
        return biases

    def _grammar(self, body: Mapping[str, Any]) -> Grammar | None:
        """What the answer must keep to, by whichever name it is asked for."""
        asked = [(name, kind, body[name]) for name, kind in CONSTRAINTS.items() if body.get(name) is not None]
        named = field(body, "structured_outputs", dict, {})
        known(named, {*KINDS, "json_object"}, "structured_outputs.")
        for kind, value in named.items():
            if kind == "json_object" and value:
                asked.append(("structured_outputs.json_object", "json", {"type": "object"}))
            elif kind != "json_object" and value is not None:
                asked.append((f"structured_outputs.{kind}", kind, value))
        wish = field(body, "response_format", dict, {"type": "text"})
        if wish.get("type") == "json_object":
            asked.append(("response_format", "json", {"type": "object"}))
        elif wish.get("type") == "json_schema":
            schema = field(field(wish, "json_schema", dict, {}), "schema", dict, None)
            if schema is None:
                raise ApiError("response_format: json_schema.schema is missing", param="response_format")
            asked.append(("response_format", "json", schema))
        elif wish.get("type") != "text":
            raise ApiError(
                "response_format: expected text, json_object or json_schema", param="response_format"
            )
        if len(asked) > 1:
            raise ApiError(
                f"{asked[0][0]} and {asked[1][0]}: an answer keeps to one of them", param=asked[1][0]
            )
        return self._made(*asked[0]) if asked else None

    def _made(self, name: str, kind: str, value: Any) -> Grammar:
        """The grammar of a constraint."""
        if kind == "json" and isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                value = None
        if kind == "choice" and (
            not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value)
        ):
            raise ApiError(f"{name}: expected a list of texts", param=name)
        if kind != "choice" and not isinstance(value, dict if kind == "json" else str):
            raise ApiError(f"{name}: expected a {'schema' if kind == 'json' else 'text'}", param=name)
        return self._of(name, lambda made: getattr(made, kind)(value))

    def _of(self, param: str, make: Callable[[Grammars], Grammar]) -> Grammar:
        """A grammar that a parameter asks for."""
        try:
            self._grammars = self._grammars or Grammars(self.served.tokenizer, self.served.format.stop)
            return make(self._grammars)
        except UserError as error:
            raise ApiError(f"{param}: {error}", param=param) from None

    def _tools(self, body: Mapping[str, Any]) -> tuple[list[dict[str, Any]], bool]:
        """The client's tools, and whether the answer must call one; the engine's own are used where it brings none."""
        tools, names = field(body, "tools", list, []), []
        for tool in tools:
            function = tool.get("function") if isinstance(tool, dict) else None
            if not isinstance(function, dict) or not isinstance(function.get("name"), str):
                raise ApiError("tools: expected functions with a name", param="tools")
            if not isinstance(function.get("parameters") or {}, dict):
                raise ApiError(
                    f"tools: {function['name']}: expected parameters to be a schema", param="tools"
                )
            names.append(function["name"])
        mode, chosen = tool_choice(body)
        if mode == "none":
            return [], False
        if unknown := (chosen or set()) - set(names):
            raise ApiError(f"tool_choice: there is no tool {min(unknown)!r} in tools", param="tool_choice")
        if chosen is not None:
            tools = [tool for tool in tools if tool["function"]["name"] in chosen]
        if mode == "required" and not tools:
            raise ApiError(
                "tool_choice: tools is missing; name there what must be called", param="tool_choice"
            )
        known = self.served.format.tools
        if known is not None and not set(names) <= set(known):
            expected = f"only {', '.join(known)}" if known else "no tools"
            raise ApiError(f"tools: this model knows {expected}, got {', '.join(names)}", param="tools")
        return tools, mode == "required"


def constrained(body: Mapping[str, Any]) -> bool:
    """Whether a grammar must be made for the answer."""
    forced = body.get("tool_choice") not in (None, "none", "auto")
    return forced or any(body.get(name) for name in ("response_format", "structured_outputs", *CONSTRAINTS))


def known(body: Mapping[str, Any], names: Iterable[str], prefix: str = "") -> None:
    """ApiError if a body has a field that none of these names is, or asks with one for what there is not."""
    for name, value in body.items():
        if value is None:
            continue
        if name not in names:
            raise ApiError(f"{prefix}{name[:100]}: this server has no such field", param=prefix + name[:100])
        if name in ONLY and value not in ONLY[name]:
            raise ApiError(f"{name}: expected {' or '.join(map(json.dumps, ONLY[name]))}", param=name)


def tool_choice(body: Mapping[str, Any]) -> tuple[str, set[str] | None]:
    """("auto", "none" or "required"; the names it is about, None for all) of OpenAI's ways to say it."""
    wish = body.get("tool_choice")
    if wish is None:
        return "auto", None
    if wish in ("auto", "none", "required"):
        return wish, None
    try:
        if wish["type"] == "function":
            return "required", {str(wish["function"]["name"])}
        allowed = wish["allowed_tools"]
        if wish["type"] == "allowed_tools" and allowed["mode"] in ("auto", "required"):
            return allowed["mode"], {str(tool["function"]["name"]) for tool in allowed["tools"]}
    except (KeyError, TypeError):
        pass
    raise ApiError(
        "tool_choice: expected auto, none, required, a function by its name, or allowed_tools",
        param="tool_choice",
    )


def check_messages(messages: Any) -> None:
    """ApiError unless these are messages in OpenAI's shape, whatever the model's format makes of them."""
    if not isinstance(messages, list) or not messages:
        raise ApiError("messages: expected a list of at least one message", param="messages")
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise ApiError(
                f"{where}: expected an object whose role is one of {', '.join(ROLES)}", param=where
            )
        calls = message.get("tool_calls")
        if message.get("content") is None and not (message["role"] == "assistant" and calls):
            raise ApiError(f"{where}: content is missing", param=where)
        if calls is not None and not (isinstance(calls, list) and all(map(_is_call, calls))):
            raise ApiError(
                f"{where}: expected tool_calls to be a list of objects with function.name and function.arguments",
                param=where,
            )


def _each(items: Sequence[T], n: int) -> tuple[T, ...]:
    """What belongs to each prompt, for each of its n answers."""
    return tuple(item for item in items for _ in range(n))


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str) and "arguments" in function


def known_roles(messages: list[Any]) -> list[Any]:
    """OpenAI's newer clients call the system's part the developer's."""
    return [
        {**message, "role": "system"}
        if isinstance(message, dict) and message.get("role") == "developer"
        else message
        for message in messages
    ]


def field(body: Mapping[str, Any], name: str, kind: Any, default: Any) -> Any:
    """A field of a type; null and absence are the default."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, int) and kind is float and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**63 else math.inf
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ApiError(f"{name}: expected {JSON[kind]}, got {json.dumps(value)[:100]}", param=name)
    return value
