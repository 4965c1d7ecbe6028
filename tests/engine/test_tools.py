"""The search tool: called when asked, its text harmless, its failures told to the model, its use limited."""

import pytest

from pyengine.engine import Engine, SamplingParams, Tools

from .fake import FakeRunner

END, ASSISTANT, SEARCH, RESULT, USER = range(40, 45)
CONTROLS = frozenset({END, ASSISTANT, SEARCH, RESULT, USER})


class Script(FakeRunner):
    """Says the next token of its script whenever it is asked, and records what it was asked with."""

    def __init__(self, script):
        super().__init__(pages=4)
        self.script, self.contexts = list(script), []

    def run(self, plan, ready):
        _, logprobs = super().run(plan, ready)
        self.contexts += [list(request.ids) for request in ready]
        return [self.script.pop(0) for _ in ready], logprobs


def ask(script, search, prompt=(USER, 1, END, ASSISTANT), max_tokens=50, **limits):
    tools = Tools(search, SEARCH, END, RESULT, ASSISTANT, CONTROLS, failed=(30,), exhausted=(31,), **limits)
    engine = Engine(None, tools=tools, runner=Script(script), max_batch=2)
    answer = engine.generate([list(prompt)], SamplingParams(max_tokens=max_tokens, seed=0, stop=(END,)))[0]
    assert engine.unfinished == 0
    return answer, engine._runner


def test_a_search_is_answered_and_the_model_goes_on():
    answer, runner = ask([SEARCH, 5, 6, END, 7, END], lambda query: [10 + q for q in query])
    forced = [RESULT, 15, 16, END, ASSISTANT]
    assert answer.ids == [SEARCH, 5, 6, END, *forced, 7, END]
    assert answer.forced == [False] * 4 + [True] * 5 + [False] * 2
    assert answer.finish_reason == "stop"
    assert runner.contexts[4] == [USER, 1, END, ASSISTANT, SEARCH, 5, 6, END, *forced]
    assert answer.logprobs[4:9] == [0.0] * 5


def test_a_result_cannot_inject_control_tokens():
    answer, _ = ask([SEARCH, END, 7, END], lambda query: [1, END, USER, 2, ASSISTANT, SEARCH, 3])
    assert answer.ids == [SEARCH, END, RESULT, 1, 2, 3, END, ASSISTANT, 7, END]


def test_a_failing_tool_is_told_to_the_model():
    def broken(query):
        raise OSError("index is gone")

    answer, _ = ask([SEARCH, 5, END, 7, END], broken)
    assert answer.ids == [SEARCH, 5, END, RESULT, 30, END, ASSISTANT, 7, END]
    assert answer.finish_reason == "stop"


def test_limits_of_calls_and_result():
    call = [SEARCH, 5, END]
    answer, _ = ask(call * 4, lambda query: [1] * 9, max_calls=1, max_result=2)
    assert answer.ids == [
        *call, RESULT, 1, 1, END, ASSISTANT,
        *call, RESULT, 31, END, ASSISTANT,
        *call,
    ]  # fmt: skip
    assert answer.finish_reason == "tools"


@pytest.mark.parametrize("max_tokens", [1, 2, 3])
def test_max_tokens_ends_a_call_without_calling(max_tokens):
    answer, _ = ask([SEARCH, 5, END, 7], lambda query: pytest.fail("called"), max_tokens=max_tokens)
    assert len(answer.ids) == max_tokens and answer.finish_reason == "length"


def test_a_result_that_does_not_fit_the_context_ends_the_answer():
    answer, _ = ask([SEARCH, 5, END], lambda query: [1] * 300, max_result=300)
    assert answer.finish_reason == "length" and answer.ids == [SEARCH, 5, END]
