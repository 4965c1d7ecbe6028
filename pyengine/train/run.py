"""A run: its directory, the stages' completion markers, and doing only what is missing.

    runs/<name>/config.toml      the resolved settings
                metrics.jsonl    one JSON object a line: stage, step, and what was measured
                gates.json       {name: {value, bound, holds, ...}}
                stages/<stage>.json   marker: state, hash of the inputs, hash of each output, seconds, summary, machine
                web/ tokenizer/ shards/ base/ sft/ know/ search/ rl/ reward/ rlhf/ samples/ report.html

A stage's inputs are its settings, the files those name, and the outputs of the stages it needs; its marker
keeps a hash of them. A finished stage whose inputs and outputs are unchanged is not run again. One that was
killed goes on from what it left (a checkpoint, a frontier), because its inputs still hash the same; if they
changed, what it left is removed first. So the same command, given again, does exactly what is missing. The marker
of a stage under way keeps its seconds, written when it is stopped and, since a kill leaves no time to write, with
each checkpoint: the time told in the end is that of all attempts.
"""

import fcntl
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import __version__, kernels
from ..devices import available_cpus, device_of, processes_here
from ..errors import UserError
from ..files import atomic_write, file_hash, write_json
from . import machine
from .config import Config, as_table, write_config
from .dial import resolve
from .progress import console, note
from .stages import STAGES, Stage

if TYPE_CHECKING:
    from ..text import Tokenizer
    from ..world import World

RUNS = Path("runs")
Page = Callable[["Run", bool], None]  # pyengine.report.refresh


class Run:
    """One run's directory and what the stages share: settings, metrics, gates, tokenizer, world."""

    def __init__(self, config: Config, root: Path = RUNS, page: Page | None = None):
        """page: draws what the run has written so far, each time that there is something new."""
        self.config = resolve(config)
        self.folder = root / config.name
        self.stage = ""  # the stage under way, the default of `log`
        self._clock: _Clock | None = None  # of the stage under way
        self._page = page

    def path(self, *parts: str) -> Path:
        """A path inside the run's folder."""
        return self.folder.joinpath(*parts)

    @cached_property
    def threads(self) -> int:
        """How many threads the kernels use."""
        return self.config.threads or max(1, available_cpus() // processes_here())

    @cached_property
    def device(self) -> torch.device:
        """Where models are trained and asked; UserError where it is not there."""
        return device_of(self.config.device)

    def prepare(self) -> None:
        """Set up this process: its threads, and how it keeps memory."""
        torch.set_num_threads(1)  # torch's own pool would fight the kernels' for the cores
        kernels.set_threads(self.threads)
        machine.keep_memory()

    @property
    def tokenizer(self) -> "Tokenizer":
        """The run's tokenizer, trained by the stage `tokenizer`."""
        from ..text import Tokenizer

        return Tokenizer.load(self.path("tokenizer"))

    @cached_property
    def world(self) -> "World":
        """The closed world of this run's seed."""
        from ..world import World

        return World(self.config.closed_world())

    def draw(self, now: bool = False) -> None:
        """Bring the run's page up to date, if it is time; in any case with now=True."""
        if self._page is not None:
            self._page(self, now)

    def log(self, kind: str, step: int, stage: str | None = None, **values: Any) -> None:
        """Append one line to metrics.jsonl: the stage, the kind of line ("train", "eval"), step, values.

        stage: default the stage under way; a second training inside it says "stage/name".
        """
        line = {
            "stage": stage or self.stage,
            "kind": kind,
            "step": step,
            "time": round(time.time(), 3),
            **values,
        }
        with open(self.path("metrics.jsonl"), "a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(line)) + "\n")

    def metrics(self, stage: str | None = None, kind: str | None = None) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, of one stage and kind if given, but for one that a kill cut short."""
        path, lines = self.path("metrics.jsonl"), []
        for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            if stage in (None, line["stage"]) and kind in (None, line["kind"]):
                lines.append(line)
        return lines

    def forget_metrics(self, drop: Callable[[dict[str, Any]], bool]) -> None:
        """Take the lines for which `drop` holds out of metrics.jsonl: what is about to be done again."""
        lines = [line for line in self.metrics() if not drop(line)]
        with atomic_write(self.path("metrics.jsonl")) as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def gate(self, name: str, value: float, bound: str, holds: bool, **more: Any) -> None:
        """Record and print one gate: what was measured, the bound ("<= 2 %"), whether it holds.

        value: a share (0.93) where the bound is in % or points, seconds where it is in minutes. more: what the
        page shows beside it, such as interval=(low, high) and n.
        """
        gates = self.gates()
        gates[name] = {"stage": self.stage, "value": value, "bound": bound, "holds": bool(holds), **more}
        write_json(self.path("gates.json"), _finite(gates))
        note(f"gate {'holds' if holds else 'MISSED'}: {name} = {value:.4g}, bound {bound}")

    def gates(self) -> dict[str, Any]:
        """The gates measured so far."""
        return _table(self.path("gates.json"))

    def keep_time(self) -> None:
        """Write what the stage under way took so far into its marker, so that it counts if this process is killed."""
        if self._clock is not None:
            write_json(
                self.path("stages", f"{self.stage}.json"), self.marker(self.stage) | self._clock.read()
            )

    @contextmanager
    def timed(self, earlier: dict[str, float]) -> Iterator[None]:
        """Inside, the time of the stage under way is kept, on top of what `earlier` attempts took."""
        self._clock = _Clock(earlier)
        try:
            yield
        finally:
            self.keep_time()
            self._clock = None

    def marker(self, stage: str) -> dict[str, Any]:
        """The stage's completion marker, empty if it never started."""
        return _table(self.path("stages", f"{stage}.json"))

    def summary(self, stage: str) -> dict[str, Any]:
        """What a finished stage returned."""
        return self.marker(stage).get("summary", {})


@contextmanager
def opened(config: Config, root: Path = RUNS, page: Page | None = None) -> Iterator[Run]:
    """The run's folder, made if need be and locked against a second process; threads and seed are set."""
    run = Run(config, root, page)
    run.folder.mkdir(parents=True, exist_ok=True)
    with open(run.path(".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{run.folder} is in use by another process; choose another --name") from None
        if not run.path("config.toml").exists():
            write_config(run.path("config.toml"), config)
        run.prepare()
        yield run


def state_of(run: Run, stage: Stage) -> tuple[str, str]:
    """("done" | "missing", why in a few words)."""
    marker = run.marker(stage.name)
    if not marker:
        return "missing", "never run"
    if marker["inputs"] != inputs_hash(run, stage):
        return "missing", "its settings or inputs changed"
    if marker["state"] != "finished":
        return "missing", "was interrupted"
    for name, digest in marker["outputs"].items():
        path = run.path(name)
        if not path.exists() or file_hash(path) != digest:
            return "missing", f"{path} is {'changed' if path.exists() else 'gone'}"
    return "done", f"finished in {marker['seconds']:.1f} s"


def perform(run: Run, stage: Stage, force: bool = False) -> None:
    """Run a stage unless it is done, and write its marker."""
    state, why = state_of(run, stage)
    if state == "done" and not force:
        console.print(f"[dim]{stage.name}: {why}[/dim]")
        return
    _check_needs(run, stage)
    before = run.marker(stage.name)
    marker: dict[str, Any] = {"stage": stage.name, "state": "started", "inputs": inputs_hash(run, stage)}
    if force or before.get("inputs") != marker["inputs"]:
        _check_precious(run, stage, force)
        _clear(run, stage)
    elif before["state"] == "started":  # goes on from what it left, and on its clock
        marker |= {key: before[key] for key in _Clock.KEYS if key in before}
    console.print(f"[bold]{stage.name}[/bold]: {stage.title} ({why})")
    write_config(
        run.path("config.toml"), run.config
    )  # not before: a mistake must not change what --resume reads
    marker["settings"] = settings_of(run, stage)
    marker["machine"] = machine.describe() | {"threads": run.threads, "device": machine.name_of(run.device)}
    write_json(run.path("stages", f"{stage.name}.json"), marker)
    run.stage = stage.name
    _draw(run, stage)
    torch.manual_seed(run.config.seed)
    with run.timed(marker):
        summary = _finite(stage.load()(run) or {})
    marker = run.marker(stage.name) | {"summary": summary}
    marker["outputs"] = {str(p.relative_to(run.folder)): file_hash(p) for p in _files(run, stage.outputs)}
    marker["state"], marker["finished"] = "finished", time.strftime("%Y-%m-%dT%H:%M:%S%z")
    write_json(run.path("stages", f"{stage.name}.json"), marker)
    console.print(f"[dim]{stage.name}: {marker['seconds']:.1f} s, {marker['cpu_seconds']:.1f} CPU s[/dim]")
    _draw(run, stage)


def _check_needs(run: Run, stage: Stage) -> None:
    """Raise UserError unless what the stage reads is finished, and all it stands on has the settings at hand."""
    ask = f"`python -m pyengine.train {{}} --name {run.config.name}`"
    for need in stage.needs:
        if run.marker(need).get("state") != "finished":
            raise UserError(
                f"{stage.name} needs the stage {need}, which has not finished in {run.folder}; "
                f"run {ask.format(need)} first"
            )
    below = list(stage.needs)
    for need in below:  # grows on the way
        marker = run.marker(need)
        if marker and marker.get("inputs") != inputs_hash(run, STAGES[need]):
            raise UserError(
                f"{stage.name} stands on the stage {need}, whose settings or inputs changed since it ran in "
                f"{run.folder}; run {ask.format(need)} first, or go on with the stored settings by --resume"
            )
        below += [earlier for earlier in STAGES[need].needs if earlier not in below]


def _check_precious(run: Run, stage: Stage, force: bool) -> None:
    """Raise UserError where a fresh start would remove what was fetched from other people's sites."""
    source = run.marker(stage.name).get("settings", {}).get("web.source", "world")
    if stage.precious and not force and source != "world" and _files(run, stage.outputs):
        raise UserError(
            f"{run.folder} holds what was fetched from {source} with other settings; choose another --name, go on "
            f"with the stored settings by --resume, or fetch anew by `{stage.name} --force`"
        )


def _draw(run: Run, stage: Stage) -> None:
    """Bring the run's page up to date; the stage that writes it for good is left alone."""
    if "report.html" not in stage.outputs:
        run.draw(now=True)


def inputs_hash(run: Run, stage: Stage) -> str:
    """Hash of all a stage's result depends on: settings, files they name, outputs of the stages it needs."""
    settings = settings_of(run, stage)
    files = {text: _content(Path(text)) for text in _texts(settings) if Path(text).exists()}
    needs = {need: run.marker(need).get("outputs") for need in stage.needs}
    told = json.dumps([__version__, stage.name, settings, files, needs], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def settings_of(run: Run, stage: Stage) -> dict[str, Any]:
    """The settings that a stage reads, by the names its row in the table gives them."""
    table = as_table(run.config)
    table["site"] = table["world"] if run.config.closed else {}
    found = {}
    for name in ("seed", *stage.settings):
        section, _, key = name.partition(".")
        found[name] = table[section].get(key) if key else table[section]
    return found


def _table(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is none, or what is there is damaged: then it is made anew."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    except ValueError:
        pass
    note(f"{path} is damaged and is left out of account")
    return {}


def _content(path: Path) -> str:
    """A file by its hash; a folder, which may be large, by names, sizes and times."""
    if path.is_file():
        return file_hash(path)
    entries = sorted(p for p in path.rglob("*") if p.is_file())
    told = [(str(p.relative_to(path)), p.stat().st_size, p.stat().st_mtime_ns) for p in entries]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _texts(node: Any) -> Iterator[str]:
    for value in node.values() if isinstance(node, dict) else ():
        if isinstance(value, dict):
            yield from _texts(value)
        elif isinstance(value, str) and value:
            yield value


def _files(run: Run, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({path for pattern in patterns for path in run.folder.glob(pattern) if path.is_file()})


def _clear(run: Run, stage: Stage) -> None:
    for path in _files(run, stage.outputs):
        path.unlink()
    for pattern in stage.scratch:
        for path in run.folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    run.forget_metrics(lambda line: line["stage"].split("/")[0] == stage.name)
    gates = run.gates()
    if kept := {name: gate for name, gate in gates.items() if gate["stage"] != stage.name}:
        write_json(run.path("gates.json"), kept)
    elif gates:
        run.path("gates.json").unlink()


class _Clock:
    """Wall and CPU seconds since it was made, on top of those it is given."""

    KEYS = ("seconds", "cpu_seconds")

    def __init__(self, earlier: dict[str, float]):
        self._origin = {
            key: now - earlier.get(key, 0.0) for key, now in zip(self.KEYS, self._now(), strict=True)
        }

    def read(self) -> dict[str, float]:
        return {key: now - self._origin[key] for key, now in zip(self.KEYS, self._now(), strict=True)}

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.monotonic(), _cpu_seconds()


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _finite(value: Any) -> Any:
    """JSON has no NaN or infinity: they are written as text."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
