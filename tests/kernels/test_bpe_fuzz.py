"""A short run of bench/bpe_fuzz.py: every pattern and instruction set against both peers, and that it finds faults."""

import random

import pytest
from pyengine.kernels import bpe

from bench import bpe_fuzz
from pyengine.text import Tokenizer
from tests.kernels.test_bpe import corpus


def fuzz(name: str, peer: str) -> bpe_fuzz.Fuzz:
    tokenizer = Tokenizer.train([corpus()], 1000, bpe.PATTERNS[name], special_tokens=[])
    tokens = [tokenizer.token_bytes(i) for i in range(1000)]
    arguments = {"tokens": tokens, "merges": tokenizer.merges, "pattern": name}
    return bpe_fuzz.Fuzz(
        tokenizer, bpe_fuzz.Peer(tokenizer, peer), bpe_fuzz.encoder_of(arguments), random.Random(name + peer)
    )


@pytest.mark.parametrize("peer", ["tiktoken", "tokenizers"])
@pytest.mark.parametrize("name", list(bpe.PATTERNS))
def test_no_difference(name, peer):
    run, text = fuzz(name, peer), corpus(seed=3, words=400)
    run.files([text])
    run.strings([*bpe_fuzz.KINDS, "broken"], text, 100_000)
    assert not run.differences, "\n".join(run.differences)
    assert run.size > 100_000 and run.documents > 200


def test_a_difference_is_found_and_made_short():
    run = fuzz("gpt2", "tiktoken")
    run.peer = fuzz("qwen2", "tiktoken").peer
    run.strings(["edges"], "", 20_000)
    assert run.differences
