"""The CUDA kernels as nvcc compiles them for A100 and H100, read as machine code.

Says nothing about speed. Catches registers spilled to memory, products of matrices that do not reach the tensor
cores, tiles that are not copied past the registers; in the kernels for Hopper, engines that are not used as the
source says. Shared memory is held to what cards have when the kernels are compiled. The disassembler is the one that
Triton brings along.
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

CUDA = Path(__file__).parents[2] / "csrc" / "cuda"
SOURCES = sorted(path for path in CUDA.glob("*.cu") if "__global__" in path.read_text(encoding="utf-8"))
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)", re.MULTILINE)


def compiled(source: Path, architecture: str, folder: Path) -> dict[str, Counter]:
    """{mangled kernel: counts of its instructions by name, and "spilled" bytes} for one architecture."""
    cubin = folder / "kernels.cubin"
    done = subprocess.run(
        ["nvcc", "-O3", "-std=c++17", f"-arch=sm_{architecture}", "-cubin", "-Xptxas", "-v", source, "-o", cubin],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not re.search("serialized|injected", done.stderr), "wgmma waits where the source does not say so"
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


def attention_engines(kernel: str) -> dict[str, int]:
    """What an attention kernel for Hopper is made of, see `engines`.

    HGMMA: 64 rows by up to 128 columns over 16 of K. Forward: scores of the first tile and of a next one, outputs of
    the tile before and of the last; backward: two kinds of scores, and gradients over 64 rows, of keys two. UTMALDG:
    panels of queries, keys and values; of two tiles owned and two that pass by.
    """
    width = int(re.search(r"Li(\d+)E", kernel)[1])
    if "bwd" in kernel:
        gradients = 2 if "ELb1E" in kernel else 1
        waits = 3 if width == 128 and gradients == 2 else 4  # too few registers to go on into the next step
        return {
            "HGMMA": 2 * (width // 16) + gradients * (64 // 16), "UTMALDG": 4 * width // 64,
            "WARPGROUP": 2 + gradients + waits,
        }  # fmt: skip
    return {"HGMMA": 2 * (width // 16) + 2 * (128 // 16), "UTMALDG": 3 * width // 64, "WARPGROUP": 8}


def product_engines(kernel: str) -> dict[str, int]:
    """What a product's kernel for Hopper is made of, see `engines`.

    HGMMA: 64 rows by 256 columns over a stage of 64. UTMALDG: a factor at once where K lies along its rows, else 64 of
    its 128 or 256 rows. UTMASTG, and UTMAREDG, which adds: panels of 64 bf16 or 32 float of 256 results a row.
    """
    across = [found == "1" for found in re.findall(r"Lb([01])E", kernel)]
    copies = sum((2, 4)[side] if lies else 1 for side, lies in enumerate(across))
    stored = {"StoreI4bf16": (4, 0), "StoreIf": (8, 0), "Gradients": (4, 0), "Add": (0, 8), "Peaks": (0, 0)}
    stores, adds = next(
        counts for name, counts in stored.items() if f"{len(name.split('I')[0])}{name}" in kernel
    )
    return {"HGMMA": 4, "UTMALDG": copies, "UTMASTG": stores, "UTMAREDG": adds, "WARPGROUP": 3}


def engines(kernel: str) -> dict[str, int]:
    """What a kernel for Hopper is made of: by the source, each loop of its text once.

    WARPGROUP: the beginnings of batches of products, and the waits for them. USETMAXREG: registers given up and taken.
    """
    counts = attention_engines(kernel) if "attention" in kernel else product_engines(kernel)
    return counts | {"USETMAXREG": 2, "HMMA": 0, "LDGSTS": 0}


@pytest.mark.slow  # a minute a file of products
@pytest.mark.parametrize("architecture", ["80", "90a"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_compiles(source, architecture, tmp_path):
    for name, counts in compiled(source, architecture, tmp_path).items():
        assert not counts["spilled"] and not counts["LDL"] and not counts["STL"], f"{name} spills"
        if not re.search("attention_(fwd|bwd)_kernel", name):
            continue
        assert counts["LDGSTS"], f"{name}: tiles go through registers"
        if "4bf16" in name:
            assert counts["HMMA"] == products(name), f"{name}: {counts['HMMA']} products on tensor cores"
        else:
            assert counts["FFMA"] and not counts["HMMA"], f"{name}: float32 is not to be rounded"


@pytest.mark.parametrize(
    "op, count", [("attention", 2), ("attention_backward", 4), ("linear", 5), ("cross_entropy", 2)]
)
def test_hopper_engines_are_used(op, count, tmp_path):
    kernels = compiled(CUDA / f"{op}_hopper.cu", "90a", tmp_path)
    kernels = {name: counts for name, counts in kernels.items() if "hopper_kernel" in name}
    assert len(kernels) == count
    for name, counts in kernels.items():
        assert not counts["spilled"] and not counts["LDL"] and not counts["STL"], f"{name} spills"
        expected = engines(name)
        assert {key: counts[key] for key in expected} == expected, name
        assert counts["SYNCS"] and counts["FENCE"], (
            f"{name}: no barriers, or writes that the engines may not see"
        )


@pytest.mark.parametrize("op", ["attention", "attention_backward", "linear", "cross_entropy"])
def test_other_cards_have_an_empty_kernel(op, tmp_path):
    for name, counts in compiled(CUDA / f"{op}_hopper.cu", "80", tmp_path).items():
        assert "hopper_kernel" not in name or set(counts) <= {"MOV", "EXIT", "BRA", "NOP", "spilled"}, name
