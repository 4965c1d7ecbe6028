"""The CUDA kernels on the CPU: `python -m tests.cuda_shim FOLDER [asan|tsan]` compiles them and prints the path.

g++ compiles csrc/cuda/*.cu as plain C++ with host_shim.h in CUDA's place. With `asan` every CUDA thread is a
fibre and AddressSanitizer and UBSan watch; with `tsan` every CUDA thread is a real one and ThreadSanitizer does.
"""

import os
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11

HERE = Path(__file__).parent
CUDA = HERE.parent.parent / "csrc" / "cuda"
FLAGS = {
    "": ["-O2"],
    "asan": ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "tsan": ["-O1", "-g1", "-fsanitize=thread", "-DPYENGINE_SHIM_THREADS"],
}


def build(folder: Path, sanitizer: str = "") -> Path:
    """Compile the CUDA module for the CPU into `folder`; returns its path."""
    target = Path(folder).resolve() / f"_cuda{'_' + sanitizer if sanitizer else ''}.so"
    kernels = sorted(CUDA.glob("*.cu"), key=lambda path: -path.stat().st_size)  # what takes longest first
    shared = CUDA.parent.rglob("*.h")
    newest = max(p.stat().st_mtime for p in [*CUDA.iterdir(), *shared, *HERE.glob("*.h")])
    if target.exists() and target.stat().st_mtime > newest:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    includes = [HERE, CUDA, pybind11.get_include(), sysconfig.get_paths()["include"]]
    common = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-pthread", "-ffp-contract=off"]
    common += ["-DPYENGINE_HOST_SHIM", "-DPYENGINE_MODULE=_cuda", *(f"-I{path}" for path in includes)]
    compiler = [*os.environ.get("CXX", "g++").split(), *common]

    def compiled(source: Path, flags: list[str]) -> str:
        out = str(target.with_name(f"{target.stem}-{source.stem}.o"))
        subprocess.check_call([*compiler, *flags, "-x", "c++", "-c", str(source), "-o", out])
        return out

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        running = [pool.submit(compiled, path, FLAGS[sanitizer]) for path in kernels]
        # Python's door is no kernel: to have pybind11 watched would take the compiler three times as long.
        running.append(pool.submit(compiled, CUDA / "bindings.cpp", ["-O1"]))
    objects = [done.result() for done in running]
    subprocess.check_call([*compiler, *FLAGS[sanitizer], "-shared", *objects, "-o", str(target)])
    return target
