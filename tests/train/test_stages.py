"""The stages after pre-training, all on one tiny run: what they write, and what must be exact in it.

The model is far too small to learn anything; what is checked is the machinery: labels follow the model's own
replies, results are masked, rollouts replay from their seeds with the trainer's very log-probabilities.
"""

import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from pyengine import report
from pyengine.data import Problem, read_rankings
from pyengine.engine import Completion
from pyengine.files import write_json
from pyengine.model import load
from pyengine.train.attempts import Exam, attempt, problems_of
from pyengine.train.demo import _gates as demo_gates
from pyengine.train.dialogue import Dialogue, Reply
from pyengine.train.finetune import start_from
from pyengine.train.groups import token_row
from pyengine.train.knowledge import Item, labels, measure, questions_of
from pyengine.train.reward import Rankings, reward_model
from pyengine.train.rewards import right_and_short
from pyengine.train.rl import Rollouts
from pyengine.train.rl import _gates as rl_gates
from pyengine.train.rlhf import SPENT, Answer, Judge, ScoredRollouts
from pyengine.train.run import Run, opened, perform
from pyengine.train.search import looked_up
from pyengine.train.sft import sft_conversations
from pyengine.train.stages import STAGES
from pyengine.web import SearchIndex

from . import tiny

DIFFERENCE = "largest rollout/trainer log-probability difference"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A run through every stage from the tokenizer on; its documents are the world's own, not crawled."""
    root = tmp_path_factory.mktemp("runs")
    tiny.prepare(root)
    with opened(tiny.ROAD, root) as run:
        tiny.go(run)
        yield run


def read(run: Run, name: str) -> list[dict]:
    return [json.loads(line) for line in run.path(name).read_text("utf-8").splitlines()]


def test_every_stage_leaves_a_model_and_a_summary(run):
    for stage in ("sft", "know", "search", "rl"):
        assert load(run.path(stage)).config == load(run.path("base")).config
        assert run.summary(stage)
    weights = [np.concatenate([p.detach().float().numpy().ravel() for p in load(run.path(s)).parameters()])
               for s in ("base", "sft", "know", "search")]  # fmt: skip
    assert all((a != b).any() for a, b in zip(weights, weights[1:], strict=False))


def test_gates_name_value_and_bound(run):
    gates = json.loads(run.path("gates.json").read_text("utf-8"))
    assert gates["largest rollout/trainer log-probability difference"]["value"] == 0
    assert {"known facts answered right", "gain of RL over SFT", "gain of the format-only control"} < set(
        gates
    )
    assert all({"value", "bound", "holds"} <= set(gate) for gate in gates.values())


def test_of_another_source_without_facts_nothing_is_asked_and_nothing_promised(tmp_path, capsys):
    source = tmp_path / "pages"
    source.mkdir()
    config = replace(
        tiny.ROAD, web=replace(tiny.ROAD.web, source=str(source)), rl=replace(tiny.ROAD.rl, controls=False)
    )
    tiny.prepare(tmp_path, config)
    with opened(config, tmp_path, page=report.refresh) as run:
        tiny.go(run)
        report.settle(run)
    told = capsys.readouterr().out
    assert "know has nothing to ask about" in told and "reward has nothing to rank about" in told
    weights = [run.path(stage, "model.safetensors").read_bytes() for stage in ("sft", "know", "search")]
    assert weights[0] == weights[1] == weights[2]
    assert not set(run.gates()) & {"known facts answered right", "gain of RL over SFT"}
    assert {"validation bits per byte", "largest rollout/trainer log-probability difference"} < set(
        run.gates()
    )
    known = {person.name for person in run.world.facts.of("known", kind="person")}
    said = [c.messages[0]["content"] for c in sft_conversations(run)]
    assert said and not [name for name in known if any(name in text for text in said)]


def test_log_probabilities_were_compared_and_the_gate_needs_that(run, tmp_path):
    result = json.loads(run.path("rl", "result.json").read_text("utf-8"))
    gate = json.loads(run.path("gates.json").read_text("utf-8"))[DIFFERENCE]
    assert gate["n"] == result["compared_logprobs"] and gate["holds"] == (result["compared_logprobs"] > 0)
    apart = Run(tiny.ROAD, tmp_path)
    exam = {"pass_at_1": 0.5, "tokens_per_right": 9.0, "interval": (0, 1), "problems": 9, "greedy": 0.5}
    for compared, difference, holds in ((0, 0.0, False), (7, 0.0, True), (7, float("nan"), False)):
        told = {"largest_logprob_difference": difference, "compared_logprobs": compared}
        rl_gates(apart, {"before": exam, "after": exam, "controls": {}, **told})
        assert json.loads(apart.path("gates.json").read_text())[DIFFERENCE]["holds"] is holds


def test_compared_tokens_are_counted_and_a_nan_is_not_lost(run):
    model = start_from(run, "search")
    rollouts = Rollouts(run, model, model, right_and_short, "compared")
    for difference in (0.0, float("nan"), 0.0):
        sampled = torch.tensor([-1.0, -2.0, -3.0])
        rollouts._sampled = torch.tensor([True, False, True]), sampled
        rollouts.watch(difference - sampled)
        rollouts.compare()
    assert rollouts.compared == 6 and rollouts.difference != rollouts.difference
    write_json(run.path("compared", "state.json"), rollouts.state_dict())
    again = Rollouts(run, model, model, right_and_short, "compared", [])
    again.load_state_dict(json.loads(run.path("compared", "state.json").read_text()))
    assert again.compared == 6 and again.difference != again.difference


def test_recital_counts_tellings_times_epochs(run, tmp_path):
    rows = json.loads(run.path("samples", "demo.json").read_text("utf-8"))["recital"]["rows"]
    epochs = 30 * 1024 / run.summary("shards")["train_tokens"]
    assert {row["told"] for row in rows} >= {0, 8}
    assert [row["read"] for row in rows] == pytest.approx([row["told"] * epochs for row in rows])
    assert "recital of passages told 8 times" in json.loads(run.path("gates.json").read_text("utf-8"))
    apart = Run(tiny.ROAD, tmp_path)
    perfect = {"share": 1.0, "read": 24.0, "texts": 8, "interval": (0.7, 1.0)}
    for told, holds in ((4, False), (8, True)):  # those told 4 times do not stand in for them
        demo_gates(apart, {told: perfect})
        gates = json.loads(apart.path("gates.json").read_text())
        assert gates["recital of passages told 8 times"]["holds"] is holds
        assert not gates["recital of the held-out control"]["holds"]


def test_training_and_test_questions_share_no_entity(run):
    train, test = (questions_of(run, split, wordings=2) for split in ("train", "test"))
    assert not {item.query for item in train} & {item.query for item in test}
    people = {item.query for item in test if " " in item.query}  # towns may be named as birthplaces
    for stage in ("know", "search"):
        asked = [row["messages"][0]["content"] for row in read(run, f"{stage}/conversations.jsonl")]
        assert people and not [name for name in people if any(name in question for question in asked)]


def test_labels_are_the_models_own(run):
    dialogue = Dialogue(start_from(run, "sft"), run.tokenizer)
    items = questions_of(run, "train")[:6]
    again = labels(dialogue, items, 2, run.config.know.temperature, run.config.seed, (0.25, 0.75))
    kept = read(run, "know/labels.jsonl")[:6]
    assert [row["replies"] for row in again] == [row["replies"] for row in kept]
    for row in kept:
        bound = {"known": row["share_right"] >= 0.75, "unknown": row["share_right"] <= 0.25}
        assert bound.get(row["label"], True)


def test_actions_sum_to_the_questions_asked(run):
    table = json.loads(run.path("evaluate", "result.json").read_text("utf-8"))["tables"]["rl"]["groups"]
    assert set(table) == {"known", "later", "invented"}
    for row in table.values():
        assert row["answer"] + row["search"] + row["refuse"] == row["questions"]
        assert row["right_by_search"] <= row["right"] <= row["questions"] - row["refused"]


def test_a_look_up_answers_from_the_results_or_refuses(run):
    from pyengine.text import SearchTool

    tool = SearchTool(SearchIndex(run.path("web", "index.sqlite")), run.tokenizer, 1, 160)
    rng = np.random.default_rng(0)
    later = next(i for i in questions_of(run, "train") if i.group == "later")
    told, found = looked_up(later, tool, rng)
    assert told and later.query in found[2]["content"] and found[3]["content"] == later.response
    told, missing = looked_up(replace(later, answers=("nothing of the kind",)), tool, rng)
    assert not told and "know" in missing[3]["content"]


def test_rollouts_replay_from_their_seed(run):
    kept = [row for row in read(run, "rl/rollouts.jsonl") if row["step"] == 0]
    model = start_from(run, "search")
    rollouts = Rollouts(run, model, start_from(run, "search"), right_and_short, "again")
    rollouts.batch(0)
    again = read(run, "again/rollouts.jsonl")
    assert [row["reply"] for row in again] == [row["reply"] for row in kept]
    assert [row["logprob"] for row in again] == [row["logprob"] for row in kept]


def test_a_step_is_as_long_as_the_share_of_groups_that_say_anything(run):
    model = start_from(run, "search")
    rollouts = Rollouts(run, model, model, right_and_short, "apart", [])
    asked = run.config.rl.problems_per_step * run.config.rl.group
    for rewards, told in (([1, 0, 1, 1], 1), ([], 0), ([0, 1, 0, 0] * 2, 2)):
        paid = iter([*rewards, *[0] * (asked - len(rewards))])
        rollouts._reward = lambda *_, paid=paid: float(next(paid))
        before = rollouts.told
        batch = rollouts.batch(0)
        assert rollouts.told - before == told
        assert (batch is None) if not told else batch.rate == told / run.config.rl.problems_per_step


def test_a_resumed_reinforcement_doubles_no_attempt(run):
    path = run.path("resumed", "rollouts.jsonl")
    path.parent.mkdir()
    path.write_text('{"step": 0, "a": 1}\n{"step": 1}\n{"step": 2, "cut')
    model = start_from(run, "search")
    Rollouts(run, model, model, right_and_short, "resumed").batch(1)
    steps = [row["step"] for row in read(run, "resumed/rollouts.jsonl")]
    assert steps == [0] + [1] * 12


def test_only_sampled_tokens_are_trained_the_stop_token_included():
    ids, targets, weights, logprobs = token_row(Completion([7, 8, 9], [4, 5, 6], [-1.0, -2.0, -3.0]), 0.5)
    assert ids.tolist() == [7, 8, 9, 4, 5]
    assert targets.tolist() == [-100, -100, 4, 5, 6]
    assert weights.tolist() == [0, 0, 0.5, 0.5, 0.5]
    assert np.isnan(logprobs[:2]).all() and logprobs[2:].tolist() == [-1, -2, -3]


def test_rankings_are_kept_in_the_format_that_people_write(run):
    train, test = (read_rankings(run.path("reward", name)) for name in ("rankings.jsonl", "held-out.jsonl"))
    assert len(train[0]) == len(test[0]) == 8 and not train[1] and not test[1]
    names = {
        side: {e.name for e in run.world.facts.of("known", side, "person")} for side in ("train", "test")
    }
    for side, (rankings, _) in (("train", train), ("test", test)):
        for ranking in rankings:
            assert any(name in ranking.prompt for name in names[side])
            assert (
                len(set(ranking.answers)) == len(ranking.answers) and ranking.more["by"] == "simulated rater"
            )


def test_the_reward_model_is_kept_and_scores_as_it_did(run):
    model, result = reward_model(run), json.loads(run.path("reward", "result.json").read_text())
    rankings = Rankings(model, run.tokenizer, read_rankings(run.path("reward", "rankings.jsonl"))[0], 4, 1)
    assert float(np.mean(rankings.scores())) == result["mean"] and float(np.std(rankings.scores())) > 0
    assert rankings.judge()["accuracy"] == result["trained_accuracy"] and 0.5 <= result["ceiling"] <= 1
    assert run.gates()["reward model's accuracy on held-out preferences"]["value"] == result["accuracy"]


def test_rlhf_starts_at_no_distance_and_keeps_every_answer(run):
    result = json.loads(run.path("rlhf", "result.json").read_text())
    assert [point["step"] for point in result["curve"]] == [0, 2, 4] and result["curve"][0]["kl"] == 0
    assert (
        result["start"]["kl"] == 0
        and result["largest_logprob_difference"] == 0
        and result["compared_logprobs"]
    )
    rows = read(run, "rlhf/rollouts.jsonl")
    assert [row["step"] for row in rows] == [step for step in range(4) for _ in range(9)]
    sittings = {sitting.text: sitting for sitting in run.world.portraits.ask("train")}
    asked = [row["messages"][0]["content"] for row in rows[::3]]
    assert asked == list(itertools.islice(itertools.cycle(sittings), 12)), "one request after another"
    assert result["stopped"] == 4 and result["kept"]["answers"] == 10
    for row in rows:
        assert row["gold"] == run.world.portraits.worth(sittings[row["messages"][0]["content"]], row["reply"])
    assert {"RLHF: gain in the gold reward", "RLHF: gain in the reward model's score"} < set(run.gates())


def test_the_model_kept_is_the_one_when_the_budget_was_spent(run):
    model = start_from(run, "reward/start")
    rollouts = ScoredRollouts(run, model, start_from(run, "reward/start"), Judge(run))
    kept, attempts = run.path("rlhf", "model.safetensors"), run.path("rlhf", "rollouts.jsonl")
    whole = {path: path.read_bytes() for path in (kept, attempts)}
    try:
        first = rollouts.batch(0)
        assert rollouts.stopped is None and rollouts.nats == 0 and rollouts.kl == run.config.rlhf.kl
        assert first.rate == pytest.approx(1 - first.info["groups_skipped"] / 3)
        with torch.no_grad():
            model.embedding.add_(torch.randn_like(model.embedding.float()).to(model.dtype))
        spent = rollouts.batch(1)
        assert spent.rate == pytest.approx((1 - spent.info["groups_skipped"] / 3) * run.config.rlhf.push)
        assert rollouts.stopped == 1 and rollouts.nats > run.config.rlhf.budget and rollouts.kl == 0
        assert torch.equal(start_from(run, "rlhf").embedding, model.embedding)
        again = ScoredRollouts(run, model, model, rollouts.scorer)
        again.load_state_dict(json.loads(json.dumps(rollouts.state_dict())))
        assert again.stopped == 1 and again.kl == 0 and again.nats == rollouts.nats
        before = kept.read_bytes()
        rollouts.batch(2)
        assert kept.read_bytes() == before, "what comes after the budget is not kept"
    finally:
        for path, content in whole.items():
            path.write_bytes(content)


@pytest.fixture
def strayed(run) -> ScoredRollouts:
    """Rollouts of a model that has left its start, within a budget that has no end; they keep nothing."""
    model = start_from(run, "reward/start")
    rollouts = ScoredRollouts(run, model, start_from(run, "reward/start"), Judge(run))
    rollouts.path, rollouts.settings = run.path("strayed.jsonl"), replace(run.config.rlhf, budget=1e9)
    noise = torch.randn(model.embedding.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.embedding.add_(noise.to(model.dtype))
    return rollouts


def test_a_batch_pulls_to_the_start_and_rehearses_in_turn(strayed):
    strayed.replay = [Completion([5, 6], [7 + i], [0.0], [False]) for i in range(3)]
    pulled = strayed.batch(1)
    targets = [part.tolist() for part in pulled.targets.split(pulled.cu_seqlens.diff().tolist())]
    assert targets[-2:] == [[-100, 9], [-100, 7]]
    strayed.kl = 0.0
    free = strayed.batch(1)
    assert torch.equal(free.ids, pulled.ids) and pulled.info["kl"] > 0
    pull = strayed.settings.kl * pulled.info["kl"] * pulled.total_weight()
    assert float((free.weights - pulled.weights).sum()) == pytest.approx(pull, rel=1e-3)


def test_nats_are_of_the_answers_trained_on_and_the_next_step_is_paid_for(strayed, monkeypatch):
    stops = []
    monkeypatch.setattr(strayed, "stop", stops.append)
    monkeypatch.setattr(strayed, "judge", lambda groups: np.array([[1.0, 0, 0], [0, 0, 0], [0, 0, 0]]))
    batch = strayed.batch(1)
    found = strayed.nats
    assert found == pytest.approx(batch.info["kl"] * batch.total_weight() / 3) and not stops
    budget = 1.5 * found / SPENT
    for before, stopped in ((found, []), (0.5 * found, []), (0.4 * found, [1])):
        strayed.settings, strayed.nats = replace(strayed.settings, budget=budget), before
        strayed.batch(1)
        assert strayed.nats == found and stops == stopped


def test_the_judge_counts_in_deviations_of_what_was_ranked(run):
    groups = [
        [Answer(ranking.messages, Reply(text, None, Completion([1])), None)]
        for ranking in read_rankings(run.path("reward", "rankings.jsonl"))[0]
        if ranking.pairs()
        for text in ranking.answers
    ]
    proxies = Judge(run).proxies(groups)
    assert abs(proxies.mean()) < 1e-4 and proxies.std() == pytest.approx(1, abs=1e-4)


def test_peoples_rankings_take_the_worlds_place(run, tmp_path):
    path = tmp_path / "rankings.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"Question {i}?"}], "answers": ["Yes.", "No, no, no.", "Perhaps."],
         "ranks": [1, 3, 2], "by": "Ada"}
        for i in range(12)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"answers": []}\n')
    config = replace(tiny.ROAD, rlhf=replace(tiny.ROAD.rlhf, rankings=path))
    shutil.copytree(run.folder, tmp_path / "tiny", ignore=shutil.ignore_patterns("reward", "rlhf", ".lock"))
    with opened(config, tmp_path) as other:
        for stage in ("reward", "rlhf"):
            perform(other, STAGES[stage])
        kept = [read(other, f"reward/{name}.jsonl") for name in ("rankings", "held-out")]
        assert len(kept[0]) + len(kept[1]) == 12 and all(row["by"] == "Ada" for row in kept[0] + kept[1])
        result = json.loads(other.path("rlhf", "result.json").read_text())
        assert (
            result["turning"] is None
            and "gold" not in result["kept"]
            and result["kept"]["answers"] == len(kept[1])
        )
        assert other.summary("reward")["ceiling"] is None
        assert "RLHF: gain in the gold reward" not in {
            n for n, g in other.gates().items() if g["stage"] == "rlhf"
        }
        start = other.path("reward", "start", "model.safetensors").read_bytes()
        assert start == run.path("rl", "model.safetensors").read_bytes()


def test_problem_splits_share_no_problem(run):
    train, test = (problems_of(run, split, 200, "check") for split in ("train", "test"))
    numbers = [
        {"".join(c if c.isdigit() else " " for c in p.problem) for p in part} for part in (train, test)
    ]
    assert len(train) == len(test) == 200 and {p.grade for p in test} == {1, 2, 3, 4, 5}
    assert len(numbers[0]) > 50 and not {p.problem for p in train} & {p.problem for p in test}


def test_an_exam_from_a_file_asks_each_problem_once(run, tmp_path):
    rows = [{"problem": f"{i}+1?", "answer": i + 1} for i in range(40)] * 2 + [
        {"problem": "?", "answer": "Paris"}
    ]
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = replace(tiny.ROAD, rl=replace(tiny.ROAD.rl, problems=path))
    train, test = (problems_of(Run(config, tmp_path), split, 1000) for split in ("train", "test"))
    assert len(train) + len(test) == 40 == len({p.problem for p in (*train, *test)})
    exam, dialogue = Exam(test, max_tokens=4), Dialogue(start_from(run, "search"), run.tokenizer)
    result = exam.full(dialogue, exam.sit(dialogue), several=0)
    low, high = result["interval"]
    assert result["problems"] == len(test) > 3 and high - low > 0.2 and "pass_at_k" not in result
    assert len(problems_of(Run(config, tmp_path), "test", 2)) == 2


def test_a_reply_that_is_cut_off_is_never_right(run):
    dialogue = Dialogue(start_from(run, "search"), run.tokenizer)
    group = attempt(dialogue, [Problem("2+2?", "4")], 8, seed=0, max_tokens=1)[0]
    assert all(not a.right for a in group if a.truncated)


def test_replies_do_not_depend_on_the_other_questions(run):
    dialogue = Dialogue(start_from(run, "sft"), run.tokenizer)
    questions = [item.question for item in questions_of(run, "test")[:5]]
    together = dialogue.ask(questions, samples=2, temperature=1.0, seed=3)
    alone = dialogue.ask(questions[:1], samples=2, temperature=1.0, seed=3)
    assert [r.completion.ids for r in together[0]] == [r.completion.ids for r in alone[0]]


def test_every_seed_of_a_run_makes_rollouts(run):
    dialogue = Dialogue(start_from(run, "sft"), run.tokenizer)
    largest = (2**32 - 1) * 1009 * 100_003  # of a step's rollouts
    replies = dialogue.ask(["What is 2 + 3?"], 2, 1.0, 8, largest)
    assert len(replies[0]) == 2


def test_a_refusal_with_the_right_word_in_it_is_no_answer(run):
    class Says:
        def ask(self, questions, **_):
            return [[Reply("I don't know any cook.", None, Completion([1]))] for _ in questions]

    table = measure(Says(), [Item("What is Mara?", ("cook",))])
    assert table["groups"]["given"]["right"] == 0 and table["groups"]["given"]["refused"] == 1
