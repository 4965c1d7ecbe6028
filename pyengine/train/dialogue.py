"""Talking to the model under training, many questions at once, through the engine that will serve it.

    dialogue = Dialogue(model, tokenizer, index)           index: None where the model has nothing to search in
    replies = dialogue.ask(["Who plays the oboe?"], samples=8, temperature=0.8, seed=1)     [[Reply] * 8]

The engine reads the model's own parameters, so a dialogue stays right while they are trained. What a stage
measures is therefore what `python -m pyengine.chat` will show.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..engine import Completion, Engine, SamplingParams, Tools
from ..model import Transformer
from ..text import SearchTool, Tokenizer, render
from ..text.search import Index
from .scores import refuses

Question: TypeAlias = str | Sequence[Mapping[str, Any]]  # or the messages of a conversation so far
SEARCH_RESULTS = 1  # passages a search puts into the context
RESULT_TOKENS = 160  # and at most this many tokens of them


@dataclass(frozen=True)
class Reply:
    """What the model said to one question."""

    text: str  # its answer, without control tokens and without what a search brought
    query: str | None  # what it searched for first; None if it did not search
    completion: Completion
    found: str = ""  # what the search brought

    @property
    def action(self) -> str:
        """ "search", "refuse" or "answer": what it did first."""
        if self.query is not None:
            return "search"
        return "refuse" if refuses(self.text) else "answer"


class Dialogue:
    """Questions in, replies out. max_batch: replies written at once."""

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, index: Index | None = None, max_batch: int = 128
    ):
        self.tokenizer = tokenizer
        tools = None
        if index is not None:
            tool = SearchTool(index, tokenizer, k=SEARCH_RESULTS, max_tokens=RESULT_TOKENS)
            tools = Tools.for_search(tool, tokenizer, max_calls=1, max_result=RESULT_TOKENS)
        self.engine = Engine(model, tokenizer, tools, max_batch=max_batch)

    def prompt(self, question: Question) -> list[int]:
        """The ids of a question, or of a conversation that ends with one, up to where the model goes on."""
        messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
        return render(messages, self.tokenizer, add_generation_prompt=True)[0]

    def ask(
        self,
        questions: Sequence[Question],
        samples: int = 1,
        temperature: float = 0.0,
        max_tokens: int = 64,
        seed: int = 0,
    ) -> list[list[Reply]]:
        """`samples` replies to each question; reply j to question i depends on seed, i and j alone."""
        prompts, params = [], []
        for i, question in enumerate(questions):
            prompts += [self.prompt(question)] * samples
            for j in range(samples):
                params.append(
                    SamplingParams(
                        max_tokens=max_tokens,
                        temperature=temperature,
                        seed=((seed * 1_000_003 + i) * 1009 + j) % 2**63,
                        stop=(self.tokenizer.end,),
                    )
                )
        replies = [self._reply(completion) for completion in self.engine.generate(prompts, params)]
        return [replies[start : start + samples] for start in range(0, len(replies), samples)]

    def _reply(self, completion: Completion) -> Reply:
        t, ids = self.tokenizer, completion.ids
        own = len(ids)  # where the model's last turn begins
        while own and not completion.forced[own - 1]:
            own -= 1
        query = None
        if t.search in ids:
            start = ids.index(t.search) + 1
            end = ids.index(t.end, start) if t.end in ids[start:] else len(ids)
            query = t.decode(ids[start:end], skip_special=True).strip()
            if end == len(ids):
                own = end  # it never finished the query
        found = t.decode([i for i, f in zip(ids, completion.forced, strict=True) if f], skip_special=True)
        return Reply(t.decode(ids[own:], skip_special=True).strip(), query, completion, found)
