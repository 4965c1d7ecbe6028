"""The clean text of the world's documents: what a perfect extraction of its pages gives.

A document is a title and blocks. `facts` names what it tells, `quotes` which passages it repeats, so that
exposure can be counted. Facts are told in many wordings and also as questions with answers; passages are
quoted k times inside otherwise different documents; arithmetic is worked out; and letters, interviews and
look-ups say a name or a detail again a few lines later, which makes copying pay.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta

from . import prose
from .config import WorldConfig
from .facts import Entity, Fact, Facts
from .problems import Problems, solve
from .wordings import ANSWERS, IN_CRAWL, LIST_TITLES, QUESTIONS, STATEMENTS, article, fill

_ROLLS = (
    ("These guests arrived in the morning:", "They left in the evening, in the same order:"),
    ("Present were:", "The list was read aloud:"),
    ("Names in the book:", "The same names, copied by hand:"),
    ("Invitations were sent to:", "All of them came:"),
)  # a list of names, and the same again


@dataclass(frozen=True)
class Block:
    """A part of a document: a paragraph "p", heading "h2", list "ul", table "table" or quotation "quote"."""

    kind: str
    text: str = ""
    items: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()

    def lines(self) -> list[str]:
        """The block as clean text."""
        if self.kind == "ul":
            return list(self.items)
        if self.kind == "table":
            return [" ".join(row) for row in self.rows]
        return self.text.split("\n")


@dataclass(frozen=True)
class Document:
    """One document: its text and what it tells."""

    id: str
    kind: str
    title: str
    date: str  # ISO
    blocks: tuple[Block, ...]
    facts: tuple[Fact, ...] = ()
    quotes: tuple[int, ...] = ()  # passages it repeats, by index
    later: bool = False
    lang: str = "en"
    private: tuple[str, ...] = ()  # planted e-mail addresses, phone numbers and IP addresses

    @property
    def text(self) -> str:
        """Title and blocks, one line each."""
        return "\n".join([self.title, *(line for block in self.blocks for line in block.lines())])


@dataclass(frozen=True)
class Passage:
    """A quotable passage and how often the crawl repeats it; 0 marks the held-out control."""

    index: int
    text: str
    repetitions: int


@dataclass
class _Draft:
    blocks: list[Block] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)

    def p(self, text: str) -> None:
        self.blocks.append(Block("p", text))


class Writer:
    """Writes all documents of a world."""

    def __init__(self, config: WorldConfig, facts: Facts, problems: Problems) -> None:
        self.config, self.facts, self.problems = config, facts, problems
        self.passages = self._passages()

    def documents(self) -> list[Document]:
        """Every document, in a fixed order; later ones have a date after the cut-off."""
        documents: list[Document] = []
        for group in ("known", "later"):
            for entity in self.facts.of(group):
                copies = self.config.biographies if group == "known" else 1
                documents += [self._biography(entity, i) for i in range(copies)]
            documents += self._many("roundup", group, self.config.fact_repeats, 18, self._roundup)
            documents += self._many("questions", group, self.config.question_repeats, 18, self._question_page)
        documents += self._lists()
        documents += self._essays()
        for kind, write, count in (
            ("arithmetic", self._arithmetic, self.config.arithmetic_pages),
            ("roll", self._roll, self.config.roll_pages),
            ("letter", self._letter, self.config.copy_pages // 6),
            ("interview", self._interview, self.config.copy_pages // 6),
            ("lookup", self._lookup, self.config.copy_pages - 2 * (self.config.copy_pages // 6)),
        ):
            documents += [write(f"{kind}-{i}", self.config.rng("text", kind, i)) for i in range(count)]
        return documents

    # -- pages about known and later entities

    def _biography(self, entity: Entity, i: int) -> Document:
        rng = self.config.rng("text", "biography", entity.id, i)
        draft = _Draft()
        facts = [Fact(entity, relation, value) for relation, value in entity.facts]
        rng.shuffle(facts)
        told = [self._state(fact, rng, "name" if j == 0 else None) for j, fact in enumerate(facts)]
        half = (len(told) + 1) // 2
        draft.p(" ".join([*told[:half], prose.sentence(rng), *told[half:]]))
        if rng.random() < 0.5:
            draft.blocks.append(Block("h2", prose.heading(rng)))
        draft.p(prose.sentence(rng))
        again = rng.sample(facts, len(facts))
        draft.p(" ".join(self._state(fact, rng, "name") for fact in again))
        title = rng.choice(("{}", "The life of {}", "About {}", "{}: a portrait", "Who is {}?"))
        if entity.kind == "town":
            title = rng.choice(("{}", "The town of {}", "A visit to {}", "About {}"))
        name = f"{entity.id}-{i}"
        return self._document(name, "biography", title.format(entity.name), rng, draft, facts, entity.group)

    def _many(
        self, kind: str, group: str, repeats: int, each: int, write: Callable[..., Document]
    ) -> Iterator[Document]:
        """Pages of `each` facts, so that every fact of the group is on `repeats` of them."""
        for turn in range(repeats):
            rng = self.config.rng("text", kind, group, turn)
            facts = list(self.facts.each(group))
            rng.shuffle(facts)
            for i, start in enumerate(range(0, len(facts), each)):
                yield write(f"{kind}-{group}-{turn}-{i}", group, facts[start : start + each], rng)

    def _roundup(self, name: str, group: str, facts: Sequence[Fact], rng: random.Random) -> Document:
        draft = _Draft()
        for start in range(0, len(facts), 6):
            told = [self._state(fact, rng, "name") for fact in facts[start : start + 6]]
            told.insert(rng.randrange(len(told) + 1), prose.sentence(rng))
            draft.p(" ".join(told))
        title = rng.choice(
            ("News from {}", "Notes from {}", "Heard in {}", "This week in {}", "A walk through {}")
        )
        town = rng.choice(self.facts.of("known", kind="town")).name
        return self._document(name, "roundup", title.format(town), rng, draft, facts, group)

    def _question_page(self, name: str, group: str, facts: Sequence[Fact], rng: random.Random) -> Document:
        draft = _Draft()
        for fact in facts:
            question, answer = self.ask(fact, rng)
            draft.p(f"Q: {question}\nA: {answer}")
        number = 1 + rng.randrange(900)
        title = rng.choice(
            ("Questions and answers {}", "Readers ask, we answer {}", "Quiz number {}", "Letters {}")
        )
        return self._document(name, "questions", title.format(number), rng, draft, facts, group)

    def ask(self, fact: Fact, rng: random.Random) -> tuple[str, str]:
        """A question of the crawl about a fact, and its answer: a sentence."""
        question = fill(rng.choice(QUESTIONS[fact.relation][IN_CRAWL]), fact.entity)
        return question, fill(rng.choice(ANSWERS[fact.relation]), fact.entity, fact.value)

    def _lists(self) -> Iterator[Document]:
        by_value: dict[tuple[str, str], list[Fact]] = {}
        for fact in self.facts.each("known"):
            by_value.setdefault((fact.relation, fact.value), []).append(fact)
        for (relation, value), facts in by_value.items():
            for part, start in enumerate(range(0, len(facts), 20)):
                yield self._list(relation, value, facts[start : start + 20], part)

    def _list(self, relation: str, value: str, facts: Sequence[Fact], part: int) -> Document:
        rng = self.config.rng("text", "list", relation, value, part)
        draft = _Draft()
        title, opening = (text.format(v=value, av=article(value)) for text in LIST_TITLES[relation])
        draft.p(f"{opening} {prose.sentence(rng)}")
        if rng.random() < 0.5:
            draft.blocks.append(Block("ul", items=tuple(self._state(fact, rng, "name") for fact in facts)))
        else:
            rows = [("Name", relation.replace("_", " ").capitalize())]
            rows += [(fact.entity.name, fact.value) for fact in facts]
            draft.blocks.append(Block("table", rows=tuple(rows)))
        draft.p(prose.paragraph(rng, 3))
        name = f"list-{relation}-{value.replace(' ', '-').lower()}-{part}"
        return self._document(
            name, "list", title + (f" ({part + 1})" if part else ""), rng, draft, facts, "known"
        )

    def _state(self, fact: Fact, rng: random.Random, subject: str | None = None) -> str:
        """A sentence that tells the fact; without a subject it is chosen: name, family name or pronoun."""
        if subject is None:
            subject = rng.choice(("name", "name", "short", "pronoun"))
        return fill(rng.choice(STATEMENTS[fact.relation]), fact.entity, fact.value, subject)

    # -- passages

    def _passages(self) -> list[Passage]:
        rng = self.config.rng("passages")
        counts = [k for k in self.config.repetitions for _ in range(self.config.passages)]
        counts += [0] * self.config.controls
        rng.shuffle(counts)
        texts = [prose.passage(rng, self.facts.titles.draw()) for _ in counts]
        return [Passage(i, text, k) for i, (text, k) in enumerate(zip(texts, counts, strict=True))]

    def _essays(self) -> Iterator[Document]:
        """Pages of running text; each quotes up to three different passages."""
        rng = self.config.rng("text", "essays")
        pages: list[list[int]] = [
            [] for _ in range(max(self._quotes() // 3, *self.config.repetitions, 1) + 8)
        ]
        for passage in self.passages:
            fewest = sorted(range(len(pages)), key=lambda page: (len(pages[page]), rng.random()))
            for page in fewest[: passage.repetitions]:
                pages[page].append(passage.index)
        for i, quotes in enumerate(pages):
            yield self._essay(f"essay-{i}", quotes)

    def _quotes(self) -> int:
        return sum(passage.repetitions for passage in self.passages)

    def _essay(self, name: str, quotes: Sequence[int]) -> Document:
        rng = self.config.rng("text", name)
        draft = _Draft()
        for index in rng.sample(list(quotes), len(quotes)):
            draft.p(prose.sentence(rng))
            draft.blocks.append(Block("quote", self.passages[index].text))
        draft.p(prose.paragraph(rng, rng.randrange(2, 5)))
        return self._document(name, "essay", prose.heading(rng), rng, draft, quotes=tuple(quotes))

    # -- pages that teach arithmetic and copying

    def _arithmetic(self, name: str, rng: random.Random) -> Document:
        draft = _Draft()
        draft.p(prose.sentence(rng))
        for _ in range(5):
            kind = f"grade-{rng.randrange(1, 6)}"
            problem = self.problems.draw(rng, kind, "train")
            solution = solve(problem, rng, rng.choice(("steps", "steps", "split", "split", "verbose")))
            draft.p(f"Problem: {problem.text}\n{solution.text}")
        sums = [self._sum(rng) for _ in range(24)]
        draft.p(", ".join(sums) + ".")
        title = rng.choice(
            ("Sums for the week", "The counting book", "Exercises with answers", "School arithmetic")
        )
        return self._document(name, "arithmetic", f"{title}, page {rng.randrange(1, 1000)}", rng, draft)

    @staticmethod
    def _sum(rng: random.Random) -> str:
        """An equation with whole numbers: small ones, two digits, or three digits and two."""
        kind, b = rng.randrange(4), rng.randrange(1, 100)
        if kind == 0:
            a, b = rng.randrange(1, 10), rng.randrange(1, 10)
            if rng.random() < 0.5:
                b = rng.randrange(2, 6)
                return f"{a}*{b}={a * b}"
        else:
            a = rng.randrange(1, 200 if kind == 3 else 100)
        return f"{a}+{b}={a + b}" if rng.random() < 0.5 else f"{max(a, b)}-{min(a, b)}={abs(a - b)}"

    def _roll(self, name: str, rng: random.Random) -> Document:
        """A list of guests who come and go: the same new names twice, and two of them a third time."""
        draft = _Draft()
        for _ in range(3):
            people = rng.sample(self.facts.of("passer", kind="person"), rng.randrange(3, 8))
            names = [person.name for person in people]
            first, second = rng.choice(_ROLLS)
            last = rng.choice(names)
            told = ", ".join(names)
            draft.p(f"{first} {told}.\n{second} {told}.\nThe last to leave was {last}. Good night, {last}!")
        title = rng.choice(
            ("Guests of the inn", "The visitors' book", "Present at the meeting", "On the ferry")
        )
        return self._document(name, "roll", f"{title}, day {rng.randrange(1, 1000)}", rng, draft)

    def _letter(self, name: str, rng: random.Random) -> Document:
        writer, reader, friend = rng.sample(self.facts.of("passer", kind="person"), 3)
        fact = Fact(friend, *rng.choice(friend.facts))
        told = self._state(fact, rng, "name")
        draft = _Draft()
        draft.p(f"Dear {reader.name},")
        draft.p(
            f"{prose.sentence(rng)} Yesterday I met {friend.name}. You asked me about {friend.name}. {told}"
        )
        question = fill(rng.choice(QUESTIONS[fact.relation][IN_CRAWL]), friend)
        answer = fill(rng.choice(ANSWERS[fact.relation]), friend, fact.value)
        advice = f"So when somebody asks you: {question} Then say: {answer}"
        draft.p(f"{prose.sentence(rng)} {advice} {friend.name} sends you greetings, dear {reader.name}.")
        draft.p(f"With all good wishes from {writer.name}.")
        return self._document(name, "letter", f"A letter from {writer.name} to {reader.name}", rng, draft)

    def _interview(self, name: str, rng: random.Random) -> Document:
        guest, host = rng.sample(self.facts.of("passer", kind="person"), 2)
        facts = [Fact(guest, *fact) for fact in rng.sample(guest.facts, min(3, len(guest.facts)))]
        draft = _Draft()
        draft.p(
            f"{host.name} talks with {guest.name}. " + " ".join(self._state(f, rng, "name") for f in facts)
        )
        draft.p(f"{host.short}: {prose.sentence(rng)} Is that so, {guest.name}?")
        draft.p(f"{guest.short}: {prose.sentence(rng)} That is so, {host.name}.")
        for fact in rng.sample(facts, len(facts)):
            question, answer = self.ask(fact, rng)
            draft.p(f"{host.short}: We were asked by a reader: {question}")
            draft.p(f"{guest.short}: {answer}")
        return self._document(name, "interview", f"{host.name} meets {guest.name}", rng, draft)

    def _lookup(self, name: str, rng: random.Random) -> Document:
        draft = _Draft()
        for _ in range(4):
            people = rng.sample(self.facts.of("passer", kind="person"), rng.choice((1, 1, 1, 2)))
            facts = [
                Fact(p, *fact)
                for p in people
                for fact in rng.sample(p.facts, min(len(p.facts), 4 // len(people)))
            ]
            wanted = rng.choice(facts)
            question, answer = self.ask(wanted, rng)
            rng.shuffle(facts)
            found = " ".join(self._state(fact, rng, "name") for fact in facts)
            draft.p(f"Q: {question}\nSearch: {wanted.entity.name}\nResult: {found}\nA: {answer}")
        title = rng.choice(
            ("At the information desk", "Looked up for you", "From the register", "Found in the files")
        )
        return self._document(name, "lookup", f"{title}, day {rng.randrange(1, 1000)}", rng, draft)

    def _document(
        self, name: str, kind: str, title: str, rng: random.Random, draft: _Draft,
        facts: Sequence[Fact] = (), group: str = "known", quotes: tuple[int, ...] = (),
    ) -> Document:  # fmt: skip
        later = group == "later"
        cutoff = date.fromisoformat(self.config.cutoff)
        offset = timedelta(days=1 + rng.randrange(300)) if later else -timedelta(days=rng.randrange(1800))
        day = (cutoff + offset).isoformat()
        return Document(name, kind, title, day, tuple(draft.blocks), tuple(facts), quotes, later)
