"""GGUF files: what the gguf package writes is read with equal numbers, ours is read by it, damage is named."""

import struct

import numpy as np
import pytest

from pyengine import gguf
from pyengine.errors import UserError

peer = pytest.importorskip("gguf")
KINDS = list(gguf.KINDS)
VALUES = {
    "general.architecture": "llama",
    "a.flag": True,
    "a.count": 7,
    "a.ratio": 0.5,
    "a.texts": ["", "é", "z" * 300],
    "a.numbers": [1, -2, 3],
    "a.ratios": [0.25, 4.0],
}


def numbers(rows: int, k: int, seed: int = 0) -> np.ndarray:
    make = np.random.default_rng(seed)
    x = make.standard_normal((rows, k)).astype(np.float32)
    x[0, :32] = 0  # a block whose scale is zero
    return x * make.uniform(0.01, 10, (rows, 1)).astype(np.float32)


def raw_blocks(kind: str, rows: int, k: int) -> np.ndarray:
    """Blocks of a kind: quantised where the package can, else random codes with finite scales."""
    theirs = peer.GGMLQuantizationType[kind]
    try:
        return peer.quants.quantize(numbers(rows, k), theirs)
    except NotImplementedError:
        raw = np.random.default_rng(1).integers(0, 256, (rows * k // 256, gguf.KINDS[kind].size), np.uint8)
        halves = {"Q4_K": (0, 2), "Q6_K": (208,)}[kind]
        for at in halves:
            scale = np.random.default_rng(at).uniform(-1, 1, len(raw)).astype("<f2")
            raw[:, at : at + 2] = scale[:, None].view(np.uint8)
        return raw.reshape(rows, -1)


@pytest.fixture
def written(tmp_path):
    """A file of the package with a tensor of each kind."""
    writer = peer.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    writer.add_bool("a.flag", True)
    writer.add_array("a.texts", VALUES["a.texts"])
    writer.add_array("a.numbers", VALUES["a.numbers"])
    writer.add_float64("a.wide", 0.1)
    writer.add_uint64("a.large", 1 << 40)
    for kind in KINDS:
        raw = raw_blocks(kind, 3, 512)
        writer.add_tensor(kind, raw, raw_dtype=peer.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "theirs.gguf"


def test_every_kind_is_decoded_as_the_package_does(written):
    file = gguf.read(written)
    for tensor in peer.GGUFReader(written).tensors:
        ours = file.tensors[tensor.name]
        truth = peer.quants.dequantize(tensor.data, tensor.tensor_type).reshape(3, 512)
        assert ours.shape == (3, 512) and ours.kind.name == tensor.name
        np.testing.assert_array_equal(ours.numbers(), truth)


def test_values_come_back(written, tmp_path):
    values = gguf.read(written).values
    assert values["a.flag"] is True and values["a.texts"] == VALUES["a.texts"]
    assert (values["a.wide"], values["a.large"]) == (0.1, 1 << 40)
    gguf.write(tmp_path / "ours.gguf", VALUES, [])
    assert gguf.read(tmp_path / "ours.gguf").values == VALUES
    fields = peer.GGUFReader(tmp_path / "ours.gguf").fields
    assert {name: fields[name].contents() for name in VALUES} == VALUES


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_the_package_reads_what_we_write(tmp_path, kind):
    x = numbers(5, 96)
    gguf.write(
        tmp_path / "m.gguf", VALUES, [("odd", gguf.KINDS["F32"], x[0, :5]), ("x", gguf.KINDS[kind], x)]
    )
    ours = gguf.read(tmp_path / "m.gguf").tensors["x"].numbers()
    odd, theirs = peer.GGUFReader(tmp_path / "m.gguf").tensors
    np.testing.assert_array_equal(odd.data, x[0, :5])
    np.testing.assert_array_equal(peer.quants.dequantize(theirs.data, theirs.tensor_type), ours)
    if kind in ("F32", "F16", "BF16"):
        np.testing.assert_allclose(ours, x, rtol={"F32": 0, "F16": 1e-3, "BF16": 4e-3}[kind], atol=1e-6)
    else:  # half a step of a block's grid, and the rounding of its scale
        blocks = x.reshape(5, -1, 32)
        span = {"Q8_0": np.abs(blocks).max(2) / 127, "Q4_0": np.abs(blocks).max(2) / 8}.get(
            kind, np.ptp(blocks, axis=2) / 15
        )
        error = np.abs(ours.reshape(blocks.shape) - blocks).max(2)
        assert (error <= span * (1.01 if kind == "Q4_0" else 0.51) + 1e-2 * span).all()


def test_every_truncation_is_one_sentence(written):
    whole = written.read_bytes()
    end = len(whole) - gguf.ALIGNMENT  # what is cut there may be padding
    cuts = [*range(0, 300), *range(300, end, 97), end]
    for cut in cuts:
        written.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=str(written)) as caught:
            gguf.read(written)
        assert "\n" not in str(caught.value)


def test_every_damaged_byte_is_refused_or_read(written):
    whole = written.read_bytes()
    header = whole.index(b"Q6_K") + 60
    for at in range(header):
        for value in (0, 0xFF, whole[at] ^ 1):
            damaged = bytearray(whole)
            damaged[at] = value
            written.write_bytes(damaged)
            try:
                for tensor in gguf.read(written).tensors.values():
                    assert tensor.raw.nbytes <= len(whole)
            except UserError as error:
                assert str(written) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    "content, told",
    [
        (b"PK\x03\x04 something else", "does not begin with"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), "version"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "are left"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62), "are left"),
    ],
)
def test_what_is_not_gguf_is_refused(tmp_path, content, told):
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(UserError, match=told):
        gguf.read(tmp_path / "m.gguf")


def test_other_kinds_are_named(tmp_path):
    writer = peer.GGUFWriter(tmp_path / "m.gguf", "llama")
    raw = peer.quants.quantize(numbers(2, 64), peer.GGMLQuantizationType.Q5_0)
    writer.add_tensor("x", raw, raw_dtype=peer.GGMLQuantizationType.Q5_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match="'x' is of kind Q5_0; read here are F32"):
        gguf.read(tmp_path / "m.gguf")
