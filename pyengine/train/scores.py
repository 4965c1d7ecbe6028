"""Small measures that several stages share: what a reply does, whether it is right, and how sure a number is.

Replies to questions about facts do one of three things: they refuse ("don't know", as guidelines.md asks),
or they answer, and then they are right if they hold the gold value or an alias as whole words. Confidence is
the share of samples that agree; calibration compares it with how often such answers are right.
"""

import math
import re
from collections.abc import Sequence

import numpy as np

_REFUSAL = re.compile(r"\b(?:don't|do not|cannot|can't) (?:know|say)\b", re.IGNORECASE)


def normalized(text: str) -> str:
    """Lower case, no punctuation, single spaces: the form in which answers are compared."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())


def refuses(reply: str) -> bool:
    """Whether the reply says that it does not know."""
    return bool(_REFUSAL.search(reply))


def holds_answer(reply: str, answers: Sequence[str]) -> bool:
    """Whether the reply holds one of the answers as whole words; an empty answer is never held."""
    padded = f" {normalized(reply)} "
    return any(f" {form} " in padded for form in map(normalized, answers) if form)


def interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    if not trials:
        return 0.0, 1.0
    share, square = successes / trials, z * z / trials
    middle = (share + square / 2) / (1 + square)
    half = z * math.sqrt(share * (1 - share) / trials + square / (4 * trials)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def reliability(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> list[dict[str, float]]:
    """Of each equal-width bin that holds answers: their mean confidence, share right and count."""
    sure, hit = np.asarray(confidence, float), np.asarray(right, float)
    of = np.minimum((sure * bins).astype(int), bins - 1)
    return [
        {
            "confidence": float(sure[of == b].mean()),
            "right": float(hit[of == b].mean()),
            "count": int((of == b).sum()),
        }
        for b in np.unique(of)
    ]


def calibration_error(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> float:
    """Expected calibration error: mean over answers of |accuracy - confidence| of their equal-width bin."""
    sure, hit = np.asarray(confidence, float), np.asarray(right, float)
    if not len(sure):
        return 0.0
    of = np.minimum((sure * bins).astype(int), bins - 1)
    gaps = [abs(hit[of == b].sum() - sure[of == b].sum()) for b in range(bins)]
    return float(sum(gaps) / len(sure))
