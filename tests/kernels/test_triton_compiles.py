"""Every Triton kernel compiled ahead of time for GPUs that are not here: A100, H100, B200.

Says nothing about speed; catches what a compiler can refuse, shared memory beyond the card's (which Triton does
not check), and registers spilled to memory on the H100.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)
triton = pytest.importorskip("triton")

from pyengine.kernels.attention import triton as attention  # noqa: E402
from pyengine.kernels.cross_entropy import triton as cross_entropy  # noqa: E402
from pyengine.kernels.rmsnorm import triton as rmsnorm  # noqa: E402
from pyengine.kernels.sample import triton as sample  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448}  # bytes a block may use
WORDS = {"TOKENS": 64, "WORDS": 64, "CHANNELS": 32}

# kernel, pointers of the data's type, pointers of float, pointers of int32/int64, scalars, constants
KERNELS = [
    (rmsnorm.rmsnorm_fwd_kernel, "x weight y", "residual summed rstd", {}, {"HAS_RESIDUAL": True, "BLOCK": 4096}),
    (rmsnorm.rmsnorm_bwd_kernel, "dy weight dx", "dsummed s dresidual rstd partial", {},
     {"HAS_DSUMMED": True, "HAS_DRESIDUAL": True, "ROWS": 64, "BLOCK": 4096}),
    (attention.attention_fwd_kernel, "q k v out", "lse", {"tiles": "*i32"}, attention.tile(64)),
    (attention.attention_fwd_kernel, "q k v out", "lse", {"tiles": "*i32"}, attention.tile(128)),
    *(
        case
        for dim in (64, 128)
        for case in (
            (attention.attention_bwd_dkdv_kernel, "q k v dout dk dv", "lse delta", {"tiles": "*i32"},
             attention.tile_for_keys(dim)),
            (attention.attention_bwd_dq_kernel, "q k v dout dq", "lse delta", {"tiles": "*i32"}, attention.tile(dim)),
        )
    ),
    (attention.attention_paged_kernel, "q k_pages v_pages out", "", {"pages": "*i32", "positions": "*i32"},
     {"PAIR": 2, "PAGE": 64, "GROUP": 16, "DIM": 128}),
    (attention.write_pages_kernel, "k v k_pages v_pages", "", {"slots": "*i32"}, {"PAIR": 2, "PAGE": 64, "DIM": 128}),
    (sample.sample_choose_kernel, "", "logits u temperature top_p min_p scale_out peak_out",
     {"top_k": "*i32", "ids_given": "*i64", "ids": "*i64", "least_out": "*i64", "light_out": "*i64"},
     {"SCORE": False, "BLOCK": 1024}),
    (sample.sample_tiles_kernel, "", "logits scale row_peak peaks sums", {"least": "*i64", "light": "*i64"},
     {"TILE": 1024, "STRANDS": 16}),
    (sample.sample_merge_kernel, "", "logits scale row_peak peaks sums logprobs",
     {"ids": "*i64", "least": "*i64", "light": "*i64"}, {"IDS": 20}),
    (sample.top_ids_kernel, "", "logits", {"ids": "*i64"}, {"N": 20, "BLOCK": 1024}),
    (sample.adjust_mask_kernel, "", "logits out", {"allowed": "*i32"}, {"MASKED": True, "BLOCK": 1024}),
    (sample.adjust_entries_kernel, "", "logits repetition added out", {"ids": "*i32", "starts": "*i32"},
     {"BLOCK": 128}),
    (sample.uniform_kernel, "", "u", {"seeds": "*i64", "positions": "*i64"}, {"BLOCK": 128}),
    (cross_entropy.cross_entropy_fwd_kernel, "x weight", "nll lse", {"targets": "*i64"}, WORDS),
    (cross_entropy.cross_entropy_bwd_kernel, "x weight dlogits", "lse dnll", {"targets": "*i64"}, WORDS),
]  # fmt: skip


def compiled(kernel, data, floats, others, constants, capability):
    """The kernel for bf16 data, with scalars and warps as launches pass them."""
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in data.split():
            signature[name] = "*bf16"
        elif name in floats.split():
            signature[name] = "*fp32"
        else:
            signature[name] = others.get(name) or ("fp32" if name.startswith(("eps", "scale")) else "i32")
    warps = attention.WARPS if "QUERIES" in constants else 4
    if kernel in (rmsnorm.rmsnorm_fwd_kernel, rmsnorm.rmsnorm_bwd_kernel):
        warps = rmsnorm._warps(constants["BLOCK"])
    source = ASTSource(
        kernel, signature, constexprs={(kernel.arg_names.index(k),): v for k, v in constants.items()}
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("case", KERNELS, ids=lambda c: f"{c[0].__name__}-{c[4].get('DIM', '')}")
def test_compiles(case, capability, tmp_path):
    result = compiled(*case, capability)
    assert result.metadata.shared <= SHARED_LIMIT[capability]
    if capability == 90:
        assert spilled_bytes(result.asm["cubin"], tmp_path) == 0


def spilled_bytes(cubin: bytes, folder: Path) -> int:
    """Bytes of local memory a thread, which is where spilled registers go."""
    tool = shutil.which("cuobjdump") or next(Path(triton.__file__).parent.rglob("cuobjdump"))
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    usage = subprocess.run([str(tool), "-res-usage", str(path)], capture_output=True, text=True, check=True)
    found = re.search(r"STACK:(\d+).*?LOCAL:(\d+)", usage.stdout + usage.stderr)
    assert found, usage.stdout
    return int(found[1]) + int(found[2])
