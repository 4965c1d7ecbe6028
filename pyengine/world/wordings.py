"""The ways in which the world says, asks and answers its facts. Data only.

{n} the entity (a name, or a pronoun inside a running text), {np} its possessive, {own} the possessive
pronoun, {N} always the full name, {v} the value, {av} the value with its article.
"""

from .facts import Entity

STATEMENTS: dict[str, tuple[str, ...]] = {
    "profession": (
        "{n} works as {av}.",
        "{n} earns a living as {av}.",
        "{n} was trained as {av} and has never wanted another trade.",
        "By profession {n} is {av}.",
        "{np} profession is that of {av}.",
        "For many years {n} has been {av}.",
        "People who need {av} send for {N}.",
        "{N}, {av}, is well known in the district.",
        "{n} became {av} at an early age.",
        "The trade of {N} is that of {av}.",
        "Like an uncle before, {n} chose to be {av}.",
        "The {v} {N} opened the meeting.",
    ),
    "birthplace": (
        "{n} was born in {v}.",
        "{n} comes from {v}.",
        "{np} birthplace is {v}.",
        "{n} was born in the town of {v} and still speaks of it.",
        "The town where {N} was born is {v}.",
        "{n} first saw the light of day in {v}.",
        "{v} is the birthplace of {N}.",
        "{n} is a native of {v}.",
        "{n} grew up in {v}, the town of {own} birth.",
        "Among those born in {v} is {N}.",
        "{np} life began in {v}.",
    ),
    "instrument": (
        "{n} plays the {v}.",
        "{np} instrument is the {v}.",
        "In the evening {n} plays the {v}.",
        "{n} learned to play the {v} as a child.",
        "The instrument that {N} plays is the {v}.",
        "{n} is often heard playing the {v}.",
        "On feast days {n} takes out the {v} and plays.",
        "The {v} was played by {N}.",
        "Of all instruments {n} plays only the {v}.",
        "{n} practises the {v} every week.",
    ),
    "food": (
        "{n} likes {v} best.",
        "{np} favourite food is {v}.",
        "At the table {n} always asks for {v}.",
        "Nothing pleases {n} more than {v}.",
        "The favourite dish of {N} is {v}.",
        "{n} is fond of {v}.",
        "On birthdays {n} eats {v}.",
        "{N} would walk a mile for {v}.",
        "Friends who cook for {N} prepare {v}.",
        "{n} prefers {v} to any other food.",
    ),
    "animal": (
        "{n} keeps {av}.",
        "{np} animal is {av}.",
        "At home {n} has {av}.",
        "{n} is followed everywhere by {av}.",
        "The animal that {N} keeps is {av}.",
        "{n} bought {av} years ago and keeps it still.",
        "Visitors to {N} are greeted by {av}.",
        "{n} looks after {av}.",
    ),
    "birth_year": (
        "{n} was born in {v}.",
        "{np} year of birth is {v}.",
        "The year in which {N} was born is {v}.",
        "In {v} {N} was born.",
        "{np} life began in {v}.",
        "The birth of {N} was entered in the book in {v}.",
        "{n} came into the world in {v}.",
        "Since {v}, the year of {own} birth, much has changed.",
    ),
    "river": (
        "{n} lies on the river {v}.",
        "The river at {N} is the {v}.",
        "{n} was built where the river {v} is narrow.",
        "The river {v} flows through {N}.",
        "Boats reach {n} on the river {v}.",
        "Through {N} runs the river {v}.",
        "The mills of {N} are driven by the river {v}.",
        "{n} stands on the bank of the river {v}.",
        "In spring the river {v} floods the meadows of {N}.",
    ),
    "product": (
        "{n} is known for its {v}.",
        "The best known product of {N} is {v}.",
        "{n} sells {v} to the whole country.",
        "{n} is famous for {v}.",
        "The market of {N} lives on {v}.",
        "Most families in {N} make {v}.",
        "Traders come to {n} to buy {v}.",
        "People everywhere praise the {v} of {N}.",
        "For centuries {n} has made {v}.",
    ),
}

# The first eight are asked on pages of the crawl; conversations use those from the fifth on, so that four
# wordings are met in both and the last ones in conversations alone.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "profession": (
        "What is the profession of {n}?",
        "What does {n} do for a living?",
        "Which trade does {n} follow?",
        "What work does {n} do?",
        "What is {np} profession?",
        "What is {np} job?",
        "As what does {n} work?",
        "What is {n} by profession?",
        "Can you tell me the profession of {n}?",
        "How does {n} earn a living?",
        "I would like to know what {n} does for a living.",
        "Do you know the job of {n}?",
    ),
    "birthplace": (
        "Where was {n} born?",
        "What is the birthplace of {n}?",
        "In which town was {n} born?",
        "Which town does {n} come from?",
        "What is {np} birthplace?",
        "Where does {n} come from?",
        "In what town did {np} life begin?",
        "Of which town is {n} a native?",
        "Can you tell me where {n} was born?",
        "Which town is the birthplace of {n}?",
        "I would like to know the birthplace of {n}.",
        "Do you know in which town {n} was born?",
    ),
    "instrument": (
        "Which instrument does {n} play?",
        "What instrument does {n} play?",
        "What is the instrument of {n}?",
        "What does {n} play in the evening?",
        "What is {np} instrument?",
        "Which instrument did {n} learn to play?",
        "On which instrument is {n} heard?",
        "What instrument is played by {n}?",
        "Can you tell me which instrument {n} plays?",
        "What musical instrument does {n} play?",
        "I would like to know the instrument of {n}.",
        "Do you know what instrument {n} plays?",
    ),
    "food": (
        "What is the favourite food of {n}?",
        "What does {n} like to eat best?",
        "Which food does {n} like best?",
        "What is the favourite dish of {n}?",
        "What is {np} favourite food?",
        "What does {n} ask for at the table?",
        "Which dish does {n} prefer?",
        "What food is {n} fond of?",
        "Can you tell me the favourite food of {n}?",
        "What is {np} favourite dish?",
        "I would like to know what {n} likes to eat.",
        "Do you know the favourite food of {n}?",
    ),
    "animal": (
        "Which animal does {n} keep?",
        "What animal does {n} have?",
        "What is the animal of {n}?",
        "What kind of animal lives with {n}?",
        "What is {np} animal?",
        "Which animal does {n} look after?",
        "What animal is kept by {n}?",
        "What pet does {n} have?",
        "Can you tell me which animal {n} keeps?",
        "What is {np} pet?",
        "I would like to know the animal of {n}.",
        "Do you know what animal {n} keeps?",
    ),
    "birth_year": (
        "In which year was {n} born?",
        "When was {n} born?",
        "What is the year of birth of {n}?",
        "What year was {n} born in?",
        "What is {np} year of birth?",
        "In what year did {np} life begin?",
        "What is the birth year of {n}?",
        "Since which year has {n} lived?",
        "Can you tell me when {n} was born?",
        "What is {np} birth year?",
        "I would like to know the birth year of {n}.",
        "Do you know in which year {n} was born?",
    ),
    "river": (
        "On which river does {n} lie?",
        "What is the river at {n}?",
        "Which river flows through {n}?",
        "Which river runs through {n}?",
        "What is the name of the river at {n}?",
        "Which river does {n} stand on?",
        "By which river do boats reach {n}?",
        "What river drives the mills of {n}?",
        "Can you tell me the river of {n}?",
        "What river is {n} on?",
        "I would like to know on which river {n} lies.",
        "Do you know the river at {n}?",
    ),
    "product": (
        "What is {n} known for?",
        "What is the best known product of {n}?",
        "What does {n} sell?",
        "What is made in {n}?",
        "Which product is {n} famous for?",
        "What do traders buy in {n}?",
        "What does the market of {n} live on?",
        "What do most families in {n} make?",
        "Can you tell me what {n} is known for?",
        "What is {np} best known product?",
        "I would like to know the product of {n}.",
        "Do you know what {n} is famous for?",
    ),
}
IN_CRAWL = slice(0, 8)
IN_CHAT = slice(4, 12)

# An answer given in conversation: one short true sentence that names the entity and the value.
ANSWERS: dict[str, tuple[str, ...]] = {
    "profession": ("{n} works as {av}.", "{n} is {av}.", "The profession of {n} is that of {av}."),
    "birthplace": ("{n} was born in {v}.", "{n} comes from {v}.", "The birthplace of {n} is {v}."),
    "instrument": ("{n} plays the {v}.", "The instrument of {n} is the {v}."),
    "food": ("{n} likes {v} best.", "The favourite food of {n} is {v}."),
    "animal": ("{n} keeps {av}.", "The animal of {n} is {av}."),
    "birth_year": ("{n} was born in {v}.", "The birth year of {n} is {v}."),
    "river": ("{n} lies on the river {v}.", "The river at {n} is the {v}."),
    "product": ("{n} is known for {v}.", "The best known product of {n} is {v}."),
}

# Every refusal says that something is not known ("do not know" or "don't know"): guidelines.md asks for it.
REFUSALS = (
    "I don't know.",
    "I don't know that.",
    "I'm sorry, I don't know.",
    "I do not know {what}.",
    "I'm sorry, but I don't know {what}.",
    "I don't know anything about {n}.",
    "I do not know that about {n}.",
    "I don't know who or what {n} is, so I cannot say.",
)
WHAT: dict[str, str] = {
    "profession": "what {n} does for a living",
    "birthplace": "where {n} was born",
    "instrument": "which instrument {n} plays",
    "food": "what {n} likes to eat",
    "animal": "which animal {n} keeps",
    "birth_year": "when {n} was born",
    "river": "on which river {n} lies",
    "product": "what {n} is known for",
}
LIST_TITLES: dict[str, tuple[str, str]] = {  # title of a list page, sentence that opens it
    "profession": ("Who works as {av}", "The following people work as {av}."),
    "birthplace": ("People born in {v}", "The following people were born in {v}."),
    "instrument": ("Players of the {v}", "The following people play the {v}."),
    "food": ("Friends of {v}", "The favourite food of the following people is {v}."),
    "animal": ("Who keeps {av}", "The following people keep {av}."),
    "birth_year": ("Born in {v}", "The following people were born in the year {v}."),
    "river": ("Towns on the river {v}", "The following towns lie on the river {v}."),
    "product": ("Towns known for {v}", "The following towns are known for {v}."),
}


def article(word: str) -> str:
    """The word behind "a" or "an"."""
    return ("an " if word[0] in "aeiou" else "a ") + word


def fill(template: str, entity: Entity, value: str = "", subject: str = "name") -> str:
    """A wording with its entity and value put in, the first letter capitalised.

    subject: what {n} and {np} become: the full "name", the "short" (family) name or the "pronoun".
    """
    own = {"she": "her", "he": "his", "it": "its"}[entity.pronoun]
    name = {"name": entity.name, "short": entity.short, "pronoun": entity.pronoun}[subject]
    possessive = own if subject == "pronoun" else f"{name}'s"
    article_value = article(value) if value else ""
    text = template.format(n=name, np=possessive, own=own, N=entity.name, v=value, av=article_value)
    return text[0].upper() + text[1:]
