"""The ops: torch tensors in, torch tensors out, each with a reference and one file a backend.

    from pyengine.kernels import rmsnorm, use_backend

Imported as `pyengine.kernels` only. Never imports the rest of pyengine.
"""

from ._native import set_threads
from ._select import use_backend
from .rmsnorm import rmsnorm

__all__ = ["rmsnorm", "set_threads", "use_backend"]
