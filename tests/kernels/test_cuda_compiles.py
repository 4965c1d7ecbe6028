"""The CUDA kernels as nvcc compiles them for A100 and H100, read as machine code.

Says nothing about speed. Catches registers spilled to memory, products of matrices that do not reach the tensor
cores, tiles that are not copied past the registers. Shared memory is held to what every card has when the
kernels are compiled. The disassembler is the one that Triton brings along.
"""

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
if not shutil.which("nvcc"):
    pytest.skip("there is no nvcc", allow_module_level=True)

pytestmark = pytest.mark.slow  # a minute a file of products
SOURCES = sorted((Path(__file__).parents[2] / "csrc" / "cuda").glob("*.cu"))
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)", re.MULTILINE)


def compiled(source: Path, capability: int, folder: Path) -> dict[str, Counter]:
    """{mangled kernel: counts of its instructions by name, and "spilled" bytes} for one architecture."""
    cubin = folder / "kernels.cubin"
    done = subprocess.run(
        ["nvcc", "-O3", "-std=c++17", f"-arch=sm_{capability}", "-cubin", "-Xptxas", "-v", source, "-o", cubin],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = re.findall(r"function '(\w+)' for.*?(\d+) bytes spill stores", done.stderr, re.DOTALL)
    disassembler = next(Path(triton.__file__).parent.rglob("nvdisasm"))
    code = subprocess.run([disassembler, "-c", cubin], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"^\.text\.(\S+):", code, flags=re.MULTILINE)
    found = {
        name: Counter(INSTRUCTION.findall(body)) for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }
    for name, spilled in said:
        found[name]["spilled"] = int(spilled)
    assert found and found.keys() == dict(said).keys()
    return found


def products(kernel: str) -> int:
    """Tensor-core instructions of an attention kernel in bf16: what its tiles and unrolled loops come to.

    One instruction multiplies 16 rows by 8 columns over 16 of K.
    """
    width = int(re.search(r"4bf16Li(\d+)", kernel)[1])
    steps, columns = min(width // 16, 2 if width == 128 else 4), width // 8
    if "fwd" in kernel:
        rows = int(re.search(r"Li\d+ELi(\d)E", kernel)[1])
        return rows * (8 * steps + 4 * columns)  # q k^T over unrolled steps, p v over all of a page of 64
    rows, gradients = (2 if width <= 64 else 1), (2 if "ELb1E" in kernel else 1)
    return rows * (2 * 4 * steps + gradients * 2 * columns)  # 32 rows pass by at once


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_compiles(source, capability, tmp_path):
    for name, counts in compiled(source, capability, tmp_path).items():
        assert not counts["spilled"] and not counts["LDL"] and not counts["STL"], f"{name} spills"
        if not re.search("attention_(fwd|bwd)_kernel", name):
            continue
        assert counts["LDGSTS"], f"{name}: tiles go through registers"
        if "4bf16" in name:
            assert counts["HMMA"] == products(name), f"{name}: {counts['HMMA']} products on tensor cores"
        else:
            assert counts["FFMA"] and not counts["HMMA"], f"{name}: float32 is not to be rounded"
