"""The closed world: a small invented encyclopedia and its web site, generated from a seed, with its truth.

config.py     sizes and seeds            problems.py   word problems and solutions
names.py      one grammar of names       questions.py  questions, conversations (guidelines.md)
facts.py      who and what is true       strays.py     documents that cleaning must deal with
wordings.py   how facts are said         looks.py      HTML templates
prose.py      running text, passages     pages.py      the site, every page with its truth
text.py       the documents              server.py     the site on loopback
world.py      all of it as one object    export.py     all of it as files
"""

from .config import WorldConfig
from .server import serve
from .world import World, guidelines

__all__ = ["World", "WorldConfig", "guidelines", "serve"]
