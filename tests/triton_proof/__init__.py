"""The Triton kernels compiled for GPUs that are not here, and what their machine code says of them.

    python -m tests.triton_proof            compile all, compare with the golden file
    python -m tests.triton_proof --write    compile all, write the golden file of this version of Triton

The launches are the backends' own: each op's functions run on tensors that have shapes and no data, Triton's
launch is replaced by a recorder, and what it was given (types, constants, sizes that divide by 16, warps,
stages) is compiled for each architecture, as Triton would on the card. Of the result the golden file keeps registers,
spilled bytes, shared memory, and counts of the instructions that prove a claim: products on tensor cores,
copies past the registers, memory read 16 bytes at a time, exponentials. It says nothing about speed.
"""

import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

HERE = Path(__file__).parent
CAPABILITIES = (80, 89, 90, 100)  # A100, RTX 4090, H100, B200
SHARED_LIMIT = {
    80: 166_912,
    89: 101_376,
    90: 232_448,
    100: 232_448,
}  # bytes a block may use; Triton does not look
OPTIONS = ("num_warps", "num_stages", "num_ctas", "enable_fp_fusion", "maxnreg")
# what is counted, by the instruction's name in SASS; of several generations only one occurs
COUNTED = {
    "tensor_core": r"(HMMA|HGMMA|IMMA|IGMMA|UTC[A-Z]*MMA)",
    "async_copy": r"(LDGSTS|UTMALDG|UBLKCP)",
    "read_16_bytes": r"(LDG|LD)\.[A-Z0-9.]*128",
    "exp2": r"MUFU\.EX2",
    "fma": r"FFMA",
    "local": r"(LDL|STL)",
}
TYPES = {
    torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64", torch.int32: "i32", torch.int64: "i64",
    torch.float16: "fp16", torch.int8: "i8", torch.uint8: "u8",
}  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """One kernel as it is launched: what decides its machine code, and the grid."""

    kernel: JITFunction
    signature: tuple[str, ...]
    constants: tuple[tuple[int, object], ...]
    divisible: tuple[int, ...]  # arguments that divide by 16
    options: tuple[tuple[str, object], ...]
    grid: tuple[int, ...]


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Inside the block, launches are appended to the list and not made."""
    found: list[Launch] = []

    def record(self, *arguments, grid, warmup=False, **keywords):
        options = {name: keywords.pop(name) for name in OPTIONS if name in keywords}
        given = dict(zip(self.arg_names, arguments, strict=False)) | keywords
        assert given.keys() == set(self.arg_names), f"{self.__name__}: {given.keys() ^ set(self.arg_names)}"
        signature, constants, divisible = [], [], []
        for index, parameter in enumerate(self.params):
            value = given[parameter.name]
            if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
                signature.append("constexpr")
                constants.append((index, value))
                continue
            signature.append(_type(value))
            number = value.data_ptr() if isinstance(value, torch.Tensor) else value
            if type(number) is int and number % 16 == 0:
                divisible.append(index)
        found.append(
            Launch(
                self,
                tuple(signature),
                tuple(constants),
                tuple(divisible),
                tuple(options.items()),
                tuple(grid),
            )
        )

    before, JITFunction.run = JITFunction.run, record
    try:
        yield found
    finally:
        JITFunction.run = before


def _type(value) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + TYPES[value.dtype]
    if isinstance(value, bool):
        return "i1"
    return "fp32" if isinstance(value, float) else "i32" if -(2**31) <= value < 2**31 else "i64"


def recorded(call: Callable[[], object]) -> list[Launch]:
    """The launches of one call, each kernel of one kind once."""
    with recording() as found:
        call()
    return list(
        {
            (launch.kernel, launch.signature, launch.constants, launch.options): launch for launch in found
        }.values()
    )


def inspect(launch: Launch, capability: int) -> dict[str, int]:
    """Registers, spills, shared memory and instruction counts of a launch compiled for sm_<capability>."""
    source = ASTSource(
        launch.kernel,
        dict(zip(launch.kernel.arg_names, launch.signature, strict=True)),
        constexprs={(index,): value for index, value in launch.constants},
        attrs={(index,): [["tt.divisibility", 16]] for index in launch.divisible},
    )
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(launch.options))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(result.asm["cubin"])
        usage = _tool("cuobjdump", "-res-usage", str(path))
        sass = _tool("nvdisasm", "-c", str(path))
    found = re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", usage)
    assert found, usage
    instructions = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", sass, re.MULTILINE)
    assert instructions, sass[:500]
    counts = {name: sum(bool(re.match(what, i)) for i in instructions) for name, what in COUNTED.items()}
    return {
        "registers": int(found[1]),
        "spilled": int(found[2]) + int(found[3]),  # bytes a thread
        "shared": result.metadata.shared,
        "instructions": len(instructions),
        **{name: count for name, count in counts.items() if count},
    }


@cache
def _program(name: str) -> str:
    return str(next(Path(triton.__file__).parent.rglob(name)))


def _tool(name: str, *arguments: str) -> str:
    done = subprocess.run([_program(name), *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def golden_path() -> Path:
    """The golden file of the installed version of Triton."""
    return HERE / f"golden-{triton.__version__}.json"


def golden() -> dict[str, dict[str, dict[str, int]]]:
    """{case: {"sm_90": counts}} as written, or nothing for a version that has no file."""
    path = golden_path()
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(results: dict[str, dict[str, dict[str, int]]]) -> None:
    """One line a case and architecture, so that a change reads as one."""
    cases = []
    for case, found in sorted(results.items()):
        lines = ",\n".join(f"  {json.dumps(sm)}: {json.dumps(counts)}" for sm, counts in found.items())
        cases.append(f"{json.dumps(case)}: {{\n{lines}\n }}")
    golden_path().write_text("{\n " + ",\n ".join(cases) + "\n}\n", encoding="utf-8")
