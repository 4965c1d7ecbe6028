"""The CUDA kernels on the CPU: `python -m tests.cuda_shim FOLDER [asan|tsan]` compiles them and prints the path.

g++ compiles csrc/cuda/*.cu as plain C++ with host_shim.h in CUDA's place. With `asan` every CUDA thread is a
fibre and AddressSanitizer and UBSan watch; with `tsan` every CUDA thread is a real one and ThreadSanitizer does.
"""

import os
import subprocess
import sysconfig
from pathlib import Path

import pybind11

HERE = Path(__file__).parent
CUDA = HERE.parent.parent / "csrc" / "cuda"
FLAGS = {
    "": ["-O2"],
    "asan": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "tsan": ["-O1", "-g", "-fsanitize=thread", "-DPYENGINE_SHIM_THREADS"],
}


def build(folder: Path, sanitizer: str = "") -> Path:
    """Compile the CUDA module for the CPU into `folder`; returns its path."""
    target = Path(folder).resolve() / f"_cuda{'_' + sanitizer if sanitizer else ''}.so"
    inputs = [*sorted(CUDA.glob("*.cu")), CUDA / "bindings.cpp"]
    shared = CUDA.parent.glob("*/*.h")
    newest = max(p.stat().st_mtime for p in [*CUDA.iterdir(), *shared, *HERE.glob("*.h")])
    if target.exists() and target.stat().st_mtime > newest:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    includes = [HERE, CUDA, pybind11.get_include(), sysconfig.get_paths()["include"]]
    common = [
        "-std=c++17",
        "-fPIC",
        "-fvisibility=hidden",
        "-pthread",
        "-ffp-contract=off",
        *FLAGS[sanitizer],
    ]
    common += ["-DPYENGINE_HOST_SHIM", "-DPYENGINE_MODULE=_cuda", *(f"-I{path}" for path in includes)]
    compiler = os.environ.get("CXX", "g++").split()
    objects = [target.with_name(f"{target.stem}-{path.stem}.o") for path in inputs]
    running = [
        subprocess.Popen([*compiler, *common, "-x", "c++", "-c", str(path), "-o", str(out)])
        for path, out in zip(inputs, objects, strict=True)
    ]
    if any(process.wait() for process in running):
        raise RuntimeError("the CUDA kernels do not compile with the host shim")
    subprocess.check_call([*compiler, *common, "-shared", *map(str, objects), "-o", str(target)])
    return target
