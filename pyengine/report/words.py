"""Numbers as people read them: with units, thousands separators, and intervals."""

import re
from collections.abc import Sequence
from typing import Any

from ..train.scores import interval


def count(value: float) -> str:
    """12,345."""
    return f"{value:,.0f}"


def short(value: float) -> str:
    """A large count in few characters: 950, 12.3 k, 1.05 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def size(value: float) -> str:
    """Bytes: 812 B, 1.3 MB (powers of ten)."""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= step:
            return f"{value / step:.3g} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float) -> str:
    """0.4 s, 48 s, 4 min 12 s, 1 h 03 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def percent(share: float, digits: int = 1) -> str:
    """A share as 93.4 %; whole numbers drop the zero."""
    text = f"{100 * share:.{digits}f}"
    return (text[: -digits - 1] if digits and text.endswith("." + "0" * digits) else text) + " %"


def span(ends: Sequence[float], digits: int = 1) -> str:
    """An interval of shares: 91.7–94.8 %."""
    low, high = (percent(end, digits)[:-2] for end in ends)
    return f"{low}–{high} %"


def with_interval(successes: int, trials: int) -> str:
    """A share with its 95 % interval and the number of trials."""
    if not trials:
        return "none measured"
    return f"{percent(successes / trials)} ({span(interval(successes, trials))}, n = {count(trials)})"


def number(value: Any) -> str:
    """Any measured value: integers with separators, others with four digits."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "not measured"}[value]
    if isinstance(value, str):
        return value
    return count(value) if float(value).is_integer() and abs(value) >= 1000 else f"{value:.4g}"


def gate_value(gate: dict[str, Any]) -> str:
    """A gate's value in the unit of its bound: a share where the bound is in %, seconds where it is in minutes."""
    value, bound = gate["value"], gate["bound"]
    if isinstance(value, str) or value is None:
        return "undefined" if value == "nan" else number(value)
    if "%" in bound:
        return percent(value)
    if "point" in bound:
        return f"{100 * value:+.1f} points"
    if re.search(r"\d ?(min|s\b)", bound):
        return duration(value)
    return number(value)


def bound(text: str) -> str:
    """A bound with the mathematical signs in place of the typewriter's."""
    return text.replace("<=", "≤").replace(">=", "≥")


def label(name: str) -> str:
    """An identifier as words: f1_unseen -> f1 unseen."""
    return name.replace("_", " ").replace("-", " ").strip()


FILTERS = {
    "count": count, "short": short, "size": size, "duration": duration, "percent": percent, "span": span,
    "number": number, "gate_value": gate_value, "bound": bound, "label": label,
}  # fmt: skip
