"""Models in GGUF files: logits equal transformers' of the same numbers, for every architecture and kind."""

import numpy as np
import pytest
import torch

from pyengine import gguf
from pyengine.errors import UserError
from pyengine.model import QuantizedTransformer, load
from pyengine.model.gguf import name_of

from .test_hf import logits

peer = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

SIZES = dict(
    vocab_size=97, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.1, max_position_embeddings=512,
)  # fmt: skip
LLAMA3 = dict(
    rope_type="llama3", rope_theta=10_000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=64,
)  # fmt: skip


def new(family: str, **more):
    """A random model of transformers, with biases and norms away from zeros and ones."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES, **{"tie_word_embeddings": False, **more})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def write(path, model, kind: str, divisors=None, others: dict[str, str] | None = None) -> None:
    """Write a model as the format's own tools do, with the gguf package; then give it the stored numbers.

    Matrices are of `kind`, but those whose name has a part in `others` of the kind given there."""
    c = model.config
    family = c.model_type
    writer = peer.GGUFWriter(path, family)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(c.head_dim if family == "qwen3" else c.hidden_size // c.num_attention_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", divisors.astype(np.float32))
    stored = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        x = tensor.numpy()
        heads = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}.get(name.split(".")[-2])
        pairs = heads is not None and family == "llama"
        if pairs:
            x = x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        own = next((other for part, other in (others or {}).items() if part in name), kind)
        theirs = peer.GGMLQuantizationType[own if x.ndim == 2 else "F32"]
        raw = blocks(x, theirs)
        writer.add_tensor(name_of(name), raw, raw_dtype=theirs)
        x = peer.quants.dequantize(raw, theirs).reshape(x.shape)
        if pairs:
            x = x.reshape(heads, -1, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        stored[name] = torch.from_numpy(np.array(x))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model.load_state_dict(stored, strict=False)


def blocks(x: np.ndarray, kind) -> np.ndarray:
    """The package's bytes; where it cannot quantise, random codes under scales that suit x."""
    try:
        return peer.quants.quantize(np.ascontiguousarray(x), kind)
    except NotImplementedError:
        make = np.random.default_rng(x.size)
        size = gguf.KINDS[kind.name].size
        raw = make.integers(0, 256, (x.size // 256, size), np.uint8)
        for at, of in {"Q4_K": ((0, 63 * 8), (2, 63 * 4)), "Q6_K": ((208, 127 * 16),)}[kind.name]:
            scale = make.uniform(0.5, 1, len(raw)).astype(np.float32) * x.std() / of
            raw[:, at : at + 2] = scale.astype("<f2")[:, None].view(np.uint8)
        return raw.reshape(len(x), -1)


@torch.no_grad()
def expected(model, ids):
    return model(ids[None]).logits[0]


def ids(count: int = 40) -> torch.Tensor:
    return torch.randint(0, 97, (count,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", gguf.KINDS)
@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
def test_logits_are_those_of_transformers(tmp_path, family, kind):
    model = new(family, **({"head_dim": 64} if family == "Qwen3" else {}))
    write(tmp_path / "m.gguf", model, kind)
    ours, theirs = logits(load(tmp_path / "m.gguf", torch.float32), ids()), expected(model, ids())
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("kind", [kind for kind in gguf.KINDS if kind.startswith("Q")])
def test_matrices_stay_quantised(tmp_path, kind):
    """Their numbers are the file's; what remains is that rows of x are rounded to 8 bits."""
    model = new("Llama")
    write(tmp_path / "m.gguf", model, kind)
    ours, theirs = load(tmp_path / "m.gguf"), expected(model, ids())
    assert isinstance(ours, QuantizedTransformer)
    assert distance(logits(ours, ids()), theirs) <= 0.05


def test_a_file_of_several_kinds(tmp_path):
    """As llama.cpp's "Q4_K_M" mixes them."""
    model = new("Qwen2")
    write(tmp_path / "m.gguf", model, "Q4_K", others={"v_proj": "Q6_K", "down_proj": "Q6_K", "lm_head": "Q6_K",
                                                      "embed": "Q8_0", "o_proj": "F16"})  # fmt: skip
    theirs = expected(model, ids())
    assert distance(logits(load(tmp_path / "m.gguf"), ids()), theirs) <= 0.05
    assert distance(logits(load(tmp_path / "m.gguf", torch.float32), ids()), theirs) <= 1e-5


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def test_tied_embeddings_and_llama3_frequencies(tmp_path):
    model = new("Llama", tie_word_embeddings=True, rope_parameters=LLAMA3)
    inverse = model.model.rotary_emb.inv_freq.numpy()
    plain = 10_000.0 ** (-np.arange(0, 64, 2) / 64)
    write(tmp_path / "m.gguf", model, "F32", divisors=plain / inverse)
    ours = load(tmp_path / "m.gguf")
    assert ours.config.tie_embeddings and len(ours.config.rope_divisors) == 32
    theirs = expected(model, ids(200))
    assert (logits(ours, ids(200)) - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    model.save_pretrained(tmp_path / "hf")
    assert (logits(load(tmp_path / "hf"), ids(200)) - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_bf16_stays_bf16(tmp_path):
    write(tmp_path / "m.gguf", new("Llama"), "BF16")
    assert load(tmp_path / "m.gguf").dtype == torch.bfloat16
    write(tmp_path / "h.gguf", new("Llama"), "F16")
    assert load(tmp_path / "h.gguf").dtype == torch.float32


def harmed(path, *edits):
    """The file with bytes replaced, lengths kept."""
    raw = path.read_bytes()
    for old, fresh in edits:
        assert len(old) == len(fresh) and raw.count(old)
        raw = raw.replace(old, fresh)
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    "edit, told",
    [
        ((b"blk.1.ffn_up.weight", b"blk.1.ffn_ap.weight"), "blk.1.ffn_up.weight is missing"),
        ((b"llama.block_count", b"llama.black_count"), "llama.block_count is missing"),
        ((b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0gemma"), "architecture 'gemma' is none of"),
        (
            (b"llama.block_count\x04\0\0\0\x02", b"llama.block_count\x04\0\0\0\x01"),
            "has no place in this architecture",
        ),
        (
            (b"llama.embedding_length\x04\0\0\0\0\x01", b"llama.embedding_length\x04\0\0\0\0\x02"),
            "sizes ask for|fit together",
        ),
        (
            (b"llama.attention.head_count\x04\0\0\0\x04", b"llama.attention.head_count\x04\0\0\0\0"),
            "fit together",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, edit, told):
    write(tmp_path / "m.gguf", new("Llama"), "F32")
    with pytest.raises(UserError, match=told) as caught:
        load(harmed(tmp_path / "m.gguf", edit))
    assert str(tmp_path) in str(caught.value)
