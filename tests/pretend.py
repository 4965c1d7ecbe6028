"""A device that is none: tensors that say they are on "pretend:0" and keep their numbers on the CPU.

    with pretend.device() as device: ...       pretend.waits: what the host waited for, op by op

It stands in for a GPU where there is none. As there, an operator that meets tensors of two places fails (but for
numbers without dimensions), and what reads a tensor from the host, or sends one without saying that nobody shall wait,
is a wait. The kernels take the tensors as a launch takes pointers: by default those of the CPU, so that whatever is
computed has the bits of a CPU; with backend="triton" those of a GPU, run by Triton's interpreter.

To be imported by a process of its own, before anything is differentiated there: torch counts its devices once.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from typing import Any
from unittest import mock

import torch
from pyengine.kernels import _select
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from pyengine.engine import step
from tests.engine.test_graph import StandIn

NAME = "pretend"
READS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2"}
waits: list[str] = []
_setup_privateuseone_for_python_backend(NAME)


class Pretend(torch.Tensor):
    """`inner` under another device's name."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=f"{NAME}:0",
        )  # fmt: skip
        made.inner = inner
        return made

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _Everywhere(TorchDispatchMode):
    """Sees what makes tensors out of none, too."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


def _run(function, args: tuple, kwargs: dict) -> Any:
    name = function.overloadpacket.__name__
    tensors = _tensors((*args, *kwargs.values()))
    ours = [isinstance(t, Pretend) for t in tensors]
    target = kwargs.get("device")
    here = any(ours) if target is None else torch.device(target).type == NAME
    copies = name in ("_to_copy", "copy_")
    if any(ours) and not copies:
        strangers = [t for t, own in zip(tensors, ours, strict=True) if not own and t.dim()]
        assert not strangers, f"{function}: tensors of two devices"
        masks = name.startswith("index") and any(t.dtype == torch.bool for t in tensors[1:])
        if name in READS or masks:
            waits.append(name)
    elif copies and any(ours) != (here and all(ours)):  # from one place to the other
        sent = here and not ours[-1]
        if not sent or not _behind(function, args, kwargs):
            waits.append(f"{name} to the {'device' if sent else 'host'}")
    if here and target is not None:
        kwargs = (
            kwargs | {"device": "cpu", "pin_memory": None}
            if "pin_memory" in kwargs
            else kwargs | {"device": "cpu"}
        )
    result = function(*bare(args), **bare(kwargs))
    if not here:
        return result
    return return_and_correct_aliasing(function, args, kwargs, dressed(result))


def _behind(function, args: tuple, kwargs: dict) -> bool:
    """Whether a copy says that nobody shall wait for it."""
    at = [argument.name for argument in function._schema.arguments].index("non_blocking")
    return bool(args[at] if len(args) > at else kwargs.get("non_blocking", False))


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
    return found


def bare(value: Any) -> Any:
    """The tensors inside of a value, for whoever computes with them."""
    return _each(lambda t: t.inner if isinstance(t, Pretend) else t, value)


def dressed(value: Any) -> Any:
    """A value with its tensors on the device."""
    return _each(lambda t: t if isinstance(t, Pretend) else Pretend(t), value)


def _each(change: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)([_each(change, item) for item in value])
    return {k: _each(change, item) for k, item in value.items()} if isinstance(value, dict) else value


class _Launches:
    """A backend of the CPU for tensors of the device."""

    def __init__(self, op: str):
        self._module = import_module(f"pyengine.kernels.{op}.cpu")
        self.__name__ = f"{NAME}.{op}"

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if not callable(found):
            return found

        @wraps(found)
        def launch(*arguments, **keywords):
            result = found(*bare(arguments), **bare(keywords))
            if isinstance(result, float):
                waits.append(name)
            return dressed(result)

        return launch


def _let_the_interpreter_take_them() -> None:
    """A launch of Triton's interpreter computes with the tensors inside."""
    from triton.runtime.interpreter import GridExecutor

    if not hasattr(GridExecutor, "bare"):
        launch = GridExecutor.__call__
        GridExecutor.bare = launch
        GridExecutor.__call__ = lambda self, *arguments, **keywords: launch(
            self, *bare(arguments), **bare(keywords)
        )


@contextmanager
def device(backend: str = "cpu") -> Iterator[torch.device]:
    """The device, for as long as the block lasts; the names of what was waited for are added to `waits`."""
    place, decide = torch.device(NAME, 0), _select._decide

    def choose(op: str, where: torch.device):
        if where != place:
            return decide(op, where)
        return (_Launches(op) if backend == "cpu" else _select._load(op, backend)), NAME

    waits.clear()
    if backend == "triton":
        _let_the_interpreter_take_them()
    with (
        mock.patch.object(_select, "_decide", choose),
        mock.patch.object(step, "Graphs", lambda _: StandIn()),
    ):
        with _unregistered(), _Everywhere():
            yield place
    _select._chosen.clear()


@contextmanager
def _unregistered() -> Iterator[None]:
    """The ops called as functions, not through torch's registry, which would hand us each as a whole."""
    patches = []
    for op in _select.ops():
        module = import_module(f"pyengine.kernels.{op}")
        for name in [name for name in vars(module) if name.endswith("_op")]:
            patches.append(mock.patch.object(module, name, getattr(module, name.removesuffix("_op"))))
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()
