"""Running text about nothing in particular: the sentences between the facts, and quotable passages.

Sentences are filled from lists of common words, so that pages differ from each other, read like prose, and
pass the rules that quality filters apply to real text.
"""

import random

_NOUNS = (
    "bridge harbour market garden mill road forest tower well orchard school library church barn kitchen "
    "wagon lantern boat fence meadow hill field stable chimney window cellar roof shop inn ferry "
    "quarry pond lane workshop tavern ladder bell clock map letter ledger basket kettle blanket stove candle "
    "plough hammer rope"
).split()
_PEOPLE = (
    "neighbours travellers children merchants elders visitors farmers guests sailors villagers students "
    "masons carters musicians widows councillors apprentices strangers riders gardeners"
).split()
_ADJECTIVES = (
    "old narrow quiet wide broken bright wooden heavy empty famous distant green cold dusty small crooked "
    "painted hidden proud steep gentle busy lonely golden muddy ancient silent warm bitter sturdy"
).split()
_VERBS = (
    "repaired painted visited remembered crossed sold watched rebuilt admired borrowed measured opened "
    "closed described cleaned guarded inherited praised feared moved lost found forgot counted carried"
).split()
_TIMES = (
    "before the first snow", "in the spring of that year", "after the long harvest", "on the eve of the fair",
    "when the river was high", "during the dry summer", "at the end of the week", "in the early morning",
    "after the great storm", "while the bells were ringing", "long before the war",
    "on the second day of autumn", "as soon as the ice had gone",
    "late in the afternoon", "when the council had met", "once the roads were dry",
)  # fmt: skip
_REASONS = (
    "because nobody else would do it", "although the price was high", "and so the matter was settled",
    "which surprised everyone who saw it", "so that the work could go on", "but few people spoke about it",
    "since there was no other way", "and this is still the custom today", "though it took more than a month",
    "for the sake of peace in the house", "while others only shook their heads", "as had been agreed",
)  # fmt: skip
_OPENERS = (
    "It is said that", "The old book tells that", "Everybody agrees that", "A letter reports that",
    "Few remember that", "From the records it is clear that", "The guide explains that",
    "There is a story that",
)  # fmt: skip
_FORMS = (
    "{t} the {p} {v} the {a} {n} near the {m}, {r}.",
    "{o} the {a} {n} was {v} by the {p} {t}.",
    "The {p} of the {a} {n} had {v} the {m} {t}, {r}.",
    "{t} there was no {n} by the {a} {m}, {r}.",
    "Nobody has {v} the {a} {n} behind the {m} {t}.",
    "{o} the {p} and the {q} {v} the {n} together, {r}.",
    "Some of the {p} {v} the {a} {n}, and others {w} the {m} {t}.",
    "With the {a} {n} the {p} {v} the {m}, {r}.",
    "The {n} and the {m} were {v} {t}, {r}.",
    "What the {p} {v} was the {a} {n} and not the {m}.",
)


def sentence(rng: random.Random) -> str:
    """One sentence of 10 to 25 words."""
    pick = rng.choice
    noun, other = rng.sample(_NOUNS, 2)
    people, others = rng.sample(_PEOPLE, 2)
    text = pick(_FORMS).format(
        t=pick(_TIMES), r=pick(_REASONS), o=pick(_OPENERS), p=people, q=others, a=pick(_ADJECTIVES),
        n=noun, m=other, v=pick(_VERBS), w=pick(_VERBS),
    )  # fmt: skip
    return text[0].upper() + text[1:]


def paragraph(rng: random.Random, sentences: int) -> str:
    """Several sentences in one line."""
    return " ".join(sentence(rng) for _ in range(sentences))


def passage(rng: random.Random, name: str) -> str:
    """A quotable passage of two sentences, about 200 characters, that begins with a name of its own."""
    second = sentence(rng)
    first = (
        f"{name} {rng.choice(_VERBS)} the {rng.choice(_ADJECTIVES)} {rng.choice(_NOUNS)} {rng.choice(_TIMES)}"
    )
    return f"{first}, {rng.choice(_REASONS)}. {second}"


def heading(rng: random.Random) -> str:
    """A title such as "The narrow bridge and the inn"."""
    noun, other = rng.sample(_NOUNS, 2)
    return f"The {rng.choice(_ADJECTIVES)} {noun} and the {other}"


def reword(text: str, rng: random.Random) -> str:
    """The text with one adjective of `sentence` exchanged for another; unchanged where there is none."""
    words = text.split(" ")
    places = [i for i, word in enumerate(words) if word in _ADJECTIVES]
    if not places:
        return text
    place = rng.choice(places)
    words[place] = rng.choice([word for word in _ADJECTIVES if word != words[place]])
    return " ".join(words)
