"""What may come next of an answer that keeps to a constraint, found out without holding up other answers.

Mostly that takes tens of microseconds, little more than handing it to another thread and back, so the engine's thread
does it itself, behind the step whose logits it is for. A grammar that can read an answer in many ways may take as long
as hundreds of steps. Then threads find it out beside the steps, and until they have its request is in none
(scheduler.py). Which thread does it changes nothing that is sampled.
"""

import os
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Protocol

import numpy as np

from ..devices import available_cpus

QUICK = 0.0005  # seconds a token that a constraint may take the engine's thread, which is several times what most take


class Matcher(Protocol):
    """Follows one answer and says which ids may come next. One thread at a time calls it, but not always the same."""

    def allow(self, words: np.ndarray) -> None:
        """Fill int32 words: bit i % 32 of word i // 32 is 1 where id i may come next."""
        ...

    def accept(self, token: int) -> None:
        """The next id; ValueError, which says why, if the answer cannot go on behind it."""
        ...


class Grammar(Protocol):
    """Makes a Matcher for each answer that must keep to it."""

    def start(self) -> Matcher: ...


class Constraint:
    """Has a matcher follow one answer. vocabulary: ids of the model."""

    def __init__(self, matcher: Matcher, vocabulary: int):
        self._matcher, self._size = matcher, -(-vocabulary // 32)
        self._owed = 0.0  # seconds that it took beyond QUICK a token; while there are any, threads find out
        self._found: Future[tuple[np.ndarray, float]] | None = None
        self._process = 0  # whose thread that is

    @property
    def held(self) -> bool:
        """Whether allow() would have to wait for a thread, which begins now if it has not; RuntimeError if there is no
        such thread, for the process was forked since."""
        if self._found is None and self._owed:
            words = np.empty(self._size, np.int32)
            self._found, self._process = _threads.submit(self._find, words), os.getpid()
        if self._found is None or self._found.done():
            return False
        if self._process != os.getpid():
            raise RuntimeError("the process was forked while an answer's constraint was being followed")
        return True

    def allow(self, words: np.ndarray) -> None:
        """Matcher.allow(), and what it raises."""
        found, seconds = self._found.result() if self._found else self._find(words)
        if found is not words:
            words[:] = found
        self._owed = max(0.0, self._owed + seconds - QUICK)

    def accept(self, token: int) -> None:
        """Matcher.accept(). It stays on this thread: llguidance keeps Python's lock then."""
        self._found = None
        self._matcher.accept(token)

    def drop(self) -> None:
        """Nobody wants to know any more; a thread that has begun goes on to its end, for nothing."""
        if self._found:
            self._found.cancel()

    def _find(self, words: np.ndarray) -> tuple[np.ndarray, float]:
        """(the words, filled; seconds of a processor that it took)."""
        start = time.thread_time()
        self._matcher.allow(words)
        return words, time.thread_time() - start


def await_any(constraints: Iterable[Constraint], seconds: float) -> None:
    """Wait until one of the constraints is held no more, so long at most."""
    wait([one._found for one in constraints if one._found], seconds, FIRST_COMPLETED)


def _start_threads() -> None:
    """Make the threads, half as many as processors, so that steps always find one; the first mask starts the first."""
    global _threads
    _threads = ThreadPoolExecutor(max(1, available_cpus() // 2), "constraint")


_threads: ThreadPoolExecutor
_start_threads()
os.register_at_fork(after_in_child=_start_threads)  # a forked child has none of its parent's
