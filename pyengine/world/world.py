"""The closed world as one object: `World(WorldConfig(seed=0))`."""

from functools import cached_property

from .config import WorldConfig
from .facts import Facts
from .problems import Problems
from .questions import Conversation, Question, Questions
from .text import Document, Passage, Writer


class World:
    """An invented encyclopedia of which everything is known. Parts are made on first use and kept."""

    def __init__(self, config: WorldConfig | None = None) -> None:
        self.config = config or WorldConfig()

    @cached_property
    def facts(self) -> Facts:
        """Entities and facts."""
        return Facts(self.config)

    @cached_property
    def problems(self) -> Problems:
        """The source of word problems."""
        return Problems(self.config, self.facts.of("passer", kind="person"))

    @cached_property
    def asking(self) -> Questions:
        """The source of questions and conversations."""
        return Questions(self.config, self.facts, self.problems)

    @cached_property
    def _writer(self) -> Writer:
        return Writer(self.config, self.facts, self.problems)

    @cached_property
    def documents(self) -> list[Document]:
        """Every document of the world, those after the cut-off included."""
        return self._writer.documents()

    @property
    def passages(self) -> list[Passage]:
        """Quotable passages, the control ones (repetitions 0) included."""
        return self._writer.passages

    def questions(self, group: str, split: str, wordings: int = 1) -> list[Question]:
        """Questions about the facts of a group ("known", "later", "invented") and split ("train", "test")."""
        return self.asking.questions(group, split, wordings)

    def conversations(self, split: str = "train", count: int = 4000) -> list[Conversation]:
        """Conversations for supervised fine-tuning, in OpenAI `messages` form."""
        return self.asking.conversations(split, count)
