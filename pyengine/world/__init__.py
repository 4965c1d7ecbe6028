"""The closed world: a small invented encyclopedia and its web site, generated from a seed, with its truth.

config.py sizes | names.py | facts.py | wordings.py, prose.py, text.py documents | problems.py | questions.py
"""

from .config import WorldConfig
from .world import World

__all__ = ["World", "WorldConfig"]
