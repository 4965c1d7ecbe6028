"""Talking to a model: conversations over the engine. The terminal's door is `python -m pyengine.chat`."""

from .conversation import Conversation, Event
from .formats import Format, OwnFormat, TemplateFormat, TextFormat
from .loading import KvDtype, Served, open_model

__all__ = [
    "Conversation",
    "Event",
    "Format",
    "KvDtype",
    "OwnFormat",
    "Served",
    "TemplateFormat",
    "TextFormat",
    "open_model",
]
