"""Every Triton kernel, as it is launched, compiled ahead of time for A100, RTX 4090, H100 and B200.

Says nothing about speed. Catches what a compiler can refuse, shared memory beyond the card's (which Triton does
not check), registers spilled to memory on the H100, products that do not reach the tensor cores, and any change
of the machine code: `python -m tests.triton_proof --write` accepts it (see there).
"""

import os
from importlib import import_module

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)
pytest.importorskip("triton")

from pyengine.kernels import _select  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from tests.triton_proof import CAPABILITIES, SHARED_LIMIT, golden, golden_path, inspect  # noqa: E402
from tests.triton_proof.calls import cases  # noqa: E402

CASES = cases()
PRODUCTS = (
    "linear",
    "attention",
    "cross_entropy_tiles",
    "cross_entropy_bwd",
    "muon_symmetric",
    "muon_product",
)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("case", CASES)
def test_compiles(case, capability):
    counts = inspect(CASES[case], capability)
    assert counts["shared"] <= SHARED_LIMIT[capability]
    if capability == 90:
        assert counts["spilled"] == 0
    kernel = CASES[case].kernel.__name__
    if kernel.startswith(PRODUCTS) and "float32" not in case:
        assert counts.get("tensor_core"), "the products do not run on tensor cores"
    if golden():
        assert counts == golden()[case][f"sm_{capability}"], f"not what {golden_path().name} says"


def test_every_kernel_is_compiled():
    """What is launched by a call is what an op has: a kernel that no call reaches would go unproven."""
    written = set()
    for op in _select.ops():
        if "triton" in _select.backends(op):
            module = import_module(f"pyengine.kernels.{op}.triton")
            written |= {
                n for n, f in vars(module).items() if isinstance(f, JITFunction) and n.endswith("_kernel")
            }
    assert written == {launch.kernel.__name__ for launch in CASES.values()}


def test_the_golden_file_has_no_case_too_many():
    assert not golden() or golden().keys() == CASES.keys()
