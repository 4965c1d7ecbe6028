"""The adapter of the lm-evaluation-harness: its numbers are the model's, on tasks made here, without a network."""

import json

import httpx
import pytest
import torch

pytest.importorskip("lm_eval")
pytest.importorskip("uvicorn")
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance

from pyengine.engine import Engine, SamplingParams
from pyengine.evaluation import HarnessModel
from pyengine.model import over_documents
from tests.serve.live import served_model, serving


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return served_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(served):
    return HarnessModel(served)


def asked(kind: str, *arguments) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


@torch.no_grad()
def by_hand(served, ids: list[int]) -> torch.Tensor:
    """log-probabilities (T - 1, V) of what follows each id."""
    bounds = torch.tensor([0, len(ids)], dtype=torch.int32)
    positions = torch.arange(len(ids), dtype=torch.int32)
    hidden = served.engine.model(torch.tensor(ids), positions, over_documents(bounds))
    return served.engine.model.logits(hidden).double().log_softmax(1)[:-1]


def test_likelihoods_are_the_models(served, model):
    pairs = [
        ("Who founded Tavor?", " Ada"),
        ("", "I do not know."),
        ("Who" + " Who" * 300, " founded Tavor"),
        ("A", "B"),
    ]
    found = model.loglikelihood([asked("loglikelihood", *pair) for pair in pairs], disable_tqdm=True)
    start = served.tokenizer.special_ids["<|endoftext|>"]
    for (context, continuation), (logprob, _) in zip(pairs, found, strict=True):
        whole, known = served.tokenizer.encode(context + continuation), served.tokenizer.encode(context)
        ids = [start, *whole][-served.engine.max_context :]
        wanted = len(whole) - len(known)
        rows = by_hand(served, ids)[-wanted:]
        truth = rows.gather(1, torch.tensor(ids[-wanted:])[:, None]).sum().item()
        assert logprob == pytest.approx(truth, abs=1e-3)
    alone = [model.loglikelihood([asked("loglikelihood", *p)], disable_tqdm=True)[0] for p in pairs]
    assert alone == found, "batches change nothing"


def test_the_harnesss_own_client_gets_the_same_from_our_server(served, model):
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    start, encode = [served.tokenizer.special_ids["<|endoftext|>"]], served.tokenizer.encode
    contexts = [encode("Who founded"), encode("I do not")]
    continuations = [encode(" Tavor? Ada"), encode(" know.")]
    wanted = model._loglikelihood_tokens(
        [(None, *pair) for pair in zip(contexts, continuations, strict=True)]
    )
    prompts = [[*start, *a, *b] for a, b in zip(contexts, continuations, strict=True)]
    body = {"prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    with serving(served_model(served.folder)) as url:
        answer = httpx.post(f"{url}/v1/completions", json=body).json()
    lengths = [len(start) + len(context) for context in contexts]
    found = LocalCompletionsAPI.parse_logprobs(answer, ctxlens=lengths)
    for (logprob, greedy), (truth, best) in zip(found, wanted, strict=True):
        assert logprob == pytest.approx(truth, abs=1e-9) and greedy == best


def test_greedy_is_recognised(served, model):
    start = [served.tokenizer.special_ids["<|endoftext|>"]]
    greedy = SamplingParams(max_tokens=3, temperature=0)
    ids = (
        Engine(served.engine.model, pages=8).generate([start + served.tokenizer.encode("Who")], greedy)[0].ids
    )
    context = served.tokenizer.encode("Who")
    (_, yes), (_, no) = model._loglikelihood_tokens(
        [(None, context, ids), (None, context, [ids[0], (ids[1] + 1) % 300])]
    )
    assert yes and not no


def test_rolling_scores_every_token_once(served, model):
    text = "Who founded Tavor? Ada Lovelace founded Tavor in 1815. " * 20
    (whole,) = model.loglikelihood_rolling([asked("loglikelihood_rolling", text)], disable_tqdm=True)
    ids, start = served.tokenizer.encode(text), [served.tokenizer.special_ids["<|endoftext|>"]]
    room, truth = served.engine.max_context - 1, 0.0
    assert len(ids) > room, "the text must need windows"
    for i in range(0, len(ids), room):
        window = ids[i : i + room]
        truth += by_hand(served, start + window).gather(1, torch.tensor(window)[:, None]).sum().item()
    assert whole == pytest.approx(truth, rel=1e-5)


def test_generation_stops_at_strings(served, model):
    options = {"until": [], "max_gen_toks": 24}
    (text,) = model.generate_until([asked("generate_until", "Who", options)], disable_tqdm=True)
    assert len(text) > 3 and served.engine.unfinished == 0
    cut = text[2:4]
    stops = [asked("generate_until", "Who", {"until": [cut], "max_gen_toks": 24})] * 2
    assert model.generate_until(stops, disable_tqdm=True) == [text[: text.index(cut)]] * 2
    assert served.engine.unfinished == 0 and served.engine.pages_held == 0


def test_a_task_of_the_harness(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    rows = [
        {"question": f"Who founded town {i}?", "choices": ["Ada", "Tavor"], "answer": i % 2} for i in range(6)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "founders", "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}, "cache_dir": str(tmp_path / "cache")},
        "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}", "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    found = simple_evaluate(model=model, tasks=[task], bootstrap_iters=0, log_samples=True)
    accuracy = found["results"]["founders"]["acc,none"]
    right = 0
    for row in rows:
        pairs = [asked("loglikelihood", row["question"], f" {choice}") for choice in row["choices"]]
        scores = [logprob for logprob, _ in model.loglikelihood(pairs, disable_tqdm=True)]
        right += scores.index(max(scores)) == row["answer"]
    assert accuracy == pytest.approx(right / len(rows))
