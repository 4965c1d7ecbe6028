"""What every command line does with mistakes, full disks, and people who stop it."""

import errno
import os
import subprocess
import sys

import pytest

from pyengine import command
from pyengine.errors import UserError
from pyengine.files import atomic_write


def raising(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize("error, told", [
    (UserError("a.txt:3: no number; give one"), "error: a.txt:3: no number; give one"),
    (PermissionError(errno.EACCES, "Permission denied", "b.txt"), "error: b.txt: permission denied"),
    (OSError(errno.ENOSPC, "No space left on device", "c.bin"),
     "error: c.bin: no space left on device; free some space and give the command again"),
    (OSError("odd"), "error: odd"),
    (ImportError("the kernels are not built"), "error: the kernels are not built"),
    (NotImplementedError("rope: no backend"), "error: rope: no backend"),
    (IsADirectoryError(errno.EISDIR, "Is a directory", ".d.1.part", None, "d"), "error: d: is a directory"),
])  # fmt: skip
def test_a_mistake_is_one_sentence(error, told, capsys):
    assert command.run(raising(error)) == 1
    assert capsys.readouterr().err == told + "\n"
    assert command.run(raising(error), debug=True) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback") and shown.endswith(told + "\n")


def test_the_status_is_the_works(capsys):
    assert [command.run(lambda s=s: s) for s in (None, 0, 3)] == [0, 0, 3]
    assert command.run(raising(KeyboardInterrupt()), stopped="go on later") == 130
    assert capsys.readouterr().err == "go on later\n"
    assert command.run(raising(NotImplementedError("Could not run 'aten::x'\nCPU: registered at"))) == 1
    assert command.run(raising(NotImplementedError())) == 1
    assert capsys.readouterr().err == "error: Could not run 'aten::x'\nerror: NotImplementedError\n"
    with pytest.raises(ValueError):  # a mistake of ours keeps its traceback
        command.run(raising(ValueError("ours")))


@pytest.mark.parametrize("name, wrong, told", [
    ("PYENGINE_ISA", "avx51", "expected one of avx512, avx2, base"),
    ("PYENGINE_BACKEND", "cppu", "expected one of cpu, cuda, triton, hopper, reference"),
])  # fmt: skip
def test_a_mistyped_variable_is_one_sentence(name, wrong, told):
    environment = {**os.environ, name: wrong}
    command = [sys.executable, "-m", "pyengine.info"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == f"error: {name}={wrong!r}: {told}\n"


def test_a_warning_is_one_sentence():
    code = (
        "import warnings; from pyengine import command; command.run(lambda: warnings.warn('2 rows left out'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "warning: 2 rows left out\n"


def test_a_reader_that_goes_away_is_no_mistake():
    code = "from pyengine import command; raise SystemExit(command.run(lambda: print('x' * 1_000_000)))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        child.stdout.close()
        assert child.stderr.read() == b"" and child.wait(60) == 141


def test_a_write_that_fails_names_its_file(tmp_path, monkeypatch):
    """A full disk is told by the write or by the flush, neither of which knows the file."""
    path = tmp_path / "kept.txt"
    path.write_text("old")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as caught, atomic_write(path) as file:
        file.write("new")
    assert caught.value.filename == str(path) and path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]
