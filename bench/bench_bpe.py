"""BPE beside tiktoken and Hugging Face tokenizers, on one vocabulary trained here; ids and merges are compared first.

The text is what every machine has: the sources of Python's standard library (code, English comments, some other
scripts), as documents of about 4 KB. A first pass has an empty piece cache (and pays for making the encoder); a
second pass finds it filled. One thread unless said otherwise.

Beside the fastest peers (gigatoken, fastokens; where they are installed) each pass has a process of its own, in
turns, and CPU time is compared; a percentage is of what one core takes to cut the text, look at a table in L2 once for
each piece and write an id, which no encoder can leave out. PYENGINE_BENCH_RANKS names a tiktoken rank file of the
cl100k pattern to use instead of a vocabulary trained here, PYENGINE_BENCH_TEXTS text files (separated by colons) to
use instead.
"""

import base64
import importlib.util
import json
import math
import os
import random
import statistics
import subprocess
import sys
import sysconfig
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from pyengine.kernels import bpe

from bench import bpe_worst
from bench.conftest import ROWS
from pyengine.text import Tokenizer
from pyengine.text.formats import BYTE_OF

tiktoken = pytest.importorskip("tiktoken")
tokenizers = pytest.importorskip("tokenizers")

PATTERN = bpe.PATTERNS["qwen2"]
VOCABULARY = 16384


@cache
def library(size: int) -> list[str]:
    """Sources of the standard library, about `size` bytes."""
    texts: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if size > 0 and "site-packages" not in path.parts:
            texts.append(path.read_text("utf-8", errors="replace"))
            size -= len(texts[-1])
    return texts


@cache
def documents(size: int) -> list[str]:
    return [text[i : i + 4096] for text in library(size) for i in range(0, len(text), 4096)]


@cache
def ours() -> Tokenizer:
    return Tokenizer.train(library(8_000_000), VOCABULARY, PATTERN, special_tokens=())


@cache
def peer() -> "tiktoken.Encoding":
    ranks = {ours().token_bytes(i): i for i in range(ours().vocab_size)}
    return tiktoken.Encoding("bench", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})


def same(texts: list[str]) -> bool:
    ids, offsets = ours().encode_batch(texts)
    alone = [ids[a:b].tolist() for a, b in zip(offsets, offsets[1:], strict=False)]
    return alone == [peer().encode_ordinary(text) for text in texts]


def row(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def test_encode_first_pass(paired, quick):
    texts = documents(1_000_000 if quick else 4_000_000)
    size = sum(map(len, texts))
    tokens = [ours().token_bytes(i) for i in range(ours().vocab_size)]

    def first():
        return bpe.Encoder(tokens, ours().merges, bpe.split_pattern(PATTERN)).encode_batch(texts)

    paired(
        f"bpe encode first pass {row(size)}",
        ours=first,
        peer=lambda: [peer().encode_ordinary(text) for text in texts],
        peer_name="tiktoken",
        equal=lambda: same(texts),
        goal=3,
        rounds=10,
    )


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> str:
    if path := os.environ.get("PYENGINE_BENCH_RANKS"):
        return path
    trained = Tokenizer.train(library(8_000_000), VOCABULARY, "cl100k", special_tokens=())
    path = tmp_path_factory.mktemp("ranks") / "bench.tiktoken"
    lines = (b"%s %d\n" % (base64.b64encode(trained.token_bytes(i)), i) for i in range(trained.vocab_size))
    path.write_bytes(b"".join(lines))
    return str(path)


@pytest.fixture(scope="module", params=os.environ.get("PYENGINE_BENCH_TEXTS", "").split(":"))
def text_file(request, tmp_path_factory) -> str:
    if request.param:
        return request.param
    path = tmp_path_factory.mktemp("texts") / "library.txt"
    path.write_text("".join(library(16_000_000)), "utf-8", errors="replace")
    return str(path)


@cache
def least_seconds(path: str) -> float:
    data, lexer = Path(path).read_bytes(), bpe.split_pattern("cl100k")
    return min(cpu_seconds(lambda: lexer.ceiling(data)) for _ in range(5))


@pytest.mark.parametrize("name", ["tiktoken", "gigatoken", "fastokens"])
def test_encode_beside_the_fastest(quick, ranks, text_file, name):
    pytest.importorskip(name)

    def run(which: str) -> dict:
        command = [sys.executable, "-m", "bench.bpe_peers", which, ranks, text_file]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    turns = [(run("pyengine"), run(name)) for _ in range(1 if quick else 3)]
    top = least_seconds(text_file)
    same = all(ours["ids"] == theirs["ids"] for ours, theirs in turns)
    for turn in ("first", "later"):
        ours, theirs = (statistics.median(run[turn] for run in side) for side in zip(*turns, strict=True))
        goal = None if name == "tiktoken" else 2.5
        rate = turns[0][0]["bytes"] / ours / 1e6
        ROWS.append({
            "what": f"bpe {Path(text_file).stem} {turn} pass {rate:.0f} MB/s", "ours": ours, "peer": theirs,
            "peer_name": name, "ratio": theirs / ours, "ceiling": top, "percent": 100 * top / ours, "equal": same,
            "goal": goal, "holds": same and (goal is None or theirs / ours >= goal),
        })  # fmt: skip
    assert same


def test_load_rank_file(ranks):
    file = Path(ranks).read_bytes()
    parsed = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, file.splitlines())}

    def load():
        return bpe.Encoder.from_ranks(file, bpe.split_pattern("cl100k"))

    def peer_load():  # from what is parsed already
        pattern = bpe.PATTERNS["cl100k"]
        return tiktoken.Encoding("t", pat_str=pattern, mergeable_ranks=parsed, special_tokens={})

    ours, theirs = zip(*((cpu_seconds(load), cpu_seconds(peer_load)) for _ in range(5)), strict=True)
    seconds, peer_seconds = statistics.median(ours), statistics.median(theirs)
    ROWS.append({
        "what": f"bpe load {len(parsed)} ranks", "ours": seconds, "peer": peer_seconds, "peer_name": "tiktoken",
        "ratio": peer_seconds / seconds, "ceiling": None, "percent": None, "equal": True, "goal": 1,
        "holds": seconds <= peer_seconds,
    })  # fmt: skip


@pytest.mark.parametrize("threads", [1, 2])
def test_encode_second_pass(paired, quick, threads):
    texts = documents(1_000_000 if quick else 4_000_000)
    paired(
        f"bpe encode {row(sum(map(len, texts)))} {threads} thread{'s' * (threads > 1)}",
        ours=lambda: ours().encode_batch(texts, threads=threads),
        peer=lambda: peer().encode_ordinary_batch(texts, num_threads=threads),
        peer_name="tiktoken",
        equal=lambda: same(texts),
        goal=4,
        rounds=10,
    )


def test_encode_beside_tokenizers(paired, tmp_path):
    texts = documents(1_000_000)[:64]
    ours().save(tmp_path)
    hugging = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    paired(
        f"bpe encode {row(sum(map(len, texts)))} one by one",
        ours=lambda: [ours().encode(text) for text in texts],
        peer=lambda: [hugging.encode(text).ids for text in texts],
        peer_name="tokenizers",
        equal=lambda: all(ours().encode(text) == hugging.encode(text).ids for text in texts),
        goal=10,
        rounds=10,
    )


def test_encode_short_text(paired):
    text = "The quick brown "
    paired(
        "bpe encode 16 characters",
        ours=lambda: ours().encode(text),
        peer=lambda: peer().encode_ordinary(text),
        peer_name="tiktoken",
        equal=lambda: same([text]),
        goal=2,
    )


@pytest.mark.parametrize("kind", ["one letter", "random letters", "spaces"])
def test_encode_one_piece(paired, quick, kind):
    size = 1 << 16 if quick or kind == "spaces" else 1 << 20  # above, tiktoken's regex overflows its stack
    letters = random.Random(0)
    text = {
        "one letter": "a" * size,
        "random letters": "".join(letters.choices("abcdefghijklmnopqrstuvwxyz", k=size)),
        "spaces": " " * size,
    }[kind]
    paired(
        f"bpe encode one piece of {size >> 10} KB, {kind}",
        ours=lambda: ours().encode_array(text),
        peer=lambda: peer().encode_ordinary(text),
        peer_name="tiktoken",
        equal=lambda: same([text]),
        goal=1,
        rounds=5,
    )


@pytest.mark.parametrize("first", range(0, len(bpe_worst.KINDS), 4))
def test_encode_the_worst_texts(quick, ranks, first):
    """1 MB of each kind of bench/bpe_worst.py: milliseconds beside the fastest peer that stands it, and the exponent by
    which time grows up to 16 MB (quick: 4)."""
    kinds = [kind for kind in bpe_worst.KINDS[first : first + 4] if not quick or kind in bpe_worst.QUICK]
    if not kinds:
        pytest.skip("none of the quick ones")
    larger = 4 if quick else 16
    ours = bpe_worst.stood("pyengine", ranks, 1, 3 if quick else 7, kinds)
    grown = bpe_worst.stood("pyengine", ranks, larger, 2, kinds)
    peers = {
        name: bpe_worst.stood(name, ranks, 1, 1 if quick else 2, kinds)
        for name in ("gigatoken", "fastokens", "tiktoken")
        if importlib.util.find_spec(name)
    }
    wrong = []
    for kind in kinds:
        seconds = ours[kind]["seconds"]
        stood = {name: found[kind] for name, found in peers.items() if kind in found}
        same = all(found["ids"] == ours[kind]["ids"] for found in stood.values())
        wrong += [] if same else [kind]
        exponent = math.log(grown[kind]["seconds"] / seconds) / math.log(larger)
        best = min(stood, key=lambda name: stood[name]["seconds"], default="")
        ratio = stood[best]["seconds"] / seconds if best else None
        ROWS.append({
            "what": f"bpe 1 MB, {kind}, exponent {exponent:.2f}", "ours": seconds,
            "peer": stood[best]["seconds"] if best else None, "peer_name": best, "ratio": ratio, "ceiling": None,
            "percent": None, "equal": same, "goal": 1,
            "holds": same and seconds <= 0.020 and exponent <= 1.1 and (ratio or 1) >= 1,
        })  # fmt: skip
    assert not wrong


@pytest.mark.parametrize("size", [4096, 32768])
def test_train(paired, quick, size):
    texts = library(1_000_000 if quick else 8_000_000)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )

    def hugging():
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated")
        byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, byte_level])
        tokenizer.train_from_iterator(texts, trainer)
        return tokenizer

    def train():
        return Tokenizer.train(texts, size, PATTERN, special_tokens=(), threads=os.cpu_count())

    def equal():
        made, learnt = train(), json.loads(hugging().to_str())["model"]
        spelled = [made.token_bytes(i) for i in range(made.vocab_size)]
        pairs = [(spelled[a], spelled[b]) for a, b, _, _ in made.merges.tolist()]
        return pairs == [tuple(bytes(BYTE_OF[c] for c in part) for part in pair) for pair in learnt["merges"]]

    paired(
        f"bpe train {size} on {row(sum(map(len, texts)))}",
        ours=train,
        peer=hugging,
        peer_name="tokenizers",
        equal=equal,
        goal=5,
        rounds=5,
    )


def test_train_beside_gigabpe(quick, text_file, tmp_path):
    """CPU time on one thread, from a file. Like Hugging Face's on files it trains on lines, so the merges are those
    that ours learns from lines; what is timed is reading and training on the file as one text."""
    gigabpe = pytest.importorskip("gigabpe")
    data = Path(text_file).read_bytes()[: 2_000_000 if quick else 16_000_000]
    data = data[: data.rindex(b"\n") + 1]
    path = tmp_path / "text.txt"
    path.write_bytes(data)

    def train(texts):
        return Tokenizer.train(texts, 32768, "gpt2", special_tokens=(), threads=1)

    def peer():
        return gigabpe.train_bpe([str(path)], vocab_size=32768, pretokenizer="bytelevel", threads=1)[1]

    made = train([line + b"\n" for line in data.split(b"\n")[:-1]])
    spelled = [made.token_bytes(i) for i in range(made.vocab_size)]
    pairs = [(spelled[a], spelled[b]) for a, b, _, _ in made.merges.tolist()]
    theirs = [tuple(bytes(BYTE_OF[c] for c in part) for part in pair) for pair in peer()]
    same = (
        pairs == theirs[: len(pairs)]
    )  # it counts bytes that never occur out of its vocabulary and learns on
    sides = [(lambda: train([path])), peer]
    turns = [[cpu_seconds(side) for side in sides] for _ in range(1 if quick else 5)]
    seconds, peer_seconds = (statistics.median(side) for side in zip(*turns, strict=True))
    ROWS.append({
        "what": f"bpe train 32768 on {row(len(data))} of {Path(text_file).stem}", "ours": seconds, "peer": peer_seconds,
        "peer_name": "gigabpe", "ratio": peer_seconds / seconds, "ceiling": None, "percent": None, "equal": same,
        "goal": 3, "holds": same and peer_seconds / seconds >= 3,
    })  # fmt: skip
    assert same


def cpu_seconds(call) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


@pytest.mark.parametrize("form", ["a list", "an array"])
def test_decode(paired, form):
    ids = np.concatenate([ours().encode_array(text) for text in documents(1_000_000)[:64]])
    listed = ids.tolist()  # all that tiktoken takes
    given = listed if form == "a list" else ids
    paired(
        f"bpe decode {len(ids)} ids, {form}",
        ours=lambda: ours().decode(given),
        peer=lambda: peer().decode(listed),
        peer_name="tiktoken",
        equal=lambda: ours().decode(given) == peer().decode(listed),
        goal=2,
    )
