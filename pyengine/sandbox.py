"""Worker processes for work on what strangers sent, which may hang, crash or eat memory.

`Sandbox.map(function, items)` gives one `Outcome` per item, in order: the result, or the reason why there
is none. A worker that takes more than `cpu_seconds` of processor time for one item is ended by the kernel
(so the verdict does not depend on how busy the machine is), one that sleeps for a minute and more by us;
only that item is lost, and a fresh worker goes on with the next.

Workers are started as fresh Python processes, so that no caller needs a `__main__` guard, and none
inherits threads or locks. They speak over a socket pair with the process that started them. A worker unpickles
what its parent sends; the parent, which must not trust a process that has parsed a stranger's page, reads JSON.
"""

import importlib
import json
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

from .files import __file__ as _anchor


@dataclass(frozen=True)
class Outcome:
    """A result as JSON gives it (tuples are lists), or the reason for its absence ("" where there is one)."""

    value: Any = None
    reason: str = ""


class Sandbox:
    """Runs module-level functions, named "package.module:function", in worker processes.

    options: a second argument given to every call. A module may have a function `prepare`, which a worker calls once
    with them, before the clock of its first item runs. Use as a context manager; the workers start with the
    first map.
    """

    def __init__(
        self, options: Any = None, *, workers: int = 2, cpu_seconds: float = 20.0, memory_bytes: int = 4 << 30
    ) -> None:
        self.options, self.count = options, max(1, workers)
        self.cpu_seconds, self.memory_bytes = cpu_seconds, memory_bytes
        self.workers: list[_Worker] = []

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_) -> None:
        for worker in self.workers:
            worker.stop()

    def map(self, function: str, items: Iterable[Any], ahead: int = 256) -> Iterator[Outcome]:
        """Outcomes in the order of `items`, of which at most `ahead` are read in advance."""
        if not self.workers:
            self.workers = [_Worker(self) for _ in range(self.count)]
        source = enumerate(pickle.dumps((function, item)) for item in items)
        held = next(source, None)
        ready: dict[int, Outcome] = {}
        following = 0
        while True:
            for worker in self.workers:
                while held and held[0] < following + ahead and worker.has_room(len(held[1])):
                    worker.give(*held)
                    held = next(source, None)
            if following in ready:
                yield ready.pop(following)
                following += 1
                continue
            busy = {worker.link: worker for worker in self.workers if worker.jobs}
            if not busy:
                return
            for link in wait(list(busy), timeout=0.5):
                ready.update(busy[link].collect())  # type: ignore[index]
            for worker in busy.values():
                ready.update(worker.overdue())


# Bytes a worker may hold, so that it need not wait for its next item. Less than a socket's buffer: then
# sending never blocks while the worker itself is blocked in sending a result.
_HELD_BYTES = 64 << 10
_START = f"import sys; from {__name__} import serve, Connection; serve(Connection(int(sys.argv[1])))"


class _Worker:
    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.jobs: deque[tuple[int, bytes]] = deque()  # number, pickled item
        self.start()

    def start(self) -> None:
        ours, theirs = socket.socketpair()
        root = os.path.dirname(os.path.dirname(os.path.abspath(_anchor)))
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, str(theirs.fileno())],
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        theirs.close()
        self.link = Connection(ours.detach())
        box = self.sandbox
        self.link.send((box.options, box.cpu_seconds, box.memory_bytes))
        self.since = time.monotonic()

    def has_room(self, size: int) -> bool:
        return not self.jobs or sum(len(item) for _, item in self.jobs) + size <= _HELD_BYTES

    def give(self, number: int, item: bytes) -> None:
        if not self.jobs:
            self.since = time.monotonic()
        self.jobs.append((number, item))
        try:
            self.link.send_bytes(item)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it died; `collect` will find out and give the job to its successor

    def collect(self) -> dict[int, Outcome]:
        """Results that have arrived; after the worker's death the reason, and its jobs go to a new one."""
        done: dict[int, Outcome] = {}
        try:
            while self.jobs and self.link.poll():
                done[self.jobs[0][0]] = _read(self.link.recv_bytes())
                self.jobs.popleft()
                self.since = time.monotonic()
        except (EOFError, OSError):
            done.update(self._replace())
        except ValueError:
            self.process.kill()
            done.update(self._replace("gave an answer that cannot be read"))
        return done

    def overdue(self) -> dict[int, Outcome]:
        """Ends a worker that neither works nor answers."""
        if self.jobs and time.monotonic() - self.since > 60 * self.sandbox.cpu_seconds + 60:
            self.process.kill()
            return self._replace()
        return {}

    def _replace(self, reason: str = "") -> dict[int, Outcome]:
        code = self.process.wait()
        self.link.close()
        number, _ = self.jobs.popleft()
        waiting, self.jobs = list(self.jobs), deque()
        self.start()
        for job in waiting:
            self.give(*job)
        return {number: Outcome(reason=reason or self._cause(code))}

    def _cause(self, code: int) -> str:
        if code == -signal.SIGPROF:
            return f"took more than {self.sandbox.cpu_seconds:g} s"
        if code == -signal.SIGKILL:
            return "hung, or ran out of memory"
        return f"crashed: {signal.Signals(-code).name}" if code < 0 else f"worker ended with {code}"

    def stop(self) -> None:
        self.link.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _read(answer: bytes) -> Outcome:
    """An answer of a worker; ValueError where it is not one."""
    try:
        value, reason = json.loads(answer)
    except (TypeError, RecursionError) as error:
        raise ValueError("not an answer") from error
    if not isinstance(reason, str):
        raise ValueError("not an answer")
    return Outcome(value, reason)


def serve(link: Connection) -> None:
    """What a worker does, until its parent hangs up, which it may in the midst of an answer."""
    with suppress(EOFError, ConnectionError):
        _answer(link)


def _answer(link: Connection) -> NoReturn:
    """The worker's loop: one answer, [value, reason] in JSON, for each item."""
    options, cpu_seconds, memory = link.recv()
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    calls: dict[str, Any] = {}
    while True:
        name, item = link.recv()
        if name not in calls:
            module_name, _, function = name.partition(":")
            module = importlib.import_module(module_name)
            calls[name] = getattr(module, function)
            getattr(module, "prepare", lambda options: None)(options)
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        try:
            answer = json.dumps([calls[name](item, options), ""])
        except Exception as error:
            answer = json.dumps([None, " ".join(f"{type(error).__name__}: {error}".split())[:200]])
        signal.setitimer(signal.ITIMER_PROF, 0)
        link.send_bytes(answer.encode())
