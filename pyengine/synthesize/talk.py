"""A conversation as a program that asks for one message after another, whoever writes them.

    talk = Talk(number, converse(prompt, number, Script(turns=2)))
    talk.ask                      what is to be written next
    talk.hear(reply)              None, or what was made, after the last reply

The same model plays both sides. As the user it is shown the conversation as a text, and asked for a question.
"""

import hashlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..data import Prompt
from ..text.chat import text_of

Messages = list[Mapping[str, Any]]

# What the model is asked for when it plays the user. Small models follow a plain request in a message of its own; with
# such words as a system prompt, and the conversation's roles exchanged, they go on answering.
ABOUT_TOPIC = "Write a short question about {}. Write the question only."
ABOUT_PASSAGE = (
    "{}\n\nWrite a short question about this text, which names what it is about. Write the question only."
)
NEXT = (
    "This is a conversation between a person and an assistant.\n\n{}\n\nWrite the next question that the person asks, "
    "about something that was not said yet. Write the question only."
)


@dataclass(frozen=True)
class Ask:
    """The next message that is wanted: after these, with this seed. searches: whether its writer may search."""

    messages: Messages
    seed: int
    searches: bool = True


@dataclass(frozen=True)
class Reply:
    """What was written: messages (an answer, with its searches before it). cut: it did not end by itself. error: why
    there is none."""

    messages: Sequence[Mapping[str, Any]] = ()
    cut: bool = False
    error: str = ""

    @property
    def text(self) -> str:
        """Of the last message."""
        return str(self.messages[-1]["content"] or "") if self.messages else ""


@dataclass(frozen=True)
class Made:
    """A conversation, as far as it came. cut, error: of the last reply."""

    messages: Messages
    cut: bool = False
    error: str = ""


Steps = Generator[Ask, Reply, Made]


class Talk:
    """A conversation being written."""

    def __init__(self, number: int, steps: Steps):
        self.number, self._steps = number, steps
        self.ask = next(steps)

    def hear(self, reply: Reply) -> Made | None:
        """Go on with what was written; the whole if that was the last of it."""
        try:
            self.ask = self._steps.send(reply)
        except StopIteration as end:
            return end.value
        return None


@dataclass(frozen=True)
class Script:
    """How conversations go. turns: answers in each. guideline: what who answers is told, and is not kept; system:
    likewise, and is kept as the conversation's first message. user: the same for who plays the user. given: passages
    stand in the first question, instead of being shown to the writers alone. seed: of all dice."""

    turns: int = 1
    guideline: str = ""
    system: str = ""
    user: str = ""
    given: bool = False
    seed: int = 0


def converse(prompt: Prompt, number: int, script: Script) -> Steps:
    """The steps of one conversation; `number` tells it apart from others with the same prompt."""
    messages: Messages = list(prompt.messages)
    if script.system and not (messages and messages[0]["role"] == "system"):
        messages.insert(0, {"role": "system", "content": script.system})
    for turn in range(script.turns):
        if not messages or messages[-1]["role"] != "user":
            reply = yield Ask(
                _users_view(messages, prompt, script), seed_of(script.seed, number, 2 * turn), False
            )
            said = reply.text.strip()
            if said and prompt.passage and script.given and turn == 0:
                said = f"{prompt.passage}\n\n{said}"
            messages.append({"role": "user", "content": said})
            if reply.cut or reply.error or not said:
                return Made(messages, reply.cut, reply.error)
        reply = yield Ask(
            _assistants_view(messages, prompt, script), seed_of(script.seed, number, 2 * turn + 1)
        )
        messages += reply.messages
        if reply.cut or reply.error or not reply.text:
            return Made(messages, reply.cut, reply.error)
    return Made(messages)


def once(ask: Ask) -> Steps:
    """The steps of a single reply."""
    reply = yield ask
    return Made(list(reply.messages), reply.cut, reply.error)


def _assistants_view(messages: Messages, prompt: Prompt, script: Script) -> Messages:
    told = [script.guideline]
    if prompt.passage and not script.given:
        told.append(f"Answer from this text, which the person has not seen:\n\n{prompt.passage}")
    return _under(told, messages)


def _users_view(messages: Messages, prompt: Prompt, script: Script) -> Messages:
    names = {"user": "Person", "assistant": "Assistant"}
    said = [
        f"{names[message['role']]}: {text_of(message, 'a message')}"
        for message in messages
        if message["role"] in names and not message.get("tool_calls")
    ]
    if said:
        wanted = NEXT.format("\n\n".join(said))
    else:
        wanted = ABOUT_PASSAGE.format(prompt.passage) if prompt.passage else ABOUT_TOPIC.format(prompt.topic)
    return _under([script.user], [{"role": "user", "content": wanted}])


def _under(told: Sequence[str], messages: Messages) -> Messages:
    """A conversation with one system message, in which these texts stand before its own."""
    own = [text_of(message, "the system message") for message in messages if message["role"] == "system"]
    text = "\n\n".join(filter(None, [*told, *own]))
    rest = [message for message in messages if message["role"] != "system"]
    return [{"role": "system", "content": text}, *rest] if text else rest


def seed_of(*parts: object) -> int:
    """A seed of 31 bits, which every server takes, from what it shall depend on."""
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
