"""The ops: torch tensors in, torch tensors out, each with a reference and one file a backend.

    from pyengine.kernels import rmsnorm, use_backend

Imported as `pyengine.kernels` only. Never imports the rest of pyengine.
"""

from ._native import set_threads
from ._select import use_backend
from .adamw import adamw_, grad_norm
from .cross_entropy import linear_cross_entropy
from .linear import PackedWeight, linear, pack_weight
from .rmsnorm import rmsnorm
from .swiglu import swiglu

__all__ = [
    "PackedWeight",
    "adamw_",
    "grad_norm",
    "linear",
    "linear_cross_entropy",
    "pack_weight",
    "rmsnorm",
    "set_threads",
    "swiglu",
    "use_backend",
]
