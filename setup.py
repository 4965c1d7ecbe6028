"""All build logic: the CPU and text kernels once per instruction set, CUDA where nvcc is found.

No torch headers are included anywhere, so torch is not needed to build and one build serves every torch.
Environment: PYENGINE_BUILD_ISA=avx512 builds one instruction set only (for quick turns while writing a kernel);
PYENGINE_CUDA=0 leaves the CUDA module out, PYENGINE_CUDA=1 insists on it; else it is built where nvcc can.
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext, naive_recompile
from setuptools import setup

ROOT = Path(__file__).parent
# AVX-512 means the level of Zen 4 and Sapphire Rapids: with bf16 dot products and VNNI.
ISA_FLAGS = {
    "base": [],
    "avx2": ["-mavx2", "-mfma", "-mbmi2", "-mf16c"],
    "avx512": [
        *("-mavx2 -mfma -mbmi2 -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl".split()),
        *("-mavx512vnni -mavx512bf16 -mavx512vbmi -mavx512vbmi2 -mprefer-vector-width=512".split()),
        "-Wno-uninitialized",  # GCC 12's own headers
    ],
}
TEXT_FLAGS = {
    "base": [],
    "avx2": ["-mavx2", "-mbmi", "-mbmi2", "-mlzcnt"],
    "avx512": [
        *("-mavx2 -mbmi -mbmi2 -mlzcnt -mavx512f -mavx512bw -mavx512dq -mavx512vl".split()),
        *("-mavx512vbmi -mavx512vbmi2 -mavx512bitalg -mavx512cd -Wno-uninitialized".split()),
    ],
}
COMMON = [
    "-O3",
    "-std=c++17",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-pthread",
    "-Wall",
]
COMMON += ["-Wno-maybe-uninitialized"]  # GCC 12 warns about its own intrinsics headers
# Those that the nvcc at hand knows are built. Where one card's code does not run on the next generation, PTX of
# the last of them lets the driver translate.
CUDA_ARCHITECTURES = ["80", "89", "90a", "100"]  # 90a: with the instructions of Hopper alone
HEADERS = sorted((ROOT / "csrc").rglob("*.h"))


def instruction_sets() -> list[str]:
    """The sets to build: all three on x86-64, base elsewhere."""
    if only := os.environ.get("PYENGINE_BUILD_ISA"):
        return only.split(",")
    return list(ISA_FLAGS) if platform.machine() in ("x86_64", "AMD64") else ["base"]


def sources(folder: str, suffix: str = "cpp") -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / folder).glob(f"*.{suffix}"))


def is_stale(object_file: str, source: str) -> bool:
    """An object is older than its source, or than any header (which the default check forgets)."""
    newest = max(path.stat().st_mtime for path in HEADERS)
    return naive_recompile(object_file, source) or Path(object_file).stat().st_mtime < newest


def extension(name: str, folder: str, flags: list[str]) -> Pybind11Extension:
    return Pybind11Extension(
        f"pyengine.kernels.{name}",
        sources(folder),
        depends=[str(path.relative_to(ROOT)) for path in HEADERS],
        define_macros=[("PYENGINE_MODULE", name)],
        extra_compile_args=COMMON + flags,
        extra_link_args=["-pthread"],
    )


class BuildExtensions(build_ext):
    """An object folder for each extension (the variants share sources), and nvcc for the CUDA module."""

    def build_extension(self, ext):
        shared = self.build_temp
        self.build_temp = os.path.join(shared, ext.name.rsplit(".", 1)[-1])
        try:
            super().build_extension(ext)
        finally:
            self.build_temp = shared

    def run(self):
        super().run()
        if not wants_cuda():
            return
        target = Path(self.get_ext_fullpath("pyengine.kernels._cuda"))
        try:
            self.build_cuda(target)
        except (OSError, subprocess.CalledProcessError) as error:
            target.unlink(missing_ok=True)  # what an earlier build left does not fit these sources
            failed = isinstance(error, subprocess.CalledProcessError)
            what = f"nvcc ended with {error.returncode}" if failed else str(error)
            if os.environ.get("PYENGINE_CUDA") == "1":
                sys.exit(f"PYENGINE_CUDA=1 asks for the CUDA kernels, but they could not be built: {what}")
            print(f"pyengine: warning: built without the CUDA kernels: {what}", file=sys.stderr)

    def build_cuda(self, target: Path):
        """Compile csrc/cuda with nvcc into kernels/_cuda beside the other modules."""
        inputs = [ROOT / name for name in sources("cuda", "cu") + sources("cuda")]
        newest = max(path.stat().st_mtime for path in [*(ROOT / "csrc" / "cuda").iterdir(), *HEADERS])
        if target.exists() and target.stat().st_mtime > newest:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        architectures = cuda_architectures()
        codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
        last = architectures[-1]
        codes.append(f"-gencode=arch=compute_{last},code=compute_{last}")
        includes = [pybind11.get_include(), sysconfig.get_paths()["include"]]
        subprocess.check_call(
            [
                "nvcc",
                "-O3",
                "-std=c++17",
                "-shared",
                "--threads",
                "2",
                "-Xcompiler",
                "-fPIC,-fvisibility=hidden",
            ]
            + codes
            + [f"-I{path}" for path in includes]
            + [str(path) for path in inputs]
            + ["-o", str(target)]
        )


def cuda_architectures() -> list[str]:
    """Those of CUDA_ARCHITECTURES that the nvcc on the PATH knows."""
    listed = subprocess.run(["nvcc", "--list-gpu-arch"], stdout=subprocess.PIPE, text=True, check=True).stdout
    if known := [a for a in CUDA_ARCHITECTURES if f"compute_{a.rstrip('a')}" in listed.split()]:
        return known
    raise OSError(f"this nvcc knows none of the architectures {', '.join(CUDA_ARCHITECTURES)}")


def wants_cuda() -> bool:
    wish = os.environ.get("PYENGINE_CUDA")
    if wish == "1" and not shutil.which("nvcc"):
        sys.exit("PYENGINE_CUDA=1 asks for the CUDA kernels, but nvcc is not on the PATH")
    return wish != "0" and shutil.which("nvcc") is not None


def packages() -> list[str]:
    """pyengine and its sub-packages, with kernels/ mapped to pyengine.kernels."""
    found = []
    for top in ("pyengine", "kernels"):
        for path in sorted((ROOT / top).rglob("__init__.py")):
            name = ".".join(path.parent.relative_to(ROOT).parts)
            found.append(name if top == "pyengine" else f"pyengine.{name}")
    return found


modules = [extension(f"_cpu_{isa}", "cpu", ISA_FLAGS[isa]) for isa in instruction_sets()]
modules += [extension(f"_text_{isa}", "text", TEXT_FLAGS[isa]) for isa in instruction_sets()]

ParallelCompile("PYENGINE_JOBS", default=0, needs_recompile=is_stale).install()
setup(
    packages=packages(),
    package_dir={"pyengine": "pyengine", "pyengine.kernels": "kernels"},
    ext_modules=modules,
    cmdclass={"build_ext": BuildExtensions},
)
