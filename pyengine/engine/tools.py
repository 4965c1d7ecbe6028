"""Tools as a state machine over control tokens, the same in chat, server and RL.

    model:   <|search|> query <|end|>
    engine:  <|result|> passages <|end|> <|assistant|>      (forced: the model is not asked)
    model:   goes on

A tool maps ids to ids. What it returns is text of strangers: control tokens in it are dropped here, so it can
never open a turn or close the result. A tool that fails, or is called too often, answers with a text, and the
model goes on; a model that then still calls on is stopped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

FAILED = "The search failed."
EXHAUSTED = "No further search is allowed."

Tool = Callable[[list[int]], Sequence[int]]


@dataclass(frozen=True)
class Tools:
    """The search tool and its limits. All tokens are ids; `controls` are all special ones."""

    search: Tool
    open: int  # <|search|>
    close: int  # <|end|>
    result: int  # <|result|>
    resume: int  # <|assistant|>
    controls: frozenset[int]
    failed: tuple[int, ...] = ()  # what the model reads when the tool raised
    exhausted: tuple[int, ...] = ()  # what it reads when it may not call again
    max_calls: int = 2
    max_result: int = 256

    @classmethod
    def for_search(cls, search: Tool, tokenizer: Any, **limits: int) -> "Tools":
        """The tools of a tokenizer with our special tokens. limits: max_calls, max_result."""
        ids = tokenizer.special_ids
        return cls(
            search,
            open=ids["<|search|>"],
            close=ids["<|end|>"],
            result=ids["<|result|>"],
            resume=ids["<|assistant|>"],
            controls=frozenset(ids.values()),
            failed=tuple(tokenizer.encode(" " + FAILED)),
            exhausted=tuple(tokenizer.encode(" " + EXHAUSTED)),
            **limits,
        )

    def start(self) -> "ToolState":
        return ToolState(self)


class ToolState:
    """Follows one request's sampled tokens."""

    def __init__(self, tools: Tools):
        self.tools = tools
        self.calls = 0
        self.query: list[int] = []
        self.writing = False  # the model is inside a call
        self.last_error = ""

    def follow(self, token: int) -> bool:
        """Take a sampled token; True if it belongs to a call, which has ended if `writing` is now False."""
        if not self.writing:
            if token == self.tools.open:
                self.writing, self.query = True, []
            return self.writing
        if token == self.tools.close:
            self.writing = False
            self.calls += 1
        else:
            self.query.append(token)
        return True

    def answer(self) -> list[int]:
        """The forced tokens after a call that has ended; empty if the model calls on though told not to."""
        tools = self.tools
        if self.calls > tools.max_calls + 1:
            return []
        found = self._search() if self.calls <= tools.max_calls else tools.exhausted
        text = [token for token in found if token not in tools.controls][: tools.max_result]
        return [tools.result, *text, tools.close, tools.resume]

    def _search(self) -> Sequence[int]:
        try:
            return self.tools.search(self.query)
        except (
            Exception
        ) as error:  # a stranger's code: its failure is the model's to read, not ours to die of
            self.last_error = f"{type(error).__name__}: {error}"
            return self.tools.failed
