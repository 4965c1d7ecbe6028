"""The engine's decode step on the Triton backends: what it answers, what it launches, and that it never waits."""

from importlib import import_module

import pytest
import torch
from pyengine.kernels import use_backend
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from pyengine.kernels._capture import _HARMLESS  # noqa: E402

from pyengine.engine import Engine, SamplingParams  # noqa: E402
from pyengine.engine.step import ModelRunner  # noqa: E402
from pyengine.model import ModelConfig, Transformer, gguf  # noqa: E402
from tests.conftest import INTERPRETED  # noqa: E402
from tests.engine.test_graph import StandIn  # noqa: E402

CONFIG = ModelConfig(
    vocab_size=97, hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate_size=48, qk_norm=True,
    max_position_embeddings=1024,
)  # fmt: skip
LAYER = [
    "linear_normed",
    "rope_pages",
    "attention_paged",
    "fold_spans",
    "linear_fwd",
    "linear_normed",
    "linear_fwd",
]
MANY = ["rmsnorm_fwd", "linear_fwd"]  # where too many rows are to be normalised for every program to do it
HEAD = ["rmsnorm_fwd", "linear_fwd", "uniform", "sample_choose", "sample_tiles", "sample_merge"]


def answers(backend: str, graphs, file=None, kept="auto") -> list[tuple[list[int], list[float]]]:
    """Of a model, or of the same in the 4 and 8 bits of a file; its last layers' widths leave some of it whole."""
    model = Transformer(CONFIG, seed=1)
    with torch.no_grad():
        model.embedding.mul_(6)
    long = kept == "auto" and not file  # one variant crosses a page: the interpreter is slow
    prompts = [[5], [7, 8, 9], [11] * (70 if long else 2)]
    with use_backend(backend):
        if file:
            gguf.save(model, file, "Q4_1")
            model = gguf.load(file)
        runner = ModelRunner(model, 3, 96, kv_dtype=kept, graphs=graphs)
        engine = Engine(model, runner=runner, max_batch=3, step_tokens=96)
        found = engine.generate(prompts, SamplingParams(max_tokens=4, temperature=0.0))
    return [(answer.ids, answer.logprobs) for answer in found]


@pytest.mark.skipif(not INTERPRETED, reason="needs Triton's interpreter")
@pytest.mark.parametrize("quantised, kept", [(False, "auto"), (True, "auto"), (False, "int8")])
def test_decodes_as_the_reference_does(quantised, kept, tmp_path):
    """Prompts, then captured steps whose inputs are staged: all of the road to a card but the card."""
    graphs, file = StandIn(), tmp_path / "model.gguf" if quantised else None
    ours, reference = (
        answers(backend, stand_in, file, kept)
        for backend, stand_in in (("triton", graphs), ("reference", StandIn()))
    )
    assert sum(replay.replays for replay in graphs.captured) >= 2
    assert [ids for ids, _ in ours] == [ids for ids, _ in reference]
    bound = 1e-2 if quantised else 1e-4  # what such a model does not quantise is bfloat16
    for (_, a), (_, b) in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=bound, atol=bound)


class Watch(TorchDispatchMode):
    """Notes what torch itself computes: in a step on a GPU each would be a launch, and some would wait."""

    def __init__(self):
        super().__init__()
        self.computed: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name not in _HARMLESS:
            self.computed.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.skipif(INTERPRETED, reason="launches are recorded where the compiler makes them")
def test_a_decode_step_is_our_launches_and_waits_for_nothing(monkeypatch):
    """Launches are recorded, not made: what is left is Python, and torch's own operators if there are any."""
    import_module("tests.triton_proof.calls")  # all backends, while they are the compiler's
    from tests.triton_proof import recording

    monkeypatch.setenv("TRITON_INTERPRET", "1")  # lets the backend take CPU tensors
    monkeypatch.setattr(import_module("pyengine.kernels.rope.triton"), "capturing", lambda tensor: True)
    model = Transformer(CONFIG, dtype=torch.bfloat16)
    with use_backend("triton"), recording() as launches, Watch() as watch:
        runner = ModelRunner(model, 4, 16, graphs=StandIn())
        watch.computed.clear()
        runner._compute(4, 4, 4, "scores")
        before = len(launches)
        runner._compute(4, 4, 4, "ids")
    assert watch.computed == []
    names = [launch.kernel.__name__.removesuffix("_kernel") for launch in launches]
    scored = ["embedding_fwd", *LAYER * CONFIG.layers, *HEAD]
    assert names[:before] == scored
    assert names[before:] == [name for name in scored if name not in ("sample_tiles", "sample_merge")]
    monkeypatch.setattr(import_module("pyengine.kernels.linear.triton"), "AGAIN", 0)
    with use_backend("triton"), recording() as launches:
        runner._compute(4, 4, 4, "ids")
    assert [launch.kernel.__name__.removesuffix("_kernel") for launch in launches[1:11]] == [
        name for step in LAYER + LAYER[:1] for name in (MANY if step == "linear_normed" else [step])
    ][:10]
