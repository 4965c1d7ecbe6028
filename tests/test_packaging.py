"""Building and packing: nvcc of any age, and distributions that hold all that a build and a run need."""

import os
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parents[1]

# Knows the architectures of CUDA 12.0, and like it refuses others.
NVCC = """#!/bin/sh
case "$*" in
  --list-gpu-arch) printf 'compute_%s\\n' 50 80 86 89 90;;
  *sm_100*) echo "nvcc fatal: Unsupported gpu architecture 'compute_100'" >&2; exit 1;;
  *) echo "$@" > "$NVCC_LOG"; while [ "$1" != -o ]; do shift; done; touch "$2"; exit "${NVCC_EXIT:-0}";;
esac
"""


@pytest.fixture
def build(monkeypatch, tmp_path):
    """A function that runs the CUDA part of setup.py with an nvcc of these tests; gives the module's path."""
    (tmp_path / "nvcc").write_text(NVCC)
    (tmp_path / "nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("NVCC_LOG", str(tmp_path / "log"))
    monkeypatch.delenv("PYENGINE_CUDA", raising=False)
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.chdir(ROOT)

    def run() -> Path:
        script = runpy.run_path(str(ROOT / "setup.py"), run_name="__main__")
        command = script["BuildExtensions"](setuptools.Distribution())
        command.build_lib, command.inplace, command.extensions = str(tmp_path / "lib"), False, []
        command.run()
        return Path(command.get_ext_fullpath("pyengine.kernels._cuda"))

    return run


def test_an_nvcc_that_knows_fewer_cards_builds_for_those(build, tmp_path):
    assert build().exists()
    asked = (tmp_path / "log").read_text()
    assert "code=sm_80" in asked and "code=sm_90" in asked and "sm_100" not in asked
    assert "code=compute_90" in asked  # so that the driver of a later card can translate


def test_an_nvcc_that_fails_costs_the_cuda_kernels_only(build, monkeypatch, capfd):
    monkeypatch.setenv("NVCC_EXIT", "2")
    assert not build().exists()
    assert "warning: built without the CUDA kernels: nvcc ended with 2" in capfd.readouterr().err
    monkeypatch.setenv("PYENGINE_CUDA", "1")
    with pytest.raises(SystemExit, match="could not be built: nvcc ended with 2"):
        build()


def setup_py(folder, *arguments):
    """Run setup.py, which may write into `folder` only."""
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(folder), *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def on_disk(*folders):
    """What lies in folders of the checkout, but for what was built."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    built = (".so", ".pyc")
    return {str(p.relative_to(ROOT)) for p in paths if p.is_file() and p.suffix not in built}


def test_a_source_distribution_holds_every_source_and_every_page(tmp_path):
    setup_py(tmp_path, "sdist", "--dist-dir", tmp_path)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    assert not on_disk("csrc", "kernels", "pyengine", "tests") - held
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "Makefile"} <= held
    assert not [name for name in held if name.endswith((".so", ".pyc"))]


def test_an_installation_holds_every_module_and_every_page(tmp_path):
    setup_py(tmp_path, "build_py", "--build-lib", tmp_path / "lib")
    held = {str(path.relative_to(tmp_path / "lib")) for path in (tmp_path / "lib").rglob("*")}
    assert not on_disk("pyengine") - held
    assert not {f"pyengine/{name}" for name in on_disk("kernels")} - held
