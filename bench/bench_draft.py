"""Guessing ahead by prompt look-up beside plain decoding, on SmolLM2-135M-Instruct: work that repeats its prompt.

Equality first: the answers must be the same ids. Greedy, batch 1, the whole call with its prompt: a summary of a
page, docstrings for a program, and for comparison an answer that has nothing to repeat.
"""

import pytest

from bench.bench_gguf import REAL, real_model
from pyengine.engine import Engine, SamplingParams
from pyengine.serve import open_model

PAGE = """The lighthouse at Orrin Point was built in 1841 by the engineer Maren Holt, after three ships of the herring
fleet had been lost on the reef in one winter. Its tower is 38 metres high and made of grey granite, which was brought
by sea from the quarries at Dunmore. For ninety years it burned oil; in 1931 an electric lamp took its place, and in
1987 the last keeper, Tom Arkwright, left the island. Since then the light has been watched from the harbour office at
Kelso, 40 kilometres away. The keeper's house is a museum now, open from May to September, and shows the first lens,
which weighs two tonnes and was ground in Paris. Every year some 12,000 people visit Orrin Point, most of them by the
small ferry that leaves Kelso at nine in the morning and comes back at four in the afternoon."""
PROGRAM = """def read_rows(path):
    rows = []
    with open(path) as file:
        for line in file:
            rows.append([float(field) for field in line.split(",")])
    return rows

def column_means(rows):
    sums = [0.0] * len(rows[0])
    for row in rows:
        for i, value in enumerate(row):
            sums[i] += value
    return [total / len(rows) for total in sums]
"""
WORK = {
    "summary": (f"Summarise this text in a few sentences.\n\n{PAGE}", 1.2),
    "code": (f"Write this program again with a docstring in each function.\n\n```python\n{PROGRAM}```", 1.2),
    "nothing to repeat": ("Write a short poem about the sea.", None),
}


@pytest.fixture(scope="module")
def engines():
    """(the model as served, an engine that guesses, one that does not)."""
    path = real_model()
    if path is None:
        pytest.skip(f"no {REAL}: see scripts/fetch_real.sh")
    served = open_model(path, max_batch=1)
    return served, *(Engine(served.engine.model, max_batch=1, pages=40, draft=draft) for draft in (7, 0))


@pytest.mark.parametrize("work", WORK)
def test_guessing(paired, engines, work):
    served, guessing, plain = engines
    text, goal = WORK[work]
    prompt = served.format.prompt([{"role": "user", "content": text}])
    params = SamplingParams(temperature=0, max_tokens=160, stop=served.format.stop, scored=False)

    def ours():
        return guessing.generate([prompt], params)[0].ids

    def theirs():
        return plain.generate([prompt], params)[0].ids

    before = guessing.stats.steps, guessing.stats.sampled
    same = ours() == theirs()
    steps, tokens = guessing.stats.steps - before[0], guessing.stats.sampled - before[1]
    paired(f"prompt look-up, {work}", ours, theirs, "without", equal=lambda: same, goal=goal, rounds=5)
    print(f"prompt look-up, {work}: {steps} steps for {tokens} tokens")
