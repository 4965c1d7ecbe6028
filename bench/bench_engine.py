"""The engine beside transformers' generate, on the same weights: decoding at batch 1 and 32, and prefill.

Two small models in both types, and in bfloat16 the 121M parameters that llama.cpp and CTranslate2 are given too.
Greedy on random weights. Equality first: each id we chose must be the peer's own choice in the same context,
or within rounding of it (a tie broken otherwise leads two greedy answers apart for good). A row's time is of
one whole call: 64 tokens after a prompt of 16, or the first token after one of 512. Prompts differ from call
to call, so that the prefix cache gives nothing.
"""

import itertools
import warnings

import pytest
import torch
from pyengine.kernels import _native

from bench.bench_gguf import SHAPES, decoding_reads, tell
from pyengine.engine import Engine, SamplingParams
from pyengine.model import ModelConfig, Transformer, save

LARGE = "121M"
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.06}  # of a logit
SIZES = {
    "1.3M (4 x 128)": ModelConfig.from_depth(4, vocab_size=2048, max_position_embeddings=1024),
    "4.7M (4 x 256)": ModelConfig.from_depth(
        4, vocab_size=2048, hidden_size=256, max_position_embeddings=1024
    ),
    LARGE: ModelConfig(**SHAPES[LARGE], head_dim=64, qk_norm=False, max_position_embeddings=1024),
}
GOALS = {"decode B 1": 5, "decode B 32": 5, "prefill 512": 1}
LARGE_GOALS = {"decode B 1": 6, "decode B 32": 3.7, "prefill 512": 1.7}


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module", params=SIZES, ids=["4x128", "4x256", LARGE])
def pair(request, dtype, tmp_path_factory):
    """(name, our engine, transformers' model) on the same weights."""
    if request.config.getoption("--quick") and (request.param, dtype) != (next(iter(SIZES)), torch.float32):
        pytest.skip("--quick measures the smallest model in float32")
    if request.param == LARGE and dtype != torch.bfloat16:
        pytest.skip("measured in bfloat16")
    transformers = pytest.importorskip("transformers")
    warnings.filterwarnings("ignore", module="transformers")
    model = Transformer(SIZES[request.param], seed=0, dtype=dtype)
    folder = tmp_path_factory.mktemp("model")
    save(model, folder)
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    name = f"{request.param} {_native.SUFFIX[dtype]}"
    return name, Engine(model, max_batch=32, step_tokens=1024), peer


def compare(paired, pair, what, batch, prompt, new):
    name, engine, peer = pair
    salts = itertools.count()
    goal = (LARGE_GOALS if name.startswith(LARGE) else GOALS)[what]

    def prompts(salt):
        make = torch.Generator().manual_seed(salt)
        return torch.randint(0, engine.model.config.vocab_size, (batch, prompt), generator=make).tolist()

    def ours(salt=None):
        asked = prompts(next(salts) if salt is None else salt)
        return engine.generate(asked, SamplingParams(max_tokens=new, temperature=0, scored=False))

    @torch.no_grad()
    def theirs():
        ids = torch.tensor(prompts(next(salts)))
        return peer.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)

    @torch.no_grad()
    def equal():
        answers = ours(salt=0)
        ids = torch.tensor([[*a.prompt, *a.ids] for a in answers])
        logits = peer(ids).logits.float()[:, prompt - 1 : -1]
        chosen = logits.gather(2, ids[:, prompt:, None])[:, :, 0]
        return bool((logits.amax(2) - chosen <= TOLERANCE[peer.dtype]).all())

    row = paired(
        f"{what} {name}", ours, theirs, "transformers generate", equal=equal,
        reads=decoding_reads(engine, batch, new), goal=goal, rounds=5,
    )  # fmt: skip
    tell(row, "transformers", batch * (new if new > 1 else prompt))


@pytest.mark.parametrize("batch", [1, 32])
def test_decode(paired, pair, batch):
    compare(paired, pair, f"decode B {batch}", batch, prompt=16, new=64)


def test_prefill(paired, pair):
    compare(paired, pair, "prefill 512", 1, prompt=512, new=1)
