"""Documents that give the cleaning stage its work: other languages, private data, accents, spam, stubs.

Each has a `fate`: what a good pipeline does with it.
"""

import random
from collections.abc import Iterator, Sequence
from datetime import date, timedelta

from . import prose
from .config import WorldConfig
from .facts import Entity
from .text import Block, Document

# kind -> what should happen to its pages
FATES = {
    "notice": "keep",  # with the private data masked
    "travel": "keep",  # whatever the charset
    "foreign": "language",
    "spam": "quality",
    "stub": "quality",
    "filler": "quality",
    "soft-404": "soft-404",
    "closed": "closed",  # robots.txt forbids the folder: must never be asked for
    "noindex": "noindex",  # may be read, must not be kept
}

_FOREIGN = {  # language -> subjects, predicates, endings
    "de": (
        ("Der alte Müller", "Die junge Lehrerin", "Ein müder Reisender", "Der Bäcker aus dem Dorf",
         "Die Tochter des Fischers", "Unser Nachbar", "Die Gärtnerin", "Ein fremder Händler"),
        ("kauft am Morgen frisches Brot", "öffnet die schwere Tür der Mühle",
         "erzählt den Kindern eine Geschichte", "geht über die schmale Brücke",
         "schreibt einen langen Brief an seine Schwester", "hört die Glocken läuten",
         "sucht den verlorenen Schlüssel", "trägt einen Korb voller Äpfel nach Hause"),
        ("weil der Markt heute früher schließt", "obwohl es seit Tagen regnet", "bevor die Sonne untergeht",
         "und niemand weiß genau, warum", "während die anderen noch schlafen", "wie es hier üblich ist"),
    ),
    "fr": (
        ("Le vieux meunier", "La jeune institutrice", "Un voyageur fatigué", "Le boulanger du village",
         "La fille du pêcheur", "Notre voisin", "La jardinière", "Un marchand étranger"),
        ("achète du pain frais le matin", "ouvre la lourde porte du moulin",
         "raconte une histoire aux enfants", "traverse le pont étroit",
         "écrit une longue lettre à sa sœur", "écoute sonner les cloches", "cherche la clé perdue",
         "rapporte un panier plein de pommes à la maison"),
        ("parce que le marché ferme plus tôt", "bien qu'il pleuve depuis des jours",
         "avant que le soleil se couche", "et personne ne sait pourquoi",
         "pendant que les autres dorment encore", "comme c'est la coutume ici"),
    ),
    "es": (
        ("El viejo molinero", "La joven maestra", "Un viajero cansado", "El panadero del pueblo",
         "La hija del pescador", "Nuestro vecino", "La jardinera", "Un comerciante extranjero"),
        ("compra pan fresco por la mañana", "abre la pesada puerta del molino",
         "cuenta una historia a los niños",
         "cruza el puente estrecho", "escribe una larga carta a su hermana", "oye sonar las campanas",
         "busca la llave perdida", "lleva a casa una cesta llena de manzanas"),
        ("porque el mercado cierra más temprano", "aunque llueve desde hace días",
         "antes de que se ponga el sol",
         "y nadie sabe exactamente por qué", "mientras los demás todavía duermen",
         "como es costumbre aquí"),
    ),
}  # fmt: skip
_TITLES = {
    "de": "Nachrichten aus dem Tal", "fr": "Nouvelles de la vallée", "es": "Noticias del valle",
}  # fmt: skip
_ACCENTED = (
    "At the café they serve crème brûlée and a piña colada for £5.",
    "The façade of the château was painted by a naïve young artist from Zürich.",
    "It was 30° in the shade, and we had only ½ of the water left.",
    "The señor at the door spoke of his fiancée and of the fête in São Tomé.",
    "A résumé of the whole affair hangs in the entrée of the hôtel.",
    "Our guide, a protégé of the old curé, knew every cliché about the region.",
    "The jalapeño soup cost £3, the soufflé was free, and the waiter said ¡olé!",
    "Über the door there is a crêpe paper swan, déjà vu for everyone who has been to Málaga.",
)
_OFFERS = (
    "best cheap deals", "buy now", "free shipping", "win a prize", "lowest price", "click here",
    "limited offer",
)  # fmt: skip
_LOREM = (
    "lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut labore et "
    "dolore magna aliqua ut enim ad minim veniam quis nostrud exercitation ullamco laboris nisi ut aliquip"
)


class Strays:
    """Writes the stray documents of a world."""

    def __init__(self, config: WorldConfig, passers: Sequence[Entity]) -> None:
        self.config, self.passers = config, passers

    def documents(self) -> Iterator[Document]:
        """All of them, `config.strays` of each kind (of each language)."""
        writers = {
            "notice": self._notice, "travel": self._travel, "foreign": self._foreign, "spam": self._spam,
            "stub": self._stub, "filler": self._filler, "soft-404": self._soft_404, "closed": self._closed,
            "noindex": self._noindex,
        }  # fmt: skip
        for kind in FATES:
            for lang in _FOREIGN if kind == "foreign" else ("en",):
                for i in range(self.config.strays):
                    rng = self.config.rng("stray", kind, lang, i)
                    title, paragraphs, private = writers[kind](rng, lang)
                    age = timedelta(days=rng.randrange(1800))
                    day = (date.fromisoformat(self.config.cutoff) - age).isoformat()
                    blocks = tuple(Block("p", text) for text in paragraphs)
                    yield Document(
                        f"{kind}-{lang}-{i}", kind, title, day, blocks, lang=lang, private=tuple(private)
                    )

    def _notice(self, rng: random.Random, lang: str):
        """A notice with an e-mail address, a phone number and an IP address, all kept for examples."""
        person, other = rng.sample(self.passers, 2)
        host = f"{rng.choice(('post', 'mail', 'letters'))}.{other.short.lower()}.example"
        mail = f"{person.name.lower().replace(' ', rng.choice('._-'))}@{host}"
        phone = rng.choice((
            f"+44 20 7946 0{rng.randrange(100, 1000)}",
            f"(202) 555-01{rng.randrange(10, 100)}",
            f"+1-415-555-01{rng.randrange(10, 100)}",
        ))  # fmt: skip
        address = f"{rng.choice(('203.0.113', '198.51.100', '192.0.2'))}.{rng.randrange(1, 255)}"
        told = [
            f"{prose.sentence(rng)} Whoever knows more may write to {mail} before the end of the month.",
            f"The office can also be called at {phone} on every working day. {prose.sentence(rng)}",
            f"The last entry was made from the address {address} in the evening. {prose.paragraph(rng, 2)}",
        ]
        rng.shuffle(told)
        return f"Notice of {person.name}", told, [mail, phone, address]

    def _travel(self, rng: random.Random, lang: str):
        """Notes with letters outside ASCII, so that a wrong charset shows."""
        lines = rng.sample(_ACCENTED, 4)
        told = [f"{line} {prose.paragraph(rng, 2)}" for line in lines]
        return f"Travel notes: {prose.heading(rng).lower()}", told, []

    def _foreign(self, rng: random.Random, lang: str):
        def sentence() -> str:
            return " ".join((rng.choice(subjects), rng.choice(predicates) + ",", rng.choice(endings) + "."))

        subjects, predicates, endings = _FOREIGN[lang]
        told = [" ".join(sentence() for _ in range(4)) for _ in range(4)]
        return f"{_TITLES[lang]} {rng.randrange(1, 1000)}", told, []

    def _spam(self, rng: random.Random, lang: str):
        thing = rng.choice(("watches", "shoes", "lamps", "phones", "sofas"))
        line = ", ".join(f"{rng.choice(_OFFERS)} {thing}" for _ in range(12))
        return f"{thing} {rng.choice(_OFFERS)}", [line.upper() if rng.random() < 0.3 else line] * 6, []

    def _stub(self, rng: random.Random, lang: str):
        return prose.heading(rng), ["This page is being written. Come back soon."], []

    def _filler(self, rng: random.Random, lang: str):
        words = _LOREM.split()
        return "Untitled document", [" ".join(rng.sample(words, 24)).capitalize() + "." for _ in range(4)], []

    def _soft_404(self, rng: random.Random, lang: str):
        told = rng.choice((
            "Sorry, the page you are looking for does not exist. It may have been moved or removed.",
            "Error 404. We could not find what you asked for. Please check the address or go home.",
            "Oops! This page cannot be found. Use the search box or return to the start.",
        ))  # fmt: skip
        return rng.choice(("Page not found", "404 Not Found", "Nothing here")), [told], []

    def _closed(self, rng: random.Random, lang: str):
        told = [f"The closed shelf keeps this text. {prose.paragraph(rng, 3)}" for _ in range(2)]
        return f"Closed shelf: {prose.heading(rng)}", told, []

    def _noindex(self, rng: random.Random, lang: str):
        told = [f"This draft is not to be indexed. {prose.paragraph(rng, 3)}" for _ in range(2)]
        return f"Draft: {prose.heading(rng)}", told, []
