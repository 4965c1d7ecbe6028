"""What the GPU suite measures: the cases, their shapes, peers and goals.

They are those of training and serving models of 0.1 to 8 billion parameters on one card; case.py says what a case is.
"""

from bench.gpu import attention, decoding, encoding, products, sampling, streaming, training
from bench.gpu.case import Case

STREAMED = 0.8, 0.88, 0.93  # goals of what memory bounds: shares of the bandwidth of a copy


def _cases() -> list[Case]:
    found: list[Case] = []
    called_so = {"triton": "", "cuda": ", CUDA C++", "hopper": ", Hopper's engines"}

    def add(
        area, name, make, *arguments, versus="", goals=(0.0, 0.0, 0.0), seconds=3.0, quick=False,
        backends=("triton",),
    ):  # fmt: skip
        """backends: whose kernels are measured, each in a row of its own; the first's may have to be compiled."""
        tags = frozenset({"quick"} if quick else ())
        for backend in backends:
            called = name + called_so[backend] if len(backends) > 1 else name
            needs = seconds if backend == backends[0] else seconds / 3
            case = Case(
                area, called, lambda place: make(place, *arguments), versus, goals, needs, tags, backend
            )
            found.append(case)

    for heads, dim, goals in ((16, 128, (1.08, 1.4, 1.75)), (32, 64, (1.2, 1.35, 1.55))):
        for length in (2048, 8192, 16384):
            add("attention forward", f"causal D={dim} S={length}", attention.causal, heads, dim, length, False,
                versus="SDPA FLASH", goals=goals, quick=length == 8192,
                backends=("triton", "cuda", "hopper"))  # fmt: skip
    for heads, dim, length in ((16, 128, 2048), (16, 128, 8192), (32, 64, 4096)):
        add("attention backward", f"causal D={dim} S={length}", attention.causal, heads, dim, length, True,
            versus="SDPA FLASH", goals=(0.85, 1.2, 1.5), quick=length == 4096,
            backends=("triton", "cuda", "hopper"))  # fmt: skip
    add("attention forward", "packed, 64 to 2,048 tokens, D=64", attention.packed,
        versus="SDPA FLASH, padded", goals=(1.5, 2.0, 3.0))  # fmt: skip
    for requests, context in ((64, 1024), (8, 8192), (1, 65536)):
        add("decode attention", f"paged, {requests} x {context}, GQA 4", attention.paged, requests, context,
            goals=(0.75, 0.85, 0.93), quick=requests == 64)  # fmt: skip
    add("cross entropy", "forward + backward, d=768 V=50,257", products.cross_entropy, 768, 50257,
        versus="torch.compile", goals=(1 / 1.15, 1.0, 1 / 0.92), seconds=15, quick=True,
        backends=("triton", "hopper"))  # fmt: skip
    add("cross entropy", "forward + backward, d=1,024 V=151,936", products.cross_entropy, 1024, 151936,
        versus="torch.compile", goals=(1 / 1.15, 1.0, 1 / 0.92), seconds=15,
        backends=("triton", "hopper"))  # fmt: skip
    for channels in (1024, 4096, 32768):
        add(
            "add + rmsnorm", f"forward, C={channels}", streaming.add_norm, channels, goals=STREAMED, seconds=8
        )
    add("add + rmsnorm", "backward, C=4096", streaming.add_norm_backward, 4096, goals=STREAMED, seconds=8)
    for backward in (False, True):
        what = "backward" if backward else "forward"
        add("swiglu", f"{what}, 16k x 8,192", streaming.swiglu, backward, goals=STREAMED, seconds=8)
        add("rope", f"{what} with q/k norm, D=128", streaming.rope, backward, goals=STREAMED, seconds=8)
        add("embedding", f"{what}, V=50,304 C=2,048", streaming.embedding, backward, goals=(0.6, 0.75, 0.85))
    for n, k in ((4096, 4096), (3072, 768)):
        size = f"16k x {n:,} x {k:,}"
        add("linear", size, products.linear, 16384, n, k, versus="torch", goals=(0.8, 0.9, 1.0),
            quick=k == 4096, backends=("triton", "hopper"))  # fmt: skip
        add("linear", f"backward, {size}, Hopper's engines", products.linear_backward, 16384, n, k, versus="torch",
            goals=(0.8, 0.9, 1.0), seconds=1.5, quick=k == 4096, backends=("hopper",))  # fmt: skip
    for rows in (1, 64):
        add("linear", f"{rows} x 14,336 x 4,096", products.linear, rows, 14336, 4096, goals=(0.6, 0.75, 0.88))
    for rows in (1, 32, 128):
        add("sample", f"top-k 50 + top-p 0.95, B={rows} V=131,072", sampling.sample, rows,
            versus="torch sort path", goals=(3.0, 8.0, 15.0), quick=rows == 1, backends=("triton", "cuda"))  # fmt: skip
    for name, fresh in (("first pass", True), ("known pieces", False)):
        add("encoding", f"code, cl100k's pattern, {name}", encoding.encoding, fresh,
            versus="C++, all threads", goals=(2.0, 5.0, 10.0), seconds=8.0, quick=fresh,
            backends=("cuda",))  # fmt: skip
    for name, layers, channels in (("85M", 12, 768), ("1.2B", 24, 2048)):
        add("adamw", name, training.adamw, layers, channels, goals=STREAMED, quick=layers == 12)
        add(
            "muon",
            name,
            training.muon,
            layers,
            channels,
            versus="torch bf16",
            goals=(1.1, 1.4, 1.8),
            seconds=5,
        )
    add("training step", "GPT-2 124M, S=1,024", training.training_step, 12, 768, 50304, 1024,
        versus="torch.compile", goals=(1.05, 1.12, 1.25), seconds=60)  # fmt: skip
    add("training step", "1.1B, S=2,048", training.training_step, 22, 2048, 32000, 2048,
        versus="torch.compile", goals=(1.05, 1.12, 1.25), seconds=75)  # fmt: skip
    for size, batch, goals in (
        ("1M", 1, (0.0, 0.0, 0.0)), ("0.6B", 1, (0.45, 0.65, 0.82)), ("8B", 1, (0.8, 0.87, 0.93)),
        ("8B", 128, (0.55, 0.7, 0.82)),
    ):  # fmt: skip
        add("decode step", f"{size}, B={batch}, context 1,024", decoding.decode_step, size, batch, 1024,
            goals=goals, seconds=16, quick=size == "0.6B")  # fmt: skip
    add("decode step, persistent", "1M, B=1, context 1,024", decoding.decode_step, "1M", 1, 1024, True,
        seconds=3, backends=("cuda",))  # fmt: skip
    add("rollout", "0.6B, 32 problems x 8, 128 + 64 tokens", decoding.rollout, "0.6B", 32, 8, 128, 64,
        goals=(0.5, 0.6, 0.7), seconds=14)  # fmt: skip
    add("fine-tuning", "0.6B, packed, 128 to 1,408 tokens", training.finetuning, "0.6B",
        versus="torch.compile, padded", goals=(1.3, 1.6, 2.0), seconds=55)  # fmt: skip
    for bits, kind in ((8, "Q8_0"), (4, "Q4_1")):
        for rows in (1, 16, 512):
            goals = (0.6, 0.75, 0.88) if rows == 1 else (0.5, 0.6, 0.75) if rows == 16 else (0.25, 0.4, 0.6)
            add("quantized", f"{kind}, {rows} x 14,336 x 4,096", products.quantized, rows, bits,
                goals=goals, quick=rows == 1)  # fmt: skip
    for batch in (1, 64):
        add("head + sample", f"B={batch}, d=1,024 V=151,936", sampling.head_and_sample, batch,
            versus="torch's product alone", goals=(1 / 1.1, 1 / 1.05, 1 / 1.03), seconds=6)  # fmt: skip
    # last, so that a kernel never seen on a card, should it hang, takes its own rows' time alone
    return sorted(found, key=lambda case: case.backend == "hopper")


CASES: list[Case] = _cases()
