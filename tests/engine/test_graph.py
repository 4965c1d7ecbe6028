"""The engine as it runs on a GPU, on the CPU: staged inputs, steps captured by size, all but the graph itself.

A stand-in takes the graph's place. Like a graph it knows its step only, reads the inputs where they lay when it was
captured, and writes its outputs to where they were; unlike a graph it calls Python to do so.
"""

import pytest
import torch
from pyengine.kernels._graph import Graphs

from pyengine.engine import Engine, SamplingParams
from pyengine.engine.step import ModelRunner
from tests.engine.test_exact import each, make, prompts


class Replay:
    def __init__(self, step, outputs):
        self.step, self.outputs, self.replays = step, outputs, 0

    def replay(self):
        self.replays += 1
        for output, value in zip(self.outputs, self.step(), strict=True):
            output.copy_(value)


class StandIn(Graphs):
    """Captures without a GPU; `refuse` makes it fail as torch does."""

    def __init__(self, refuse=False):
        super().__init__(torch.device("cpu"))
        self.captured, self.refuse = [], refuse

    def _record(self, step):
        if self.refuse:
            raise RuntimeError("operation not permitted when stream is capturing")
        outputs = step()
        self.captured.append(Replay(step, outputs))
        return self.captured[-1], outputs


def engine(model, graphs=None, max_batch=8, **settings):
    runner = ModelRunner(model, max_batch, 64, graphs=graphs)
    return Engine(model, runner=runner, max_batch=max_batch, step_tokens=64, **settings)


def answers(found):
    return [(answer.ids, answer.logprobs) for answer in found]


MIXED = [SamplingParams(max_tokens=9), SamplingParams(max_tokens=20, temperature=0.0),
         SamplingParams(max_tokens=14, temperature=0.8, top_k=40, top_p=0.9)]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_are_those_of_the_plain_engine(dtype):
    """Requests of many lengths come and go, so the batch takes many sizes; twelve for eight places."""
    model = make(dtype)
    asked = prompts(12), [each(MIXED[i % 3], i + 1)[-1] for i in range(12)]
    graphs = StandIn()
    ours = engine(model, graphs)
    assert answers(ours.generate(*asked)) == answers(engine(model).generate(*asked))
    sizes = [size for size, _, _, _ in ours._runner._captured]
    assert len(sizes) == len(set(sizes)) == len(graphs.captured) > 2
    assert sum(replay.replays for replay in graphs.captured) > 10


def test_dummies_fill_a_bucket():
    """17 requests run as 20 rows; what the three more write lands in no page that anybody reads."""
    model = make()
    asked = [[i, 5, i] for i in range(17)], each(SamplingParams(max_tokens=5), 17)
    ours = engine(model, StandIn(), max_batch=32)
    assert answers(ours.generate(*asked)) == answers(engine(model, max_batch=32).generate(*asked))
    assert 20 in [size for size, _, _, _ in ours._runner._captured]


def test_guesses_and_details_take_the_same_road():
    model = make()
    repeating = [[5, 6, 7, 8] * 6, [9, 3] * 9]
    seen = SamplingParams(max_tokens=12, temperature=0.0, logprobs=2)
    for params, draft in ((SamplingParams(max_tokens=24, temperature=0.0), 4), (seen, 0)):
        ours = engine(model, StandIn(), draft=draft).generate(repeating, params)
        theirs = engine(model, draft=draft).generate(repeating, params)
        assert answers(ours) == answers(theirs)
        assert [a.details for a in ours] == [a.details for a in theirs]


def test_new_weights_are_read_in_place():
    model = make()
    ours = engine(model, StandIn())
    before = answers(ours.generate(prompts(3), each(MIXED[0], 3)))
    with torch.no_grad():
        for parameter, other in zip(model.parameters(), make(seed=3).parameters(), strict=True):
            parameter.copy_(other)
    after = answers(ours.generate(prompts(3), each(MIXED[0], 3)))
    assert after == answers(engine(model).generate(prompts(3), each(MIXED[0], 3))) != before


def test_a_capture_that_fails_is_told_once_and_costs_no_answer():
    model = make()
    ours = engine(model, StandIn(refuse=True))
    with pytest.warns(RuntimeWarning, match="not permitted when stream is capturing") as told:
        found = ours.generate(prompts(6), each(MIXED[0], 6))
    assert len(told) == 1 and not ours._runner._captured
    assert answers(found) == answers(engine(model).generate(prompts(6), each(MIXED[0], 6)))


def test_a_step_reads_nothing_that_was_not_uploaded():
    """What is written on the host afterwards belongs to the next step."""
    model = make()
    inputs = ModelRunner(model, 4, 8, graphs=StandIn())._inputs
    inputs._ids[:], inputs._block_table[:] = 7, 3
    inputs.upload()
    assert (inputs.ids == 7).all() and not inputs.block_table.any(), "an unchanged table is not copied"
    inputs._table_changed = True
    inputs.upload()
    inputs._ids[:], inputs._block_table[:] = 8, 4
    assert (inputs.ids == 7).all() and (inputs.block_table == 3).all()
    starts = {getattr(inputs, name).data_ptr() % 64 for name in ("ids", "starts", "lengths", "block_table")}
    assert starts == {inputs._device.data_ptr() % 64}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_persistent_step_follows_the_plain_one(dtype):
    """Log-probabilities within rounding while ids are the same; more requests than its kernel takes run as ever."""
    model = make(dtype)
    asked = prompts(12), each(SamplingParams(max_tokens=12, temperature=0.0), 12)
    runner = ModelRunner(model, 12, 64, graphs=StandIn(), persistent=True)
    ours = Engine(model, runner=runner, max_batch=12, step_tokens=64).generate(*asked)
    for mine, plain in zip(ours, engine(model, max_batch=12).generate(*asked), strict=True):
        same = next(
            (i for i, (a, b) in enumerate(zip(mine.ids, plain.ids, strict=True)) if a != b), len(mine.ids)
        )
        bound = 1e-4 if dtype == torch.float32 else 0.1
        assert torch.tensor(mine.logprobs[:same]).sub(torch.tensor(plain.logprobs[:same])).abs().max() < bound
        assert dtype != torch.float32 or same == len(mine.ids)


def test_what_cannot_be_one_kernel_is_said():
    with pytest.raises(ValueError, match="needs a GPU"):
        Engine(make(), persistent=True)
    with pytest.raises(ValueError, match='needs kv_dtype="auto"'):
        ModelRunner(make(), 4, 8, graphs=StandIn(), kv_dtype="int8", persistent=True)
