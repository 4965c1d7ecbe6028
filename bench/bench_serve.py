"""The server beside llama.cpp's own, on the same GGUF file: 1, 8 and 32 answers streamed at once; and a crowd.

Each server is a process of its own with as many threads as the other; only one is asked at a time, in turns, and both
get the same prompts, new ones in every round. Equality first: what ours streams must be what the engine says alone,
and theirs must give as many tokens (bench_gguf compares the logits). Their server: PYENGINE_LLAMA_SERVER, or
llama-server on the path. With --cpu each has one thread, and the ratio is of the servers' processor time.
"""

import itertools
import statistics

import pytest
from pyengine.kernels import _native

from bench.bench_gguf import REAL, real_model
from bench.crowd import crowd_on
from bench.servers import Server, free_port, llama_server, streams
from pyengine.engine import Engine, SamplingParams
from pyengine.serve import TextFormat

NEW, CONTEXT, MOST = 64, 512, 32
PLACES = ["a harbour", "a bakery", "an old library", "the desert", "a railway station"]


@pytest.fixture(scope="module")
def model():
    path = real_model()
    if path is None:
        pytest.skip(f"no {REAL}: see scripts/fetch_real.sh")
    return path


@pytest.fixture(scope="module")
def servers(model, request):
    """(ours, llama.cpp's)."""
    binary = llama_server()
    if binary is None:
        pytest.skip("no llama-server: name it in PYENGINE_LLAMA_SERVER")
    threads = _native.threads()
    ours = Server.ours(model, free_port(), "--max-batch", str(MOST), threads=threads)
    with ours, Server.llama_cpp(binary, model, free_port(), MOST, CONTEXT, threads) as theirs:
        yield ours, theirs


def prompts(count: int, salt: int) -> list[str]:
    return [
        f"Story {salt}, chapter {i + 1}. It was a quiet evening in {PLACES[(salt + i) % len(PLACES)]} when the old man "
        f"who had kept the keys for {20 + i} years heard a knock, put down his book and"
        for i in range(count)
    ]


def bodies(count: int, salt: int) -> list[dict]:
    options = {"max_tokens": NEW, "temperature": 0, "ignore_eos": True}
    return [{"prompt": text, **options} for text in prompts(count, salt)]


@pytest.mark.parametrize("count", [1, 8, MOST])
def test_streams(paired, servers, model, count, request):
    salts, firsts = itertools.count(1), {}

    def ask(server, salt):
        answers = streams(server, bodies(count, salt))
        assert all(answer.tokens == NEW for answer in answers), "an answer ended early"
        firsts.setdefault(server, []).append(statistics.median(answer.first for answer in answers))
        return [answer.text for answer in answers]

    ours, theirs = servers

    def equal():
        engine = Engine(model, max_batch=1, pages=2 * CONTEXT // 64)
        some = slice(None, None, 8)
        texts = [{"role": "user", "content": text} for text in prompts(count, 0)[some]]
        asked = [TextFormat(engine.tokenizer).prompt([text]) for text in texts]
        alone = engine.generate(asked, SamplingParams(max_tokens=NEW, temperature=0))
        return ask(ours, 0)[some] == [engine.tokenizer.decode(a.ids, skip_special=True) for a in alone]

    what = f"serve {count} stream{'s' * (count > 1)} SmolLM2 Q4_1"
    row = paired(
        what, lambda: ask(ours, next(salts)), lambda: ask(theirs, next(salts)), "llama.cpp's server",
        equal=equal, goal=1, rounds=5,
        clocks=[one.processor_seconds for one in servers] if request.config.getoption("--cpu") else None,
    )  # fmt: skip
    for name, server, seconds in (("ours", ours, row["ours"]), ("llama.cpp's", theirs, row["peer"])):
        first = statistics.median(firsts[server])
        print(f"{what}, {name}: {count * NEW / seconds:.0f} tok/s, first after {1e3 * first:.0f} ms")


def test_a_crowd(model, quick):
    """Two minutes of 64 clients."""
    print(f"\n{crowd_on(model, 10 if quick else 120, 64)}")
