"""The closed world as one object: `World(WorldConfig(seed=0))`."""

import re
from functools import cached_property
from importlib import resources
from urllib.parse import urlsplit

from . import prose
from .config import WorldConfig
from .facts import Facts
from .pages import Page, Site
from .portraits import Portraits
from .problems import Problems
from .questions import Conversation, Question, Questions
from .strays import Strays
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
    def portraits(self) -> Portraits:
        """The source of requests for portraits, and their judge."""
        return Portraits(self.config, self.facts)

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

    @cached_property
    def pages(self) -> list[Page]:
        """Every page of the site with its bytes and its truth, those after the cut-off included."""
        strays = Strays(self.config, self.facts.of("passer", kind="person"))
        return Site(self.config, self.documents, strays.documents()).pages()

    @cached_property
    def _by_path(self) -> dict[str, Page]:
        return {page.path: page for page in self.pages}

    def truth(self, url: str) -> Page | None:
        """The page that a URL (of whatever host, query and fragment aside) names, None for an unknown one."""
        path = urlsplit(url).path or "/"
        return self._by_path.get(re.sub(r"/(\./)+", "/", path))

    @property
    def passages(self) -> list[Passage]:
        """Quotable passages, the control ones (repetitions 0) included."""
        return self._writer.passages

    def opening(self, number: int) -> str:
        """The first lines of a page of running text that the site does not have: where a quotation may follow."""
        rng = self.config.rng("opening", number)
        return f"{prose.heading(rng)}\n{prose.sentence(rng)}\n"

    @property
    def guidelines(self) -> str:
        """The guidelines that the writers of the conversations follow."""
        return guidelines()

    def questions(self, group: str, split: str, wordings: int = 1) -> list[Question]:
        """Questions about the facts of a group ("known", "later", "invented") and split ("train", "test")."""
        return self.asking.questions(group, split, wordings)

    def conversations(self, split: str = "train", count: int = 4000) -> list[Conversation]:
        """Conversations for supervised fine-tuning, in OpenAI `messages` form."""
        return self.asking.conversations(split, count)


def guidelines() -> str:
    """The guidelines that the writers of the conversations follow."""
    return (resources.files(__package__) / "guidelines.md").read_text("utf-8")
