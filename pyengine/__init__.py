"""pyengine: from the web to a reasoning chat model, on hand-written kernels.

    from pyengine import Engine, Tokenizer

Names are loaded on first use, so that `import pyengine` stays cheap.
"""

from importlib import import_module

__version__ = "0.1.0"
__all__ = ["Engine", "Tokenizer", "__version__"]

_HOME = {"Engine": "pyengine.engine", "Tokenizer": "pyengine.text"}


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'pyengine' has no attribute {name!r}")
