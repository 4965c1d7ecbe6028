"""GGUF files: a header, named values, and tensors in blocks of quantised numbers. Reading, decoding, writing.

    file = read("model.gguf")
    file.values["general.architecture"]                    # plain Python values
    tensor = file.tensors["token_embd.weight"]
    tensor.shape, tensor.kind.name, tensor.blocks()        # (V, C), "Q4_1", the codes and scales
    tensor.numbers()                                       # float32, every block decoded

The file is mapped, not read: a tensor's bytes are touched when they are asked for. Everything a file says is
checked before it is used, so a damaged or hostile one ends in a UserError with one sentence. Layout, all little
endian:

    "GGUF" | version u32 | tensors u64 | values u64 | values | tensor heads | padding | tensor bytes
    value: name, type u32, content       tensor head: name, dimensions u32, sizes u64 (innermost first), kind u32,
    text: length u64, UTF-8                           offset u64 (from where the tensor bytes begin, aligned)

A block holds the codes of 16 to 256 neighbours of a row and what turns them into numbers:
number = scale (code - zero) + minimum, the scale and the minimum for each 32 (Q6_K: 16) numbers.
"""

import mmap
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UserError
from .files import atomic_write

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
MOST_DIMENSIONS = 4
# Types of values: number types by code, then bool, text and list.
NUMBERS = {
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
BOOL, TEXT, LIST = 7, 8, 9


@dataclass(frozen=True)
class Blocks:
    """Quantised rows: number = scale (code - zero) + minimum. R rows of K codes, in groups of G neighbours."""

    codes: np.ndarray  # (R, K) uint8
    zero: int
    scale: np.ndarray  # (R, K / G), float16 where the file's own scales are, else float32
    minimum: np.ndarray | None  # like scale; None: 0

    @property
    def group(self) -> int:
        return self.codes.shape[1] // self.scale.shape[1]

    def numbers(self) -> np.ndarray:
        """(R, K) float32."""
        rows, k = self.codes.shape
        codes = (self.codes.astype(np.int16) - self.zero).astype(np.float32).reshape(rows, -1, self.group)
        out = codes * self.scale.astype(np.float32)[..., None]
        if self.minimum is not None:
            out += self.minimum.astype(np.float32)[..., None]
        return out.reshape(rows, k)


# Decoders: bytes (blocks, size) -> codes (blocks, numbers), scales (blocks, groups), minima alike or None.
Decoded = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def _half(raw: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(raw).view("<f2")


def _nibbles(raw: np.ndarray) -> np.ndarray:
    """The low halves of all bytes of a row, then the high ones."""
    return np.concatenate([raw & 15, raw >> 4], axis=-1)


def _q8_0(raw: np.ndarray) -> Decoded:
    return raw[:, 2:] ^ 0x80, _half(raw[:, :2]), None


def _q4_0(raw: np.ndarray) -> Decoded:
    return _nibbles(raw[:, 2:]), _half(raw[:, :2]), None


def _q4_1(raw: np.ndarray) -> Decoded:
    return _nibbles(raw[:, 4:]), _half(raw[:, :2]), _half(raw[:, 2:4])


def _q4_k(raw: np.ndarray) -> Decoded:
    """256 numbers: scales and minima of 6 bits for each 32, times two halves for the whole block."""
    whole = _half(raw[:, :4]).astype(np.float32)
    low, mid, high = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    scale = np.concatenate([low & 63, (high & 15) | (low >> 6 << 4)], axis=1)
    minimum = np.concatenate([mid & 63, (high >> 4) | (mid >> 6 << 4)], axis=1)
    codes = _nibbles(raw[:, 16:].reshape(-1, 4, 32)).reshape(-1, 256)
    return codes, whole[:, :1] * scale, -(whole[:, 1:] * minimum)


def _q6_k(raw: np.ndarray) -> Decoded:
    """256 numbers in two halves: four low bits, two high bits, a signed scale for each 16, one for all."""
    low = raw[:, :128].reshape(-1, 2, 2, 32)
    low = np.concatenate([low & 15, low >> 4], axis=2)  # (blocks, half, quarter, 32)
    high = raw[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    scale = np.ascontiguousarray(raw[:, 192:208]).view(np.int8).astype(np.float32)
    return (low | high << 4).reshape(-1, 256), scale * _half(raw[:, 208:]).astype(np.float32), None


@dataclass(frozen=True)
class Kind:
    """How a tensor is stored: `size` bytes for each `numbers` neighbours of a row."""

    code: int
    name: str
    numbers: int
    size: int
    dtype: str = ""  # of plain numbers
    decode: Callable[[np.ndarray], Decoded] | None = None
    zero: int = 0


KINDS = {
    kind.name: kind
    for kind in (
        Kind(0, "F32", 1, 4, "<f4"),
        Kind(1, "F16", 1, 2, "<f2"),
        Kind(30, "BF16", 1, 2, "<u2"),
        Kind(2, "Q4_0", 32, 18, decode=_q4_0, zero=8),
        Kind(3, "Q4_1", 32, 20, decode=_q4_1),
        Kind(8, "Q8_0", 32, 34, decode=_q8_0, zero=128),
        Kind(12, "Q4_K", 256, 144, decode=_q4_k),
        Kind(14, "Q6_K", 256, 210, decode=_q6_k, zero=32),
    )
}
_BY_CODE = {kind.code: kind for kind in KINDS.values()}
_FOREIGN = {6: "Q5_0", 7: "Q5_1", 10: "Q2_K", 11: "Q3_K", 13: "Q5_K", 15: "Q8_K"}


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file; shape is outermost first, as in torch."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    raw: np.ndarray  # (blocks, kind.size) uint8, mapped

    def blocks(self) -> Blocks:
        """Codes and scales of a quantised matrix."""
        assert self.kind.decode is not None
        codes, scale, minimum = self.kind.decode(self.raw)
        rows = (-1, self.shape[-1])
        groups = (len(codes) * self.kind.numbers // self.shape[-1], -1)
        return Blocks(
            codes.reshape(rows),
            self.kind.zero,
            scale.reshape(groups),
            None if minimum is None else minimum.reshape(groups),
        )

    def numbers(self) -> np.ndarray:
        """The tensor as float32."""
        if self.kind.decode is not None:
            return self.blocks().numbers().reshape(self.shape)
        plain = self.raw.reshape(-1).view(self.kind.dtype).reshape(self.shape)
        if self.kind.name == "BF16":
            return (plain.astype(np.uint32) << 16).view(np.float32)
        return plain.astype(np.float32)


@dataclass(frozen=True)
class File:
    """What a GGUF file holds."""

    path: Path
    values: dict[str, Any]
    tensors: dict[str, Tensor]


class _Cursor:
    """Reads forwards through mapped bytes; UserError where they end too soon."""

    def __init__(self, path: Path, data: memoryview):
        self.path, self.data, self.at = path, data, 0

    def refuse(self, what: str) -> UserError:
        return UserError(f"{self.path}: byte {self.at}: {what}; the file is damaged, fetch or write it again")

    def take(self, size: int, what: str) -> memoryview:
        if size > len(self.data) - self.at:
            raise self.refuse(f"{what} needs {size} bytes, {len(self.data) - self.at} are left")
        self.at += size
        return self.data[self.at - size : self.at]

    def unpack(self, format: str, what: str) -> Any:
        return struct.unpack(f"<{format}", self.take(struct.calcsize(f"<{format}"), what))[0]

    def text(self, what: str) -> str:
        raw = bytes(self.take(self.unpack("Q", what), what))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.refuse(f"{what} is not UTF-8") from None

    def value(self, what: str, kind: int | None = None, depth: int = 0) -> Any:
        kind = self.unpack("I", what) if kind is None else kind
        if kind in NUMBERS:
            number = np.frombuffer(self.take(np.dtype(NUMBERS[kind]).itemsize, what), NUMBERS[kind])[0]
            return (
                float(str(number)) if number.dtype.kind == "f" else number.item()
            )  # 1e-06 as it was written
        if kind == BOOL:
            return self.unpack("B", what) != 0
        if kind == TEXT:
            return self.text(what)
        if kind != LIST or depth > 2:
            raise self.refuse(f"{what} has the unknown type {kind}")
        kind, count = self.unpack("I", what), self.unpack("Q", what)
        if kind in NUMBERS:
            size = np.dtype(NUMBERS[kind]).itemsize * count
            return np.frombuffer(self.take(size, what), NUMBERS[kind]).tolist()
        if count > len(self.data) - self.at:  # each takes a byte at least
            raise self.refuse(f"{what} claims {count} entries")
        return [self.value(what, kind, depth + 1) for _ in range(count)]


def read(path: str | os.PathLike) -> File:
    """Map a GGUF file. Raises UserError for what is not one, is damaged, or holds kinds not read here."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise UserError(f"{path}: cannot be read ({error}); expected a GGUF file") from None
    cursor = _Cursor(path, data)
    if len(data) < 4 or bytes(cursor.take(4, "the magic")) != MAGIC:
        raise UserError(f"{path}: not a GGUF file: it does not begin with {MAGIC!r}")
    version = cursor.unpack("I", "the version")
    if version not in VERSIONS:
        raise UserError(f"{path}: GGUF version {version} is not read here, only {VERSIONS} (little endian)")
    tensors, count = cursor.unpack("Q", "the header"), cursor.unpack("Q", "the header")
    values: dict[str, Any] = {}
    for _ in range(count):
        name = cursor.text("the name of a value")
        if name in values:
            raise cursor.refuse(f"the value {name!r} comes twice")
        values[name] = cursor.value(name)
    if values.get("split.count", 1) > 1:
        raise UserError(f"{path}: a part of a split model; join the parts first (gguf-split --merge)")
    heads = [_head(cursor) for _ in range(tensors)]
    alignment = values.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & alignment - 1:
        raise cursor.refuse(f"general.alignment is {alignment!r}, expected a power of two")
    base = -(-cursor.at // alignment) * alignment
    found: dict[str, Tensor] = {}
    for name, shape, kind, offset in heads:
        numbers = int(np.prod(shape, dtype=object))
        end = base + offset + numbers // kind.numbers * kind.size
        if name in found or offset % alignment or end > len(data):
            why = "comes twice" if name in found else f"ends at byte {end} of {len(data)}"
            raise cursor.refuse(
                f"the tensor {name!r} {why if end > len(data) or name in found else 'is askew'}"
            )
        raw = np.frombuffer(data[base + offset : end], np.uint8).reshape(-1, kind.size)
        found[name] = Tensor(name, shape, kind, raw)
    return File(path, values, found)


def _head(cursor: _Cursor) -> tuple[str, tuple[int, ...], Kind, int]:
    name = cursor.text("the name of a tensor")
    dimensions = cursor.unpack("I", name)
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise cursor.refuse(f"the tensor {name!r} has {dimensions} dimensions")
    shape = tuple(cursor.unpack("Q", name) for _ in range(dimensions))[::-1]
    code, offset = cursor.unpack("I", name), cursor.unpack("Q", name)
    if (kind := _BY_CODE.get(code)) is None:
        known = ", ".join(KINDS)
        raise UserError(
            f"{cursor.path}: the tensor {name!r} is of kind {_FOREIGN.get(code, code)}; read here are {known}: "
            "quantise the model to one of them"
        )
    if min(shape) < 1 or shape[-1] % kind.numbers:
        raise cursor.refuse(f"the tensor {name!r} has shape {shape}, in blocks of {kind.numbers}")
    return name, shape, kind, offset


# Quantising and writing


def encode(numbers: np.ndarray, kind: Kind) -> np.ndarray:
    """The bytes (blocks, size) of float32 numbers (..., K): F32, F16, BF16, or blocks of 32 rounded to nearest.

    Q8_0: scale = largest magnitude / 127. Q4_0: the number of largest magnitude is code 0, as scale -8. Q4_1:
    the 16 codes span the block from its smallest to its largest number.
    """
    numbers = np.ascontiguousarray(numbers, np.float32)
    if kind.name == "BF16":
        bits = numbers.view(np.uint32)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        return rounded.astype("<u2").view(np.uint8).reshape(-1, 2)
    if kind.decode is None:
        return numbers.astype(kind.dtype).view(np.uint8).reshape(-1, kind.size)
    x = numbers.reshape(-1, kind.numbers)
    if kind.name == "Q8_0":
        scale = (np.abs(x).max(1, keepdims=True) / 127).astype("<f2")
        codes = np.rint(x * _inverse(scale)).clip(-127, 127).astype(np.int8)
        return np.concatenate([scale.view(np.uint8), codes.view(np.uint8)], axis=1)
    if kind.name == "Q4_0":
        far = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)
        scale = (far / -8).astype("<f2")
        head, codes = scale, np.rint(x * _inverse(scale)) + 8
    elif kind.name == "Q4_1":
        low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
        scale, minimum = ((high - low) / 15).astype("<f2"), low.astype("<f2")
        head = np.concatenate([scale, minimum], axis=1)
        codes = np.rint((x - minimum.astype(np.float32)) * _inverse(scale))
    else:
        raise ValueError(f"encode: no encoder for {kind.name}; expected F32, F16, BF16, Q8_0, Q4_0 or Q4_1")
    nibbles = codes.clip(0, 15).astype(np.uint8)
    half = kind.numbers // 2
    return np.concatenate([head.view(np.uint8), nibbles[:, :half] | nibbles[:, half:] << 4], axis=1)


def _inverse(scale: np.ndarray) -> np.ndarray:
    """1 / scale as stored, 0 where that is 0."""
    wide = scale.astype(np.float32)
    return np.divide(1, wide, out=np.zeros_like(wide), where=wide != 0)


def write(
    path: str | os.PathLike,
    values: Mapping[str, Any],
    tensors: Sequence[tuple[str, Kind, np.ndarray]],
) -> None:
    """Write a GGUF file whole or not at all.

    values: bool, int (32 bits, unsigned), float (32 bits), str, and lists of one of these (of ints: signed).
    tensors: (name, kind, float32 numbers), encoded one at a time.
    """
    with atomic_write(path, "wb") as file:
        file.write(MAGIC + struct.pack("<IQQ", VERSIONS[-1], len(tensors), len(values)))
        for name, value in values.items():
            file.write(_text(name) + _value(value))
        offset = 0
        for name, kind, numbers in tensors:
            shape = numbers.shape[::-1]
            file.write(_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind.code, offset))
            offset += _aligned(numbers.size // kind.numbers * kind.size)
        file.write(bytes(_aligned(file.tell()) - file.tell()))
        for _, kind, numbers in tensors:
            raw = encode(numbers, kind)
            file.write(raw.tobytes())
            file.write(bytes(_aligned(raw.size) - raw.size))


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _text(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    kind, raw = _typed(value, "<I", 4)
    return struct.pack("<I", kind) + raw


def _typed(value: Any, integer: str, integer_kind: int) -> tuple[int, bytes]:
    if isinstance(value, bool):
        return BOOL, struct.pack("<B", value)
    if isinstance(value, int):
        return integer_kind, struct.pack(integer, value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, str):
        return TEXT, _text(value)
    parts = [_typed(entry, "<i", 5) for entry in value]
    kinds = {kind for kind, _ in parts}
    if len(kinds) != 1:
        raise ValueError(f"a list in a GGUF file holds one type and at least one entry, got {value!r:.80}")
    return LIST, struct.pack("<IQ", kinds.pop(), len(parts)) + b"".join(raw for _, raw in parts)
