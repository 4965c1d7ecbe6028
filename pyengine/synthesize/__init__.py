"""Conversations that a model writes: `python -m pyengine.synthesize`.

talk.py      a conversation as a program: who speaks when, and what they are shown
speakers.py  who answers: a local model, batched by the engine, or an OpenAI-compatible endpoint
finish.py    what is kept of what was written, and why the rest is not
"""

from .speakers import Endpoint, Local, Sampling, Speaker, open_speaker
from .talk import Ask, Made, Reply, Talk

__all__ = ["Ask", "Endpoint", "Local", "Made", "Reply", "Sampling", "Speaker", "Talk", "open_speaker"]
