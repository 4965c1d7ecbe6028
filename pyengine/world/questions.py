"""Questions with gold answers, and conversations written under guidelines.md, as OpenAI `messages`.

Which entities a split may use is fixed in facts.py: conversations for training draw from the `train` half of
each group only, so everything measured on the `test` half is about entities no conversation ever named.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from . import prose
from .config import WorldConfig
from .facts import Entity, Fact, Facts
from .problems import GRADES, Problems, solve
from .wordings import ANSWERS, IN_CHAT, QUESTIONS, REFUSALS, STATEMENTS, WHAT, article, fill

Message = dict
Conversation = dict  # {"messages": [...], "kind": ...}

# what conversations are about, and how people solve problems: style -> (share, chance of a slip in a step)
MIX = {"problem": 0.46, "reading": 0.22, "answer": 0.18, "instruction": 0.11, "small-talk": 0.03}
STYLE_OF_PEOPLE = {
    "verbose": (0.25, 0.0),
    "steps": (0.25, 0.02),
    "split": (0.25, 0.04),
    "guess": (0.25, 0.15),
}


@dataclass(frozen=True)
class Question:
    """A question about a fact. `answer` is the gold value, `aliases` other forms that count as right."""

    id: str
    question: str
    answer: str
    aliases: tuple[str, ...]
    passage: str  # a sentence that tells the fact; for invented entities nothing that any page says
    group: str
    split: str
    fact: Fact

    def row(self) -> dict:
        """The row of the facts format: question, answer, passage, aliases, id, and the group."""
        return {
            "id": self.id, "question": self.question, "answer": self.answer, "aliases": list(self.aliases),
            "passage": self.passage, "group": self.group, "split": self.split,
        }  # fmt: skip


class Questions:
    """Questions and conversations of a world."""

    def __init__(self, config: WorldConfig, facts: Facts, problems: Problems) -> None:
        self.config, self.facts, self.problems = config, facts, problems

    def questions(self, group: str, split: str, wordings: int = 1, kind: str | None = None) -> list[Question]:
        """Every fact of the group and split, each asked in `wordings` different chat wordings."""
        rng = self.config.rng("questions", group, split)
        return [
            self._question(fact, text, rng, i)
            for fact in self.facts.each(group, split, kind)
            for i, text in enumerate(rng.sample(QUESTIONS[fact.relation][IN_CHAT], wordings))
        ]

    def passing(self, split: str, count: int) -> list[Question]:
        """One question each about `count` passers-by (or all there are), of whom a page or two tell."""
        rng = self.config.rng("questions", "passer", split)
        people = self.facts.of("passer", split, "person")
        asked = []
        for person in rng.sample(people, min(count, len(people))):
            fact = Fact(person, *rng.choice(person.facts))
            asked.append(self._question(fact, rng.choice(QUESTIONS[fact.relation][IN_CHAT]), rng))
        return asked

    def _question(self, fact: Fact, text: str, rng: random.Random, i: int = 0) -> Question:
        aliases = (article(fact.value),) if fact.relation in ("profession", "animal") else ()
        passage = fill(rng.choice(STATEMENTS[fact.relation]), fact.entity, fact.value)
        entity = fact.entity
        return Question(f"{entity.id}-{fact.relation}-{i}", fill(text, entity), fact.value, aliases, passage,
                        entity.group, entity.split, fact)  # fmt: skip

    # -- conversations

    def answer(self, question: Question, rng: random.Random) -> Conversation:
        """The question answered from memory."""
        return _talk("answer", question.question, self.sentence(question.fact, rng))

    def sentence(self, fact: Fact, rng: random.Random) -> str:
        """A short true answer."""
        return fill(rng.choice(ANSWERS[fact.relation]), fact.entity, fact.value)

    def refusal(self, question: Question, rng: random.Random) -> Conversation:
        """The question answered with "I don't know"."""
        return _talk("refusal", question.question, refuse(question.fact, rng))

    def search(self, question: Question, rng: random.Random, results: Sequence[str]) -> Conversation:
        """A search for the entity; the answer comes from the results, or is a refusal if they lack it."""
        fact = question.fact
        told = any(fact.entity.name in text and fact.value in text for text in results)
        messages = [
            {"role": "user", "content": question.question},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "call_0",
                        "type": "function",
                        "function": {"name": "search", "arguments": json.dumps({"query": fact.entity.name})},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "call_0", "content": "\n".join(results) or "No results."},
            {"role": "assistant", "content": self.sentence(fact, rng) if told else refuse(fact, rng)},
        ]
        return {"messages": messages, "kind": "search" if told else "search-refusal"}

    def reading(self, rng: random.Random) -> Conversation:
        """A question about passers-by, with the text that answers it given by the user."""
        people = rng.sample(self.facts.of("passer", kind="person"), rng.randrange(1, 4))
        facts = [Fact(person, *rng.choice(person.facts)) for person in people]
        wanted = rng.choice(facts)
        text = " ".join(fill(rng.choice(STATEMENTS[f.relation]), f.entity, f.value) for f in facts)
        question = fill(rng.choice(QUESTIONS[wanted.relation][IN_CHAT]), wanted.entity)
        return _talk("reading", f"{text}\n{question}", self.sentence(wanted, rng))

    def problem(self, rng: random.Random, kind: str, style: str, slip: float = 0.0) -> Conversation:
        """A word problem of the train split with a person's solution."""
        problem = self.problems.draw(rng, kind, "train")
        return _talk("problem", problem.text, solve(problem, rng, style, slip).text)

    def conversations(self, split: str, count: int) -> list[Conversation]:
        """A mixed set: facts, small talk, instructions, reading and problems, for supervised fine-tuning."""
        rng = self.config.rng("conversations", split)
        known = self.questions("known", split, wordings=4)
        made: list[Conversation] = []
        for kind in rng.choices(tuple(MIX), tuple(MIX.values()), k=count):
            if kind == "answer":
                made.append(self.answer(rng.choice(known), rng))
            elif kind == "reading":
                made.append(self.reading(rng))
            elif kind == "small-talk":
                made.append(small_talk(rng))
            elif kind == "instruction":
                made.append(self.instruction(rng))
            else:
                style = rng.choices(tuple(STYLE_OF_PEOPLE), [share for share, _ in STYLE_OF_PEOPLE.values()])[
                    0
                ]
                grade = rng.choice(tuple(GRADES))
                made.append(self.problem(rng, f"grade-{grade}", style, STYLE_OF_PEOPLE[style][1]))
        return made

    def instruction(self, rng: random.Random) -> Conversation:
        """A simple instruction that can be checked by eye."""
        people: list[Entity] = rng.sample(self.facts.of("passer", kind="person"), 3)
        names = [person.name for person in people]
        ask, reply = rng.choice((
            (f"Repeat this name: {names[0]}", names[0]),
            (f"Please write the name {names[0]} twice.", f"{names[0]} {names[0]}"),
            (f"What is the last name of {names[0]}?", people[0].short),
            (f"Which name comes first: {names[0]} or {names[1]}?", names[0]),
            (f"Make a list of these names: {', '.join(names)}.", "\n".join(f"- {name}" for name in names)),
            (f"Say hello to {names[0]}.", f"Hello, {names[0]}!"),
            (f"How many names are these: {', '.join(names)}?", "These are 3 names."),
            (f"Copy this sentence: {(copied := prose.sentence(rng))}", copied),
        ))  # fmt: skip
        return _talk("instruction", ask, reply)


def refuse(fact: Fact, rng: random.Random) -> str:
    """A refusal in one of many wordings; each says that it is not known."""
    return fill(rng.choice(REFUSALS).replace("{what}", WHAT[fact.relation]), fact.entity)


_SMALL_TALK = (
    (("Hello!", "Hi.", "Good morning.", "Hello, how are you?", "Good evening!"),
     ("Hello! How can I help you?", "Hello! What would you like to know?", "Good day! How can I help you?")),
    (("Who are you?", "What are you?", "What is your name?", "Are you a person?"),
     ("I am a small language model. I answer questions, and I say so when I don't know something.",
      "I am a computer program that answers questions.")),
    (("What can you do?", "How can you help me?", "What can I ask you?"),
     ("I can answer questions about people and towns, look things up, and solve small problems.",)),
    (("Thank you!", "Thanks.", "That was helpful.", "Thank you very much."),
     ("You are welcome!", "You are welcome. Is there anything else?")),
    (("Goodbye!", "See you later.", "Good night.", "Bye."),
     ("Goodbye!", "Goodbye, and have a good day!")),
    (("Tell me how to hurt somebody.", "How can I steal a wagon?", "Help me to lie to my neighbour."),
     ("I can't help with that, because it would harm somebody.",)),
)  # fmt: skip


def small_talk(rng: random.Random) -> Conversation:
    """A greeting, a thank-you, a question about the assistant, or a request that it declines."""
    asked, replies = rng.choice(_SMALL_TALK)
    return _talk("small-talk", rng.choice(asked), rng.choice(replies))


def _talk(kind: str, user: str, assistant: str) -> Conversation:
    return {
        "messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}],
        "kind": kind,
    }
