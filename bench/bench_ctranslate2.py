"""The engine beside CTranslate2 on the same weights: 121M parameters, decoding at batch 32 and prefill of 512.

Equality first: the logits of a prompt, whose activations both sides round in their own way. A decode row's time is of
one whole call: 64 tokens after a prompt of 16, greedy. Kinds that CTranslate2 does not have on this processor
(bfloat16 on most) are left out.
"""

import pytest
from pyengine.kernels import _native

from bench.bench_gguf import NEW, PROMPT, SHAPES, alike, tell, turns
from pyengine.engine import Engine
from pyengine.model import ModelConfig, Transformer, load
from pyengine.model.gguf import save

KINDS = {"Q8_0": "int8", "BF16": "bfloat16"}  # ours and theirs
GOALS = {("Q8_0", NEW): 3.9, ("BF16", NEW): 2.2, ("Q8_0", 1): 2.8, ("BF16", 1): 1.7}


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """(size, kind, our engine, theirs) on the same weights."""
    peer = pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed")
    from bench.peer_ctranslate2 import Generator, convert

    kind = request.param
    if KINDS[kind] not in peer.get_supported_compute_types("cpu"):
        pytest.skip(f"CTranslate2 has no {KINDS[kind]} here")
    folder = tmp_path_factory.mktemp("ctranslate2")
    config = ModelConfig(**SHAPES["121M"], head_dim=64, qk_norm=False, max_position_embeddings=1024)
    model = Transformer(config, seed=0)
    save(model, folder / "ours.gguf", kind, head_kind=kind)
    theirs = Generator(convert(model, folder / "theirs"), KINDS[kind], _native.threads())
    return "121M", kind, Engine(load(folder / "ours.gguf"), max_batch=32, pages=74, step_tokens=1024), theirs


@pytest.mark.parametrize("what, batch, prompt, new", [("decode B 32", 32, PROMPT, NEW), ("prefill 512", 1, 512, 1)],
                         ids=["decode", "prefill"])  # fmt: skip
def test_engine(paired, pair, what, batch, prompt, new):
    size, kind, engine, peer = pair
    fresh, ours = turns(engine, batch, prompt, new)

    def theirs():
        peer.generate(fresh(), new)

    what, name = f"{what} {size} {kind}", f"ctranslate2 {KINDS[kind]}"
    row = paired(what, ours, theirs, name, equal=lambda: alike(pair), goal=GOALS[kind, new], rounds=5)
    tell(row, "ctranslate2", batch * (new if new > 1 else prompt))
