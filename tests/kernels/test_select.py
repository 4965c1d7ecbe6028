"""The choice of a backend: probes that reach every function, and verdicts that last only where they should."""

import inspect
import subprocess
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from pyengine.kernels import _native, _probe, _select

from tests.conftest import Backend, runnable

PROBED = [op for op in _select.ops() if {"triton", "cuda"} & set(_select.backends(op))]
CARDS = {0: "one card", 1: "another card"}


@pytest.mark.parametrize(
    "op, case", [(op, Backend(*pair)) for op in PROBED for pair in runnable(op)], ids=str
)
def test_the_examples_agree_and_reach_every_public_function(op, case, monkeypatch):
    package, reached = import_module(f"pyengine.kernels.{op}"), set()
    public = {n: getattr(package, n) for n in package.__all__}
    # a function that the reference lends to the package is the same on every backend
    functions = {
        n: f for n, f in public.items() if inspect.isfunction(f) and f.__module__ == package.__name__
    }
    for name, function in functions.items():

        def recorded(*arguments, _name=name, _function=function, **keywords):
            reached.add(_name)
            return _function(*arguments, **keywords)

        recorded.__name__ = name
        monkeypatch.setattr(package, name, recorded)
    with case.active():
        _probe.compare(op, case.name, case.device)
    assert reached == functions.keys()


class Wrong:
    """A backend that is right but for one function."""

    def __init__(self, backend, name, change):
        self._backend, self._name, self._change = backend, name, change

    def __getattr__(self, name):
        function = getattr(self._backend, name)
        if name != self._name:
            return function
        return lambda *arguments: self._change(function(*arguments), arguments)


def in_place(index):
    return lambda result, arguments: arguments[index][0].add_(0.5)


WRONG = [
    ("rmsnorm", "forward", lambda result, _: (result[0] * 1.1, *result[1:])),
    ("rmsnorm", "backward", lambda result, _: (*result[:2], result[2] * 1.1)),
    ("attention", "forward_paged", lambda result, _: result + 0.3),
    ("attention", "write_pages", lambda result, arguments: arguments[2].mul_(1.5)),
    ("sample", "top_logprobs", lambda result, _: (result[0] + 1, result[1])),
    ("sample", "adjust_logits", lambda result, _: result.where(result.isfinite(), 0)),
    ("sample", "sampled_logprob", lambda result, _: result.nan_to_num()),
    ("sample", "uniform", lambda result, _: 1 - result),
    ("adamw", "step", in_place(0)),
    ("adamw", "step", in_place(1)),  # nothing but the weights and moments may change
    ("adamw", "grad_norm", lambda result, _: result * 1.1),
    ("muon", "step", in_place(0)),
    ("linear", "forward_packed", lambda result, _: result * 1.1),
]


@pytest.mark.parametrize("op, name, change", WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_a_wrong_function_disagrees(op, name, change, monkeypatch):
    load = _select._load

    def loaded(op, backend):
        return load(op, backend) if backend == "reference" else Wrong(load(op, backend), name, change)

    monkeypatch.setattr(_select, "_load", loaded)
    with pytest.raises(_probe.Disagreement, match=op):
        _probe.compare(op, "cpu", "cpu")


@pytest.fixture
def launches(monkeypatch, tmp_path):
    """A machine with two different cards whose probes end as `launches.ends` says; `launches.seen` counts."""
    record = SimpleNamespace(seen=[], ends=[0], file=tmp_path / "pyengine" / "probes.json")

    def run(command, timeout, **_):
        record.seen.append(command[-3:])
        end = record.ends.pop(0) if len(record.ends) > 1 else record.ends[0]
        if end == "hang":
            raise subprocess.TimeoutExpired(command, timeout)
        return SimpleNamespace(returncode=end, stderr=f"some lines\nended with {end}\n")

    def new_process():
        monkeypatch.setattr(_select, "_chosen", {})
        monkeypatch.setattr(_select, "_unfinished", {})

    record.new_process = new_process
    new_process()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("PYENGINE_BACKEND", raising=False)
    monkeypatch.setattr(_select, "_load", lambda op, backend: SimpleNamespace(__name__=backend))
    monkeypatch.setattr(_select.subprocess, "run", run)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: CARDS[device.index])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, device.index))
    return record


def chosen(device="cuda"):
    return _select.select("rmsnorm", torch.device(device)).__name__


def test_agreement_is_kept_for_later_processes(launches):
    assert [chosen(), chosen(), chosen("cuda:0")] == ["cuda"] * 3
    launches.new_process()
    assert chosen() == "cuda"
    assert launches.seen == [["rmsnorm", "cuda", "cuda:0"]]


def test_disagreement_is_kept_too(launches):
    launches.ends = [_select.DISAGREES]
    assert chosen() == "reference"
    launches.new_process()
    assert chosen() == "reference"
    assert [seen[1] for seen in launches.seen] == ["cuda", "triton"]


@pytest.mark.parametrize("end", ["hang", 1, -9])
def test_a_probe_without_a_verdict_is_made_again_by_the_next_process(launches, end):
    launches.ends = [end, _select.DISAGREES, 0]
    assert chosen() == "reference"
    with _select.use_backend("reference"):
        pass  # forgets the choices, not what the probes said
    assert chosen() == "reference" and len(launches.seen) == 2
    launches.new_process()
    assert chosen() == "cuda" and len(launches.seen) == 3


def wished(op, device="cuda"):
    with _select.use_backend("hopper"):
        return _select.select(op, torch.device(device)).__name__


def test_what_is_proven_by_reading_only_is_asked_for_by_name_and_probed(launches):
    assert _select.select("attention", torch.device("cuda")).__name__ == "cuda"
    assert [wished(op) for op in ("attention", "linear", "rmsnorm")] == ["hopper", "hopper", "cuda"]
    assert [seen[:2] for seen in launches.seen] == [
        ["attention", "cuda"], ["attention", "hopper"], ["linear", "hopper"], ["rmsnorm", "cuda"],
    ]  # fmt: skip
    launches.new_process()
    launches.file.unlink()
    launches.ends = [_select.DISAGREES]
    with pytest.raises(NotImplementedError, match="attention: the hopper backend .* ended with 3"):
        wished("attention")
    assert wished("rmsnorm", "cpu") == "cpu"


def test_a_probe_does_not_probe_what_it_probes(launches):
    _select.presume("attention", "hopper", torch.device("cuda:0"))
    assert wished("attention") == "hopper" and not launches.seen


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b'{"a": 1}'])
def test_a_damaged_file_is_begun_anew(launches, content):
    launches.file.parent.mkdir()
    launches.file.write_bytes(content)
    assert chosen() == "cuda"
    launches.new_process()
    assert chosen() == "cuda" and len(launches.seen) == 1


def test_a_place_that_cannot_be_written_costs_only_the_next_launch(launches):
    launches.file.parent.write_text("not a folder")
    assert chosen() == "cuda"


def test_each_card_is_asked(launches):
    launches.ends = [_select.DISAGREES, _select.DISAGREES, 0]
    assert [chosen("cuda:0"), chosen("cuda:1"), chosen("cuda:0")] == ["reference", "cuda", "reference"]
    assert [seen[2] for seen in launches.seen] == ["cuda:0", "cuda:0", "cuda:1"]


@pytest.mark.parametrize("file", ["_triton.py", "rmsnorm/triton.py", "_cuda.so"])
def test_every_kernel_is_part_of_the_key(launches, monkeypatch, tmp_path, file):
    """A linear layer is built of a norm's functions: their change must ask the card about both again."""
    keys = []
    for text in ("a = 1", "a = 2"):
        path = tmp_path / text / file
        path.parent.mkdir(parents=True)
        path.write_text(text)
        monkeypatch.setattr(_select, "HERE", tmp_path / text)
        _select._source.cache_clear()
        keys.append(_select._probe_key("linear", "triton", torch.device("cuda:0")))
    _select._source.cache_clear()
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    "tensor", [torch.ones(3), torch.ones(4).double(), torch.ones(8)[::2], torch.ones(4, device="meta")]
)
def test_a_kernel_is_not_given_what_it_does_not_expect(tensor):
    with pytest.raises(ValueError, match="expected 4 contiguous numbers"):
        _native.address(tensor, torch.float32, 4)
