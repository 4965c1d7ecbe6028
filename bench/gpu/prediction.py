"""What a kernel should take on a card, from what it moves and computes: a prediction, never a measurement.

Engines that bound a kernel: memory (bytes), the tensor cores (products), the unit that does exponentials (16 a clock
on each SM), and the issue of instructions (128 lanes a clock on each SM), where there is neither. Where a kernel
overlaps them the longest bounds it, where it does not they add up. The bound is divided by the share of it that
kernels of this kind are published to reach, and launches are added.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what is predicted needs no kernels
    from pyengine.model import ModelConfig


@dataclass(frozen=True)
class Card:
    """Rates that a card sustains: those of large copies and large products, not those of its data sheet."""

    name: str
    bandwidth: float  # bytes/s, read plus written
    products: float  # bf16 flop/s on tensor cores
    floats: float  # float32 flop/s outside of them
    exps: float  # exponentials/s
    launch: float  # seconds
    lanes: float  # instructions/s, one for each lane of a warp, idle or not
    node: float = 3.3e-6  # seconds that a launch inside a CUDA graph costs; see decode_step
    barrier: float = 2.2e-6  # seconds that a barrier across the card costs a kernel that stays


# 3.35 TB/s and 989 TFLOP/s on the data sheet; copies are published at 2.9 to 3.05, 8192^3 products at 650 to 800
H100 = Card("H100 SXM", 2.95e12, 700e12, 55e12, 16 * 132 * 1.755e9, 3e-6, 128 * 132 * 1.755e9)


@dataclass(frozen=True)
class Work:
    """What one call moves and computes, and the share of its bound that it is expected to reach."""

    bytes: float = 0.0
    products: float = 0.0  # flops on tensor cores
    rate: float = 1.0  # of products: what its instructions can reach of a large product's
    floats: float = 0.0
    exps: float = 0.0
    instructions: float = 0.0  # one a lane; counted only where no other engine could bound the kernel
    launches: int = 1
    nodes: float = 0  # launches inside a CUDA graph
    barriers: int = 0
    reach: float = 0.88  # of memory's rate, for a kernel that streams
    overlaps: bool = True  # exponentials run while the tensor cores do

    def terms(self, card: Card) -> dict[str, float]:
        """Seconds of each engine, were it alone."""
        return {
            "memory": self.bytes / card.bandwidth,
            "tensor cores": self.products / (card.products * self.rate),
            "float32": self.floats / card.floats,
            "exponentials": self.exps / card.exps,
            "instructions": self.instructions / card.lanes,
        }

    def bound(self, card: Card) -> tuple[float, str]:
        """(seconds that no kernel of these instructions can beat at the card's rates, the engine that says so)."""
        terms = self.terms(card)
        engine = max(terms, key=terms.__getitem__)
        return terms[engine], engine

    def predicted(self, card: Card) -> float:
        """Seconds expected of this kernel."""
        terms = self.terms(card)
        seconds = max(terms.values())
        if not self.overlaps:
            seconds = max(terms["memory"], terms["tensor cores"] + terms["exponentials"] + terms["float32"])
        waits = self.launches * card.launch + self.nodes * card.node + self.barriers * card.barrier
        return seconds / self.reach + waits


def pairs(lengths: list[int]) -> int:
    """Pairs of query and key that causal attention over these documents has."""
    return sum(n * (n + 1) // 2 for n in lengths)


def attention_forward(lengths: list[int], heads: int, dim: int) -> Work:
    """4 D flops and one exponential a pair; plain Triton waits for its exponentials (published: 0.5 of a large
    product at D = 128, which is 0.72 of that sum)."""
    scores = pairs(lengths) * heads
    return Work(
        bytes=2 * 4 * sum(lengths) * heads * dim,
        products=4 * dim * scores,
        exps=scores,
        reach=0.72,
        overlaps=False,
    )


WARP_RATE = 0.62  # products by instructions of one warp (mma.sync) on an H100, published


def attention_forward_by_warps(lengths: list[int], heads: int, dim: int) -> Work:
    """The same in CUDA C++ with products by one warp. Two blocks share an SM, so that one computes exponentials while
    the other multiplies; kernels built like this are published at 0.33 of the data sheet's rate where D = 128, at 0.3
    where D = 64."""
    scores = pairs(lengths) * heads
    return Work(
        bytes=2 * 4 * sum(lengths) * heads * dim,
        products=4 * dim * scores,
        rate=WARP_RATE,
        exps=scores,
        reach=0.75 if dim > 64 else 0.68,
    )


HOPPER_SIDE = 128  # of the tiles of csrc/cuda/attention_hopper.cu


def attention_forward_on_hopper(lengths: list[int], heads: int, dim: int) -> Work:
    """The same by a kernel of Hopper's own engines. Its tiles of 128 x 128 are computed whole, those on the diagonal
    too. Kernels of this plan are published at 0.88 of a large product where D = 128, at 0.67 where D = 64, by hands
    that could measure; written without a card, this one is expected to reach less."""
    tiles = [-(-n // HOPPER_SIDE) for n in lengths]
    scores = sum(n * (n + 1) // 2 for n in tiles) * HOPPER_SIDE**2 * heads
    return Work(
        bytes=2 * 4 * sum(lengths) * heads * dim,
        products=4 * dim * scores,
        exps=scores,
        reach=0.75 if dim > 64 else 0.58,
    )


def attention_backward_by_warps(lengths: list[int], heads: int, dim: int) -> Work:
    """14 D flops and two exponentials a pair. At D = 128 every factor from shared memory serves 16 rows only: 40 KiB
    for 128 products of a warp, longer to read than to multiply."""
    scores = pairs(lengths) * heads
    return Work(
        bytes=2 * 10 * sum(lengths) * heads * dim,
        products=14 * dim * scores,
        rate=WARP_RATE,
        exps=2 * scores,
        launches=2,
        reach=0.55 if dim > 64 else 0.65,
    )


HOPPER_PASSING = 64  # rows that pass by at once, of csrc/cuda/attention_backward_hopper.cu


def attention_backward_on_hopper(lengths: list[int], heads: int, dim: int) -> Work:
    """The same 14 D flops by a kernel of Hopper's own engines, in tiles of 64 x 64 computed whole. Half of its products
    read all that shared memory gives. Kernels that add dq with atomics, 10 D flops, are published at 0.7 of a large
    product where D = 128; this one, written without a card, is expected to reach less of its own."""
    tiles = [-(-n // HOPPER_PASSING) for n in lengths]
    scores = sum(n * (n + 1) // 2 for n in tiles) * HOPPER_PASSING**2 * heads
    return Work(
        bytes=2 * 10 * sum(lengths) * heads * dim,
        products=14 * dim * scores,
        exps=2 * scores,
        launches=2,
        reach=0.6 if dim > 64 else 0.48,
    )


def attention_backward(lengths: list[int], heads: int, dim: int) -> Work:
    """The scores are computed by two kernels, so 14 D flops and two exponentials a pair; 10 D are what is counted
    as useful. Plain Triton is published at about 0.3 of a large product here."""
    scores = pairs(lengths) * heads
    return Work(
        bytes=2 * 10 * sum(lengths) * heads * dim,
        products=14 * dim * scores,
        exps=2 * scores,
        launches=3,
        reach=0.5,
        overlaps=False,
    )


def decode_attention(contexts: list[int], kv_heads: int, dim: int) -> Work:
    """Keys and values are read once. At D = 128 a page of one kv head is 2,500 clocks of an SM's share of the
    bandwidth, and by the machine code 1,100 clocks of issue: bound by memory, with little to spare."""
    return Work(bytes=2 * 2 * sum(contexts) * kv_heads * dim, launches=2, reach=0.75)


def decode_step(c: "ModelConfig", contexts: list[int], persistent: bool = False) -> Work:
    """One token of each request: all weights, keys and values once. persistent: by the kernel that stays on the card.

    Captured, layer_launches() a layer and 7 beside. One costs 1.3 us between kernels (published for H100) and about 2
    us in which memory idles while a kernel fills and drains: so a 1.2B model of 16 layers, by 8 launches each, comes
    out at the 1.4 ms a token that engines with graphs are published at. The kernel that stays has 5 barriers a layer
    instead, each with a fill and drain of its own, and 5 launches beside it; its warps read a row of weights at a
    time, which is expected to reach less of the bandwidth.
    """
    batch, matrices = len(contexts), c.layers * layer_numbers(c) + c.vocab_size * c.hidden_size
    cache = 2 * sum(contexts) * c.layers * c.kv_heads * c.head_dim
    return Work(
        bytes=2 * (matrices + cache),
        products=2.0 * batch * matrices + 4.0 * sum(contexts) * c.layers * c.heads * c.head_dim,
        launches=1,
        nodes=5 if persistent else layer_launches(c, batch) * c.layers + 7,
        barriers=5 * c.layers if persistent else 0,
        reach=0.75 if persistent else 0.9,
    )


def layer_launches(c: "ModelConfig", batch: int) -> float:
    """Of a captured layer: rotation into pages, attention, its fold, output, down; and two norms, each a launch before
    its product, or part of it where the rows are few (the bounds are those of kernels/linear/triton.py). Then it is
    counted as half a launch: rows are read and added up before the first weight is multiplied."""

    def normalises(outputs: int, columns: int) -> bool:
        held = 1 << (batch - 1).bit_length() << (c.hidden_size - 1).bit_length()
        return held <= 8192 and -(-outputs // columns) * batch * c.hidden_size <= 1 << 20

    products = ((c.heads + 2 * c.kv_heads) * c.head_dim, 32), (c.intermediate_size, 16)
    return 5 + sum(1.5 if normalises(*product) else 2 for product in products)


def layer_numbers(c: "ModelConfig") -> int:
    """Numbers in one layer's matrices."""
    attention = (2 * c.heads + 2 * c.kv_heads) * c.head_dim
    return c.hidden_size * (attention + 3 * c.intermediate_size)


def one_after_another(steps: list[Work]) -> Work:
    """Steps of one kind that wait for each other: their sums."""
    names = ("bytes", "products", "launches", "nodes", "barriers")
    return replace(steps[0], **{name: sum(getattr(step, name) for step in steps) for name in names})


def quantized_product(m: int, n: int, k: int, bits: int, minimum: bool) -> Work:
    """Codes and scales once. Few rows in 4 bits wait for the issue of instructions, by the machine code at 0.6 of the
    bandwidth; with many, each block of 32 products costs an output three instructions outside of the tensor cores."""
    weights = n * k * (bits + (1.0 if minimum else 0.5)) / 8
    many = m > 64
    return Work(
        bytes=weights + m * k * 3 + 2 * m * n,
        products=1.0 * m * n * k,  # whole numbers run at twice the rate of bf16
        instructions=3.0 * m * n * k / 32 if many else 0.0,
        launches=2 if many else 3,
        reach=0.6 if many or bits == 4 else 0.75,
    )


def streaming(bytes: float, exps: float = 0.0, launches: int = 1) -> Work:
    """A kernel that reads and writes once."""
    return Work(bytes=bytes, exps=exps, launches=launches)


def product(m: int, n: int, k: int) -> Work:
    """x (m, k) by weight (n, k): Triton's pipelined loop is published at 0.8 to 0.9 of cuBLAS."""
    return Work(bytes=2 * (m * k + n * k + m * n), products=2.0 * m * n * k, reach=0.8)


HOPPER_TILE = (128, 256, 64)  # rows, columns, and K of a stage, of csrc/cuda/product_hopper.cuh
HOPPER_SMS = 132


def product_on_hopper(m: int, n: int, k: int, idle: int = 96) -> Work:
    """out (m, n) over k by a kernel of Hopper's own engines. All SMs take a tile at a time, whole ones, the last turn
    too; a tile's results leave while nothing multiplies, as long as `idle` of K take: 96, about 1,500 clocks. Kernels
    of this plan are published at what cuBLAS reaches, by hands that could measure; written without a card, this one is
    expected to reach less."""
    rows, columns, stage = HOPPER_TILE
    turns = -(-(-(-m // rows) * -(-n // columns)) // HOPPER_SMS)
    return Work(
        bytes=2 * (m * k + n * k + m * n),
        products=2.0 * turns * HOPPER_SMS * rows * columns * (-(-k // stage) * stage + idle),
        reach=0.9,
    )


def linear_backward_on_hopper(m: int, n: int, k: int) -> Work:
    """dx (m, k) over n, then dW (n, k) over m."""
    return one_after_another([product_on_hopper(m, k, n), product_on_hopper(n, k, m)])


def cross_entropy(tokens: int, channels: int, vocabulary: int) -> Work:
    """Forward and backward with the logits computed twice: 8 T C V flops; each chunk's gradient is written once and
    read twice."""
    logits = tokens * vocabulary
    return Work(
        bytes=2 * 3 * logits + 12 * vocabulary * channels,
        products=8.0 * logits * channels,
        exps=2 * logits,
        launches=2 + 3 * -(-tokens // 1024),
        reach=0.75,
    )


def cross_entropy_on_hopper(tokens: int, channels: int, vocabulary: int) -> Work:
    """The same 8 T C V flops as products of Hopper's own engines, gradients of 4,096 tokens at a time. Nothing
    multiplies while a tile's 32,768 exponentials are computed: 2,048 clocks of their unit, and as many again of other
    instructions."""
    exponentials = 256  # such clocks, in units of K
    parts = [product_on_hopper(tokens, vocabulary, channels, exponentials)]
    for first in range(0, tokens, 4096):
        rows = min(4096, tokens - first)
        share = product_on_hopper(vocabulary, channels, rows)
        parts += [
            product_on_hopper(rows, vocabulary, channels, exponentials),
            product_on_hopper(rows, channels, vocabulary),
            replace(share, bytes=share.bytes + 6 * vocabulary * channels),  # added to, in float32
        ]
    return one_after_another(parts)


def muon(shapes: list[tuple[int, int]]) -> Work:
    """Five iterations of 3 n^2 m + n^3 flops, each as three products of tf32, which run at half of bf16's rate."""
    flops = sum(3.0 * min(s) ** 2 * max(s) + min(s) ** 3 for s in shapes)
    numbers = sum(a * b for a, b in shapes)
    return Work(bytes=4 * 40 * numbers, products=5 * flops * 3 * 2, launches=18, reach=0.4)


def encoding(text: int, pieces: int, merged: int) -> Work:
    """BPE of so many bytes, of whose pieces `merged` are neither a token nor known.

    Bytes: the text twice, a bit for each byte of it six times: 2.75 a byte; a word of 4 written and read twice, 1.1
    ids: 16.4 a piece. Instructions, read off the source: 135 a byte to see where pieces begin and to list these
    places; 1,200 a piece to cut, hash, compare, count and copy it, the longest of 32 counting for each; 630 on 16
    lanes to merge one of about five merges, a quarter more as two share a warp and the longer one counts. Launches:
    zeros, checks, starts, look-up, merges, counts, the copy that the host waits for, ids, and as much again as one
    for that wait. Nothing like it is published, so the share reached is a guess.
    """
    return Work(
        bytes=2.75 * text + 16.4 * pieces,
        instructions=135 * text + 1200 * pieces + 1.25 * 16 * 630 * merged,
        launches=9,
        reach=0.4,
    )
