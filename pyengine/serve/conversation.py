"""A conversation over the engine: messages in, events out as the model writes, messages kept.

    talk = Conversation(engine, tokenizer, OwnFormat(tokenizer))
    for event in talk.ask("Who founded Tavor?"):
        event.kind, event.text        # "text" of the answer, the "query" of a search, the "result" it read

Text comes in whole characters. When the context is full, the oldest turns are forgotten first.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from ..engine import Completion, Engine, SamplingParams, Token
from ..errors import UserError
from ..text import Tokenizer
from ..text.chat import search_call
from .formats import Format

MIN_ANSWER = 16  # tokens of context kept free for an answer


class Event(NamedTuple):
    """A piece of what the model wrote ("text", "query") or read ("result"), and the token that completed it."""

    kind: str
    text: str
    token: Token | None = None


class Conversation:
    """Messages so far (OpenAI's shape), and how to go on."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        format: Format,
        params: SamplingParams | None = None,
        system: str = "",
    ):
        self.engine, self.tokenizer, self.format, self.system = engine, tokenizer, format, system
        self.params = replace(params or SamplingParams(), stop=format.stop)
        self.messages: list[dict[str, Any]] = []
        self.forgotten = 0  # turns dropped to make room
        self.completion: Completion | None = None  # of the last answer

    def reset(self) -> None:
        """Forget what was said; system prompt and parameters stay."""
        self.messages, self.forgotten = [], 0

    def take_back(self) -> str | None:
        """Forget the last question and what followed it; the question, or None if there is none."""
        asked = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        if not asked:
            return None
        text = self.messages[asked[-1]]["content"]
        del self.messages[asked[-1] :]
        return text

    def ask(self, text: str) -> Iterator[Event]:
        """Answer a user's message. Closing the iterator stops the answer; what came is kept."""
        self.messages.append({"role": "user", "content": text})
        prompt = self._prompt()
        params = replace(
            self.params, max_tokens=min(self.params.max_tokens, self.engine.max_context - len(prompt))
        )
        reader = Reader(self.tokenizer, self.format.spaced)
        request = self.engine.add(prompt, params)
        self.completion = request.completion
        try:
            for token in self.engine.follow(request):
                if event := reader.push(token):
                    yield event._replace(token=token)
            if event := reader.flush():
                yield event
        finally:
            self.engine.cancel(request)
            self.messages += reader.messages()

    def _prompt(self) -> list[int]:
        """The ids of the conversation, its oldest turns dropped until an answer fits."""
        while len(ids := self._ids()) > self.engine.max_context - MIN_ANSWER:
            starts = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
            if len(starts) < 2:
                self.messages.pop()
                room = self.engine.max_context - MIN_ANSWER
                raise UserError(
                    f"the message has {len(ids)} tokens, the model's context holds {room}; shorten it"
                )
            del self.messages[: starts[1]]
            self.forgotten += 1
        return ids

    def _ids(self) -> list[int]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return self.format.prompt(system + self.messages)


class Reader:
    """Turns the tokens of an answer into events, and at the end into messages.

    spaced: as the Format has it. kind: of what the answer begins with.
    """

    def __init__(self, tokenizer: Tokenizer, spaced: bool, kind: str = "text"):
        self._spaced = spaced
        self._tokenizer = tokenizer
        kinds = {"<|search|>": "query", "<|result|>": "result", "<|assistant|>": "text"}
        self._kinds = {i: kinds[name] for name, i in tokenizer.special_ids.items() if name in kinds}
        self._parts = [[kind, ""]]
        self._decoder = tokenizer.decode_stream(skip_special=True)

    def push(self, token: Token) -> Event | None:
        """The text that a token completes."""
        if not self._tokenizer.is_special(token.id):
            return self._event(self._decoder.push(token.id))
        event = self.flush()
        # of what a model writes only the opening of a search counts, and none inside a query
        if kind := self._kinds.get(token.id):
            if token.forced or (kind == "query" and self.kind != "query"):
                self._parts.append([kind, ""])
        return event

    @property
    def kind(self) -> str:
        """Of what is being written or read now."""
        return self._parts[-1][0]

    def flush(self) -> Event | None:
        """What is left of a character that never became whole."""
        rest, self._decoder = self._decoder.end(), self._tokenizer.decode_stream(skip_special=True)
        return self._event(rest)

    def messages(self) -> list[dict[str, Any]]:
        """The answer as messages: searches, what they found, the text."""
        made: list[dict[str, Any]] = []
        said = ""
        for kind, text in self._parts:
            if kind == "text":
                said = text
            elif kind == "query":
                made.append(search_call(text, said or None))
                said = ""
            else:
                made.append({"role": "tool", "content": text})
        if made and made[-1]["role"] == "assistant":
            made.append({"role": "tool", "content": ""})  # cut off before the result came
        return [*made, {"role": "assistant", "content": said}]

    def _event(self, text: str) -> Event | None:
        if self._spaced and not self._parts[-1][1]:
            text = text.removeprefix(" ")
        if not text:
            return None
        self._parts[-1][1] += text
        return Event(self._parts[-1][0], text)
