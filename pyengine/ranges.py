"""Ranges of the numbers that people set: declared beside each field, checked over a whole tree before any work.

@dataclass(frozen=True)
class RlConfig:
    group: Annotated[int, Range(ge=2)] = 8

check_ranges(config)          # UserError: rl.group = 0: expected at least 2

@checked                      # the same of a function's parameters
def train(threads: Annotated[int, AT_LEAST_1]): ...
"""

import functools
import inspect
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ParamSpec, TypeVar

from .errors import UserError

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """The finite numbers x with ge <= x, gt < x, x <= le, x < lt, as far as these are given.

    Of a tuple it holds for each item, and there must be one. why: what a person should know about the bound.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    why: str = ""

    def __contains__(self, number: float) -> bool:
        return (
            _finite(number)
            and (self.ge is None or number >= self.ge)
            and (self.gt is None or number > self.gt)
            and (self.le is None or number <= self.le)
            and (self.lt is None or number < self.lt)
        )

    def __str__(self) -> str:
        bounds = (("at least", self.ge), ("above", self.gt), ("at most", self.le), ("below", self.lt))
        told = " and ".join(f"{word} {bound}" for word, bound in bounds if bound is not None)
        return f"{told} ({self.why})" if self.why else told


AT_LEAST_0 = Range(ge=0)
AT_LEAST_1 = Range(ge=1)
POSITIVE = Range(gt=0)
SHARE = Range(ge=0, le=1)


def check_ranges(node: Any, prefix: str = "") -> None:
    """Raise UserError naming the first setting of a dataclass tree that lies outside its range; None is in any."""
    hints = typing.get_type_hints(type(node), include_extras=True)
    for field in fields(node):
        name, value = prefix + field.name, getattr(node, field.name)
        if is_dataclass(value):
            check_ranges(value, name + ".")
        _check(name, value, hints[field.name])


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """The function, behind a check of what it is given against the ranges beside its parameters."""
    signature, hints = inspect.signature(function), typing.get_type_hints(function, include_extras=True)

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> T:
        for name, value in signature.bind(*args, **options).arguments.items():
            _check(name, value, hints.get(name))
        return function(*args, **options)

    return call


def _check(name: str, value: Any, hint: Any) -> None:
    """Raise UserError where `value` lies outside a range among its type's annotations."""
    for allowed in getattr(hint, "__metadata__", ()):
        if isinstance(allowed, Range) and value is not None:
            items = value if isinstance(value, tuple) else (value,)
            if not items:
                raise UserError(f"{name} is empty: expected numbers, each {allowed}")
            for item in items:
                if item not in allowed:
                    finite = "" if _finite(item) else "a finite number, "
                    raise UserError(f"{name} = {item}: expected {finite}{allowed}")


def _finite(number: float) -> bool:
    """math.isfinite, for which some whole numbers are too large."""
    return isinstance(number, int) or math.isfinite(number)
