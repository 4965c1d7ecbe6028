"""Encoding of text in tensors: every backend against the C++ encoder, on text of many scripts and on any bytes."""

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyengine.kernels import bpe
from pyengine.kernels.bpe import cuda

from tests.conftest import SHIMMED
from tests.kernels.test_bpe import FRAGMENTS, corpus

OP = "bpe"
FUZZ = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=list(bpe.PATTERNS))
def encoder(request):
    """A vocabulary of 1000 for each pattern."""
    lexer, counts = bpe.split_pattern(request.param), bpe.WordCounts()
    counts.add_texts([corpus()], lexer)
    merges = bpe.train(counts, bpe.BYTE_ORDER, 1000)
    return bpe.Encoder(bpe.spell(bpe.BYTE_ORDER, merges), merges, lexer)


def check(encoder, documents: list[bytes], device: str) -> bpe.Encoded:
    text = torch.frombuffer(bytearray().join([*documents, b"\0"]), dtype=torch.uint8)[:-1].to(device)
    offsets = torch.tensor([0, *map(len, documents)], device=device).cumsum(0)
    encoded = bpe.encode_tensor(encoder, text, offsets)
    ids, ends = encoder.encode_batch(documents)
    assert encoded.offsets.tolist() == ends.tolist()
    np.testing.assert_array_equal(encoded.ids.cpu().numpy().astype(np.uint32), ids)
    return encoded


DOCUMENTS = st.lists(
    st.lists(
        st.tuples(FRAGMENTS.map(str.encode) | st.binary(max_size=4), st.integers(1, 5)).map(
            lambda p: p[0] * p[1]
        ),
        max_size=30,
    ).map(b"".join),
    max_size=4,
)


@FUZZ
@given(documents=DOCUMENTS)
def test_ids_are_those_of_the_encoder(backend, encoder, documents):
    check(encoder, documents, backend.device)


def test_a_longer_text(backend, encoder):
    """Of several tiles, with documents that end in, at and between them."""
    text = corpus(seed=1, words=700).encode()
    text += text[: -len(text) % 2048]  # the last tile is full
    cuts = [0, 1, 1, 2048, 2049, 4096, 4096, *range(4097, 4120), len(text), len(text)]
    check(encoder, [text[a:b] for a, b in zip(cuts, cuts[1:], strict=False)], backend.device)


RUNS = ["a", "ab", " ", "\n", " \n", "1", "'s", "'", "aA", "!", "!\n/", "中"]


@pytest.mark.parametrize("piece", [*(run.encode() for run in RUNS), b"\xff", b"\x80"])
def test_runs_that_a_warp_holds_or_hands_over(backend, encoder, piece):
    for size in (255, 256, 257, 700):
        check(encoder, [piece * size, piece * (size // len(piece))], backend.device)


@pytest.mark.parametrize(
    "piece", [b"a", b" ", b"\n ", b"1", b"aA", b"'a", b"!\n/", "中".encode(), b"e\xcc\x81", b"\xff"]
)
def test_stretches_longer_than_one_thread_walks(backend, encoder, piece):
    """Behind a word and before one, whatever is certain between; at the end of a document, one byte less and more.
    Any two bytes side by side are a token, so that a cut at a wrong place shows."""
    pairs = list(dict.fromkeys(pairwise(piece * 2)))
    tokens = [*(bytes([b]) for b in range(256)), *map(bytes, pairs)]
    merges = np.array([[*pair, i, 256 + i] for i, pair in enumerate(pairs)], np.uint32)
    encoder = bpe.Encoder(tokens, merges, encoder.pattern)
    runs = [piece * (size // len(piece)) for size in (4161, 4096, 4097)]
    check(encoder, [b"It's a" + runs[0] + b" b", runs[1], b"x", runs[2]], backend.device)


def test_the_host_waits_once_and_for_long_pieces_twice(backend, encoder, monkeypatch):
    if backend.name != "cuda":
        pytest.skip("the host has nothing to wait for")
    waits = []
    for name in ("tolist", "cpu", "item", "nonzero", "unique", "__bool__", "__int__", "__index__"):
        method = getattr(torch.Tensor, name)

        def counted(*arguments, name=name, method=method):
            waits.append(name)
            return method(*arguments)

        monkeypatch.setattr(torch.Tensor, name, counted)
    for long, expected in ((b"", ["tolist"]), (b"ab" * 300, ["tolist", "cpu"])):
        text = torch.frombuffer(bytearray(b"a b " + long), dtype=torch.uint8).to(backend.device)
        offsets = torch.tensor([0, 2, len(text)], device=backend.device)
        waits.clear()
        bpe.encode_tensor(encoder, text, offsets)
        assert waits == expected


@pytest.mark.parametrize(
    "wrong", [[0], [1, 12], [0, 11], [0, 9, 5, 12], [0, 13, 12], [0, 12, 12, 13], [-1, 12]]
)
def test_offsets_that_do_not_fit_are_refused(backend, encoder, wrong):
    text = torch.zeros(12, dtype=torch.uint8, device=backend.device)
    with pytest.raises(ValueError, match="offsets must rise from 0 to 12"):
        bpe.encode_tensor(encoder, text, torch.tensor(wrong, device=backend.device))


def test_pieces_handed_over_are_counted(backend, encoder):
    documents = [b"a\n" + b"ab" * 128, b"ba" * 129, b"b" * 700, b" c"]
    handed_over = check(encoder, documents, backend.device).handed_over
    assert handed_over == (2 if backend.name == "cuda" else 0)


def test_a_byte_without_a_token_is_dropped(backend):
    tokens = [b"a", b"b", b"ab", b"-"]
    encoder = bpe.Encoder(tokens, np.array([[0, 1, 0, 2]]), bpe.split_pattern("gpt2"))
    check(
        encoder,
        [b"ab", b"x", b"", b"axb\x04ab", b"axxb", b"abx" * 40, b"axb" * 60, b"axb" * 100],
        backend.device,
    )


def test_tokens_that_their_merges_do_not_reach(backend):
    """A piece that is a token stays whole only where the vocabulary says so, at any length."""
    tokens = [bytes([b]) for b in range(256)] + [b"abc", b"ab", b"x" * 300]
    merges = np.array([[97, 98, 0, 257]], np.uint32)
    for whole in (False, True):
        encoder = bpe.Encoder(tokens, merges, bpe.split_pattern("gpt2"), whole_pieces=whole)
        check(encoder, [b"abc", b"abcd", b"x" * 300, b"x" * 301, b"ab"], backend.device)


def test_long_pieces_are_cut_where_no_token_reaches_across(backend):
    han = [chr(code) for code in range(0x4E00, 0x4E20)]
    rng = random.Random(3)
    counts = bpe.WordCounts()
    counts.add_texts(["".join(rng.choices(han[:8], k=40)) for _ in range(30)], bpe.split_pattern("cl100k"))
    merges = bpe.train(counts, bpe.BYTE_ORDER, 300)
    encoder = bpe.Encoder(bpe.spell(bpe.BYTE_ORDER, merges), merges, bpe.split_pattern("cl100k"))
    text = "".join(rng.choices(han, k=400)).encode()
    assert check(encoder, [text, text[1:-1], text[:90] + b"a" + text[2:]], backend.device).handed_over == 0


def test_one_piece_without_a_lexer(backend):
    merges = np.array([[97, 32, 0, 256]], np.uint32)
    encoder = bpe.Encoder([*(bytes([b]) for b in range(256)), b"a "], merges, bpe.Pattern())
    check(encoder, [b"a a a", b"", b"b a", b"a b" * 90], backend.device)


def test_random_bytes(backend, encoder):
    rng = random.Random(5)
    check(
        encoder,
        [rng.randbytes(1500), bytes(rng.choices(b"ab \n1'\xe4\xb8\xad\xcc\x81", k=1500))],
        backend.device,
    )


def test_a_memory_that_overflows_changes_nothing(backend, monkeypatch):
    """Pieces met twice in a call and again in the next, more than slots; the first ones differ from byte 8 on."""
    merges = np.array([[97, 98, 0, 256], [99, 256, 1, 257]], np.uint32)
    words = [bytes(random.Random(i).choices(b"abc", k=i % 17 + 1)) for i in range(90)]
    words = [b"cabcabc" + word[:7] for word in words[::3]] + words
    text = b" ".join(words + words[::2])
    for slots in (4, 32, 1 << 10):
        monkeypatch.setattr(cuda, "MEMORY_SLOTS", slots)
        tokens = [*(bytes([b]) for b in range(256)), b"ab", b"cab"]
        encoder = bpe.Encoder(tokens, merges, bpe.split_pattern("gpt2"))
        for _ in range(2):
            check(encoder, [text, text[:50]], backend.device)


@pytest.mark.parametrize("state", [1 << 30, (1 << 30) - 2])
def test_slots_that_other_calls_have_not_filled_are_left_alone(backend, encoder, state):
    if backend.name != "cuda":
        pytest.skip("the memory is the GPU's")
    text = corpus(seed=2, words=60).encode()
    check(encoder, [text], backend.device)
    memory = cuda.kept(encoder, torch.device(backend.device))[1]
    states = memory.view(torch.int32).view(-1, 20)[:, 4]
    assert (states < 0).sum() > 20  # as many distinct pieces were learnt
    states[states < 0] = state
    check(encoder, [text], backend.device)
    memory.zero_()


def test_nothing(backend, encoder):
    assert check(encoder, [], backend.device).offsets.tolist() == [0]
    assert check(encoder, [b"", b""], backend.device).ids.tolist() == []


def test_races(backend):
    """A small case: under ThreadSanitizer every CUDA thread is a thread of the system."""
    counts = bpe.WordCounts()
    counts.add_texts(["ab abc it's"], bpe.split_pattern("o200k"))
    merges = bpe.train(counts, bpe.BYTE_ORDER, 260)
    encoder = bpe.Encoder(bpe.spell(bpe.BYTE_ORDER, merges), merges, bpe.split_pattern("o200k"))
    check(encoder, [b"It's abcABC 12!! ca ca ca ca", b"cabab" * 8], backend.device)


def test_races_between_tiles(backend):
    """Blocks that count their ids at once, and add up what the others have written."""
    merges = np.array([[97, 98, 0, 256]], np.uint32)
    encoder = bpe.Encoder([*(bytes([b]) for b in range(256)), b"ab"], merges, bpe.split_pattern("gpt2"))
    words = b" ab ba cab" * (450 if SHIMMED else 70000)
    check(encoder, [words[:2500], words[2500:]], backend.device)
