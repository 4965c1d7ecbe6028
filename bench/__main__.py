"""Run benches and write the report: `python -m bench [NAME ...] [--quick] [--json FILE]`.

`python -m bench gpu ...` is the GPU suite, with options of its own (bench/gpu).

A NAME is a group (kernels, road) or the stem of a file (rmsnorm for bench_rmsnorm.py); without one, all run.
Rows are printed, and written as JSON with the machine and the versions beside them.
"""

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from bench.gpu import suite
from pyengine.files import write_json

HERE = Path(__file__).parent
ROAD = ["train", "engine", "invariance", "gguf", "draft", "ctranslate2", "serve"]
LONG = {"draft", "ctranslate2", "serve"}  # of a group --quick leaves these out


def groups() -> dict[str, list[str]]:
    """Group name -> stems of bench files."""
    from pyengine.kernels import _select  # late: the GPU suite starts where nothing is built yet

    stems = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    kernels = [stem for stem in stems if stem in _select.ops()]
    return {
        "kernels": kernels,
        "road": [stem for stem in stems if stem in ROAD],
        **{stem: [stem] for stem in stems},
        "engine": ["engine", "invariance", "gguf", "draft", "ctranslate2", "serve"],  # beside one peer each
    }


def machine() -> dict:
    """What the numbers were measured on."""
    from pyengine.kernels import _native

    return {
        "processor": platform.processor() or platform.machine(), "isa": _native.isa,
        "threads": _native.threads(), "python": platform.python_version(), "torch": torch.__version__,
    }  # fmt: skip


def main() -> int:
    if sys.argv[1:2] == ["gpu"]:
        return suite.main(sys.argv[2:])
    known = groups()
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(known)}; all if none")
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds, and of a group what fits a minute"
    )
    parser.add_argument("--cpu", action="store_true", help="processor time of one thread, on a busy machine")
    parser.add_argument("--compile", action="store_true", help="compile the peers that are whole models")
    parser.add_argument("--processes", type=int, metavar="N", help="of train: N processes against one alone")
    parser.add_argument("--json", help="write machine and rows to this file")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in known:
            parser.error(f"there is no bench named {name!r}; known are {', '.join(known)}")
    left_out = LONG if arguments.quick else set()
    stems = sorted(
        {
            stem
            for name in (arguments.names or known)
            for stem in known[name]
            if stem == name or stem not in left_out
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        options = [
            "-qs",  # with what a bench prints beside its row
            "-o",
            "timeout=0",  # the tests' limit is too short for some
            "-p",
            "no:cacheprovider",
            "--benchmark-disable-gc",
            "--benchmark-quiet",
            f"--rows={rows}",
        ]
        options += ["--quick"] if arguments.quick else []
        options += ["--cpu", "--benchmark-timer=time.process_time"] if arguments.cpu else []
        options += ["--compile"] if arguments.compile else []
        options += [f"--processes={arguments.processes}", "-k=test_processes"] if arguments.processes else []
        code = pytest.main([*options, *(str(HERE / f"bench_{stem}.py") for stem in stems)])
        if arguments.json and rows.exists():
            write_json(arguments.json, {"machine": machine(), "rows": json.loads(rows.read_text())})
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
