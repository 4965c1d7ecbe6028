"""BPE against its oracles on the same vocabulary: tiktoken, Hugging Face tokenizers, the plain reference."""

import base64
import itertools
import json
import random
import threading
from collections import Counter

import numpy as np
import pytest
import regex
import tiktoken
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyengine.kernels import bpe
from pyengine.kernels._native import runnable
from pyengine.kernels.bpe import reference
from tokenizers import models, pre_tokenizers, trainers

from bench import bpe_unique

# Pieces of text in which the patterns' alternatives meet: contractions, runs of white space, marks, cases.
FRAGMENTS = st.sampled_from(
    [
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\u00a0",
        "\u2003",
        "\u0085",
        "'s",
        "'LL",
        "'re",
        "'\u017f",
        "'",
        "it",
        "IT",
        "McD",
    ]
    + [
        "a",
        "\u01c5",
        "\u02b0",
        "\u4e2d\u6587",
        "e\u0301",
        "\u0301",
        "1",
        "1234",
        "\u00bd",
        "\u0663",
        "!",
        "...",
        "/",
        "\u20ac",
    ]
    + ["\U0001f600", "<|end|>", "\x00", "\u200d", "\ufeff", "\u0130"]
)
TEXT = st.lists(
    FRAGMENTS | st.text(st.characters(exclude_categories=["Cn", "Cs"]), max_size=5), max_size=14
).map("".join)
FUZZ = settings(max_examples=120, deadline=None)


def huggingface_split(pattern: str):
    splitter = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    return lambda text: [piece.encode() for piece, _ in splitter.pre_tokenize_str(text)]


def vocabulary(merges: np.ndarray) -> list[bytes]:
    tokens = [bytes([b]) for b in bpe.BYTE_ORDER]
    for left, right, _, new in merges.tolist():
        assert new <= len(tokens)
        if new == len(tokens):
            tokens.append(tokens[left] + tokens[right])
    assert tokens == bpe.spell(bpe.BYTE_ORDER, merges)
    return tokens


def corpus(seed: int = 0, words: int = 3000) -> str:
    """Words of a Zipf-like law, in several scripts, with numbers, punctuation and dashes of many lengths."""
    rng = random.Random(seed)
    letters = ["aeioulnrst", "abcdefghijklmnopqrstuvwxyz", "éèüñß", "абвгдежз", "中文字符编码", "😀🎉é"]
    vocabulary = ["".join(rng.choices(rng.choice(letters), k=rng.randint(1, 9))) for _ in range(400)]
    weights = [1 / (i + 1) for i in range(400)]
    parts = []
    for word in rng.choices(vocabulary, weights, k=words):
        parts.append(
            rng.choice([" ", " ", " ", "\n", ", ", ". ", "  ", "'s ", "-" * rng.randint(1, 40), " 12345 "])
        )
        parts.append(word.title() if rng.random() < 0.2 else word)
    return "".join(parts)


@pytest.fixture(scope="module", params=list(bpe.PATTERNS))
def trained(request):
    """A vocabulary of 1000 for each pattern: (pattern, tokens, merges, encoder)."""
    pattern = bpe.PATTERNS[request.param]
    lexer = bpe.split_pattern(pattern)
    counts = bpe.WordCounts()
    counts.add_texts([corpus()], lexer)
    merges = bpe.train(counts, bpe.BYTE_ORDER, 1000)
    tokens = vocabulary(merges)
    return pattern, tokens, merges, bpe.Encoder(tokens, merges, lexer)


@pytest.fixture(scope="module")
def tik(trained):
    pattern, tokens, merges, _ = trained
    ranks = {token: i for i, token in enumerate(tokens)}
    return tiktoken.Encoding("test", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def test_classes_of_every_code_point():
    """The class table is that of tokenizers (Unicode 16): letters by case, marks, digits, spaces."""
    pattern = bpe.PATTERNS["o200k"]
    split, oracle = bpe.split_pattern(pattern).split, huggingface_split(pattern)
    inhabited = [*range(0xD800), *range(0xE000, 0x32400), *range(0xE0000, 0xE0200), *range(0xFFF00, 0x10000)]
    thinly = range(0x32400, 0x110000, 61)
    for codes in (inhabited, thinly):
        for start in range(0, len(codes), 4096):
            text = "".join(f"a{chr(c)}Bb1{chr(c)}" for c in codes[start : start + 4096])
            assert split(text) == oracle(text), hex(codes[start])


@pytest.mark.parametrize("name", list(bpe.PATTERNS))
@FUZZ
@given(TEXT)
@example("d'lLab E'vE'rE 'Ll")  # a contraction in which the case changes
def test_split_equals_regular_expression(name, text):
    pattern = bpe.PATTERNS[name]
    assert bpe.split_pattern(pattern).split(text) == huggingface_split(pattern)(text)


TIKTOKEN_SPELLINGS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
}


@pytest.mark.parametrize("name", list(TIKTOKEN_SPELLINGS))
@FUZZ
@given(TEXT)
def test_tiktokens_own_spelling_is_the_same_pattern(name, text):
    spelling = TIKTOKEN_SPELLINGS[name]
    assert bpe.portable(spelling) == bpe.portable(name) == bpe.PATTERNS[name]
    assert bpe.split_pattern(spelling).split(text) == reference.split(text, spelling)


@FUZZ
@given(text=TEXT)
def test_encode_equals_tiktoken(trained, tik, text):
    encoder = trained[3]
    assert encoder.encode(text).tolist() == tik.encode_ordinary(text)
    assert encoder.encode_list(text) == tik.encode_ordinary(text)


def test_encode_equals_tiktoken_on_long_text(trained, tik):
    text = corpus(seed=1, words=20000)
    for _ in range(2):  # the cache cold, then warm
        assert trained[3].encode(text).tolist() == tik.encode_ordinary(text)


@pytest.mark.parametrize("piece", ["a", "ab", "é", "中文字", "-", " ", "\n", "aA", "1", "😀"])
def test_long_single_pieces(trained, tik, piece):
    """Above 64 bytes a piece is merged by a heap: equal to the scan, and to tiktoken."""
    for size in (60, 64, 65, 66, 1000):
        text = piece * size
        assert trained[3].encode(text).tolist() == tik.encode_ordinary(text)


def test_long_pieces_of_cjk_are_not_cut(trained, tik):
    """Up to a kilobyte they are encoded in parts, above it in windows: the same ids."""
    rng = random.Random(4)
    for size in (340, 341, 342, 343, 2000):
        text = "".join(rng.choices("中文字天地玄黄、日本語", k=size))
        assert trained[3].encode(text).tolist() == tik.encode_ordinary(text)


def test_sentences_of_cjk_fill_batches(trained, tik):
    """More parts than a batch holds, of one piece or of many; characters of three and four bytes with others between
    them; whole pieces before, between and behind those that are cut."""
    rng = random.Random(5)
    for size in (3, 6, 12, 40, 160, 320):
        for letters in ("中文字天地玄黄日本語", "中文字𠀀𠀁天", "中文字éa天日"):
            sentences = ["".join(rng.choices(letters, k=rng.randint(1, size))) for _ in range(6000 // size)]
            text = "".join(sentence + rng.choice(["、", " ", "it is. "]) for sentence in sentences)
            for _ in range(2):
                assert trained[3].encode(text).tolist() == tik.encode_ordinary(text)


def test_a_memory_that_overflows_changes_nothing(trained, tik):
    """More pieces, short and long, than the memory of pieces has room for, met again and again in one batch."""
    rng = random.Random(7)
    sizes = [rng.choice([2, 5, 9, 15, 16, 30, 70]) for _ in range(40000)]
    words = ["".join(rng.choices("abcdefgh", k=size)) for size in sizes]
    text = " ".join(word for i in range(0, len(words), 20) for word in words[i : i + 20] * 2)
    for _ in range(3):  # a text of new pieces is remembered when it comes again
        assert trained[3].encode(text).tolist() == tik.encode_ordinary(text)


def test_a_piece_whose_ids_were_lost_is_merged_again():
    """Short pieces of many ids say where these are; 250,000 of them overwrite each other there, while both tables
    are doubled. Then texts of which all or some pieces are within the last 16 bytes."""
    counts = bpe.WordCounts()
    counts.add_words({b"zz": 2})
    merges = bpe.train(counts, bpe.BYTE_ORDER, 300)  # that of the two alone
    tokens = vocabulary(merges)
    encoder = bpe.Encoder(tokens, merges, bpe.split_pattern("qwen2"))
    rng = random.Random(11)
    words = [b"zz" + bytes(rng.choices(b"abcdefgh", k=rng.randint(4, 12))) for _ in range(250_000)]
    text = b" ".join(words)
    ids = np.array([tokens.index(bytes([b])) for b in range(256)], np.uint32)

    def expected(part):
        part = np.frombuffer(part.replace(b"zz", b"Z"), np.uint8)
        return np.where(part == ord("Z"), np.uint32(256), ids[part])

    assert tokens[256:] == [b"zz"]
    for _ in range(4):  # remembered from the second on
        assert np.array_equal(encoder.encode(text), expected(text))
    for size in range(40):
        assert np.array_equal(encoder.encode(text[:size]), expected(text[:size]))


@pytest.mark.parametrize("first", [300, (1 << 16) - 8, (1 << 20) - 8])
def test_pieces_of_a_few_ids_of_any_size(first):
    """Words of 2 to 13 ids, met again and again: up to four lie in a slot as they are, five and six in 20 bits each
    where they fit, others elsewhere."""
    ranks = {bytes([b]): b if not 97 <= b < 122 else first + b - 97 for b in range(256)} | {b"zz": 256}
    encoder = bpe.Encoder.from_ranks(rank_file(ranks), bpe.split_pattern("qwen2"))
    rng = random.Random(13)
    words = [b"zz" + bytes(rng.choices(range(97, 122), k=rng.randint(1, 12))) for _ in range(600)]
    expected = [[256] + [ranks[bytes([b])] for b in word[2:]] for word in words]
    for _ in range(3):
        order = rng.choices(range(600), k=6000)
        text = b",".join(words[i] for i in order)
        pieces = [i for i in order for i in expected[i] + [ranks[b","]]][:-1]
        assert encoder.encode(text).tolist() == pieces


def test_long_rules_are_remembered(trained, tik):
    """Pieces of 50 to 130 bytes that are few ids, up to and beyond what two cache lines hold, several in a batch."""
    rng = random.Random(15)
    rules = [
        rng.choice("-=*~") * size + rng.choice(["", "!", "---!"]) for size in range(50, 131) for _ in range(2)
    ]
    for _ in range(3):
        text = " a ".join(rng.choices(rules, k=400))
        assert trained[3].encode(text).tolist() == tik.encode_ordinary(text)


def test_new_pieces_are_merged_without_memory(trained, tik):
    """Words of all sizes that were never met, which fill lanes to their last place; the same again, known by now in
    part; and among others."""
    rng = random.Random(12)
    kinds = ["abcdefgh", "etaoin", "ABCD", "éàüß", "中文字天", "012", "-+*/", "\u0301\u0302"]
    sizes = [rng.choice([1, 2, 3, 5, 8, 13, 20, 30, 31, 60, 61, 62, 63, 90]) for _ in range(8000)]
    words = ["".join(rng.choices(rng.choice(kinds), k=size)) for size in sizes]
    new, known = " ".join(words), corpus(seed=2, words=2000)
    for text in (new, new[:80000] + known + new[80000:], new):
        assert trained[3].encode(text).tolist() == tik.encode_ordinary(text)
    tokens, merges = trained[1:3]
    fresh = bpe.Encoder(tokens, merges, bpe.split_pattern(trained[0]))
    for texts in (words[:6000], words[6000:]):  # met as texts of their own
        ids, offsets = fresh.encode_batch(texts)
        assert [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)] == tik.encode_ordinary_batch(texts)


@FUZZ
@given(points=st.lists(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60))
def test_pieces_in_which_nothing_merges(trained, tik, points):
    """They are their bytes, and are not remembered: alone, again, beside others, and longer than a slot."""
    rare = "".join(points)
    for text in (rare, rare * 2, "the " + rare + " the", rare[:5], rare[:3] + "'s", "\u0800\u0800" + rare):
        assert trained[3].encode(text).tolist() == tik.encode_ordinary(text)


def test_words_never_met_before_neither_grow_memory_nor_slow_it():
    """The short form of bench/bpe_unique.py: 24 MB, of which 5 fill the memory of pieces."""
    lexer, counts = bpe.split_pattern("qwen2"), bpe.WordCounts()
    counts.add_texts([corpus()], lexer)
    merges = bpe.train(counts, bpe.BYTE_ORDER, 1000)
    rows = bpe_unique.measure(bpe.Encoder(vocabulary(merges), merges, lexer), steps=4, size=600_000)
    assert max(memory for _, memory in rows) < rows[1][1] + (16 << 20)
    assert min(rate for rate, _ in rows) > rows[0][0] / 3  # far from what growth would do; busy machines vary


def test_long_piece_is_not_quadratic(trained):
    encoder = trained[3]
    random_letters = "".join(random.Random(3).choices("abcdefghij", k=1 << 20))
    for text in ("a" * (1 << 20), random_letters):  # quadratic work would take minutes
        ids = encoder.encode(text)
        assert b"".join(trained[1][i] for i in ids) == text.encode()


@FUZZ
@given(
    data=st.binary(max_size=60) | st.lists(st.binary(max_size=4) | FRAGMENTS.map(str.encode)).map(b"".join)
)
def test_any_bytes_come_back(trained, data):
    _, tokens, _, encoder = trained
    assert b"".join(tokens[i] for i in encoder.encode(data)) == data


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=40), st.data())
def test_decoder_joins_the_bytes_of_tokens(tokens, data):
    ids = data.draw(st.lists(st.integers(0, len(tokens) - 1), max_size=60))
    expected = b"".join(tokens[i] for i in ids)
    kinds = [np.array(ids, kind) for kind in ("u1", "u2", "u4", "u8", "i4", "i8", ">i4")]
    apart = np.repeat(np.array(ids, np.uint32), 2)[::2]
    for isa in runnable():
        decoder = bpe.load_isa(isa).Decoder(tokens)
        assert decoder.size == len(tokens)
        for given_ids in (ids, tuple(ids), apart, *kinds):
            assert decoder.bytes(given_ids) == expected
            assert decoder.text(given_ids) == expected.decode("utf-8", "replace")


@pytest.mark.parametrize("wrong", [-1, 2, 1 << 40, 1 << 70, -(1 << 70)])
def test_decoder_refuses_what_is_no_id(wrong):
    decoder = bpe.Decoder([b"a", b"b"])
    forms = [[0, wrong], (wrong,)]
    if abs(wrong) < 1 << 62:
        forms += [np.array([0, wrong], np.int64)]
    if abs(wrong) < 1 << 30:
        forms += [np.array([wrong], np.int32)]
    for ids in forms:
        with pytest.raises(IndexError):
            decoder.bytes(ids)
    for ids in ([0.0], np.zeros(1), np.zeros((1, 1), np.uint32), np.uint32(0).reshape(()), "0", 7):
        with pytest.raises(TypeError):
            decoder.text(ids)
    with pytest.raises(TypeError, match="tokens must be bytes"):
        bpe.Decoder(["a"])


def test_lone_surrogates_are_three_bytes(trained):
    _, tokens, _, encoder = trained
    text = "a\ud800b \udc00"
    assert b"".join(tokens[i] for i in encoder.encode(text)).decode("utf-8", "surrogatepass") == text


def test_batch_equals_serial(trained):
    encoder = trained[3]
    texts = [corpus(seed, words=seed * 7) for seed in range(60)] + ["", "x", ""]
    serial = [encoder.encode(text).tolist() for text in texts]
    for threads in (1, 2, 5):
        ids, offsets = encoder.encode_batch(texts, threads=threads)
        assert [ids[a:b].tolist() for a, b in zip(offsets, offsets[1:], strict=False)] == serial
    ids, offsets = encoder.encode_batch([], threads=2)
    assert ids.size == 0 and offsets.tolist() == [0]


def test_ids_of_a_batch_by_many_threads_stand_in_order(trained):
    """Many runs of texts, of which threads end some before those in front of them; and of more ids than a batch has
    room for before they are counted, almost one for each byte."""
    encoder, rng = trained[3], random.Random(17)
    words = corpus(seed=3, words=4000).encode()
    texts = [words[: rng.choice((100, 4000, len(words)))] for _ in range(60)]
    rare = [rng.randbytes(rng.choice((0, 3000, 40_000))) for _ in range(60)]
    for batch in (texts, rare, [text for pair in zip(texts, rare, strict=True) for text in pair]):
        expected = [encoder.encode(text) for text in batch]
        for threads in (2, 3, 5):
            ids, offsets = encoder.encode_batch(batch, threads=threads)
            assert np.array_equal(ids, np.concatenate(expected))
            assert np.array_equal(np.diff(offsets), list(map(len, expected)))


def test_many_python_threads_share_an_encoder(trained):
    encoder, text = trained[3], corpus(5)
    expected, seen = encoder.encode(text).tolist(), []
    threads = [threading.Thread(target=lambda: seen.append(encoder.encode(text).tolist())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [expected] * 8


@pytest.mark.parametrize("name", ["gpt2", "llama3", "qwen2"])
@pytest.mark.parametrize("seed", [0, 1])
def test_train_equals_huggingface(name, seed):
    pattern = bpe.PATTERNS[name]
    rng = random.Random(seed)
    texts = [
        corpus(seed),
        "".join(rng.choices("ab", k=3000)),
        " ".join("a" * rng.randint(1, 90) for _ in range(200)),
    ]
    assert_same_training(texts, pattern, 1500)


@FUZZ
@given(texts=st.lists(st.text(alphabet="aab ", max_size=40), max_size=8), frequency=st.integers(0, 3))
def test_train_equals_huggingface_on_few_letters(texts, frequency):
    """Runs of few letters spell one token in two ways, and form a merged pair anew."""
    assert_same_training(texts, bpe.PATTERNS["gpt2"], 290, frequency)


@pytest.mark.parametrize(
    ("letters", "size", "frequency"), [("ab", 600, 0), ("abcdefgh", 1100, 2), ("ab", 90000, 0)]
)
def test_train_equals_huggingface_with_more_words_than_tokens(letters, size, frequency):
    """Then rare pairs are left out; the last case is the other one, and runs out of pairs."""
    rng = random.Random(size)
    words = sorted({"".join(rng.choices(letters, k=rng.randint(1, 14))) for _ in range(1500)})
    rng.shuffle(words)
    texts = [f"{word} " * (3 + 4000 // (rank + 20)) for rank, word in enumerate(words)]
    assert_same_training(texts, bpe.PATTERNS["gpt2"], size, frequency)


def test_counts_of_more_words_than_the_table_of_short_ones_holds():
    rng = random.Random(2)
    words = ["".join(rng.choices("abcdefghijkl", k=rng.randint(1, 17))) for _ in range(300000)]
    text = " ".join(words + words[::7])
    lexer = bpe.split_pattern("gpt2")
    counts, threaded = bpe.WordCounts(), bpe.WordCounts()
    counts.add_texts([text], lexer)
    threaded.add_texts([text[: len(text) // 2], text[len(text) // 2 :]], lexer, threads=2)
    expected = Counter(lexer.split(text))
    assert counts.items() == expected
    assert threaded.items() == Counter(lexer.split(text[: len(text) // 2])) + Counter(
        lexer.split(text[len(text) // 2 :])
    )


def assert_same_training(texts: list[str], pattern: str, size: int, frequency: int = 0) -> None:
    peer = tokenizers.Tokenizer(models.BPE())
    peer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=frequency, initial_alphabet=alphabet, show_progress=False
    )
    peer.train_from_iterator(texts, trainer)
    counts = bpe.WordCounts()
    counts.add_texts(texts, bpe.split_pattern(pattern), threads=2)
    merges = bpe.train(counts, bpe.BYTE_ORDER, size, frequency)
    tokens = vocabulary(merges)
    expected = [tuple(pair) for pair in json.loads(peer.to_str())["model"]["merges"]]
    shown = [byte_level(token) for token in tokens]
    assert [(shown[a], shown[b]) for a, b, _, _ in merges.tolist()] == expected
    assert {token: i for i, token in enumerate(shown)} == peer.get_vocab()


def byte_level(token: bytes) -> str:
    """Bytes as the printable characters of GPT-2's byte-level vocabularies."""
    rest = {b: chr(256 + i) for i, b in enumerate(bpe.BYTE_ORDER[188:])}
    return "".join(rest.get(b, chr(b)) for b in token)


@settings(max_examples=60, deadline=None)
@given(text=TEXT, training=TEXT)
def test_reference(text, training):
    pattern = bpe.PATTERNS["qwen2"]
    words = Counter(reference.split(training, pattern))
    counts = bpe.WordCounts()
    counts.add_words(dict(words))
    assert counts.items() == words
    merges = bpe.train(counts, bpe.BYTE_ORDER, 270)
    assert [tuple(row[:2]) for row in merges.tolist()] == reference.train(words, 270)
    encoder = bpe.Encoder(vocabulary(merges), merges, bpe.split_pattern(pattern))
    pairs = [tuple(row[:2]) for row in merges.tolist()]
    ids = reference.encode(text, pattern, pairs)
    assert encoder.encode(text).tolist() == ids
    assert reference.decode(ids, pairs) == text


def test_a_part_is_not_taken_for_a_token_that_only_whole_pieces_are():
    """Tokens that no merge reaches stand for pieces alone, wherever a long piece may be cut."""
    tokens = [*(bytes([b]) for b in range(256)), "中文".encode()]
    ranks = {token: i for i, token in enumerate(tokens)}
    peer = tiktoken.Encoding("t", pat_str=bpe.PATTERNS["gpt2"], mergeable_ranks=ranks, special_tokens={})
    lexer = bpe.split_pattern("gpt2")
    encoders = [
        bpe.Encoder(tokens, np.zeros((0, 4), np.uint32), lexer, whole_pieces=True),
        bpe.Encoder.from_ranks(rank_file(ranks), lexer),
    ]
    for text in ("中文", "中文字字", "中文字字字字字字 中文"):
        for encoder in encoders:
            assert encoder.encode(text).tolist() == peer.encode_ordinary(text)


def test_a_byte_without_a_token_is_dropped():
    """And its neighbours merge, as in Hugging Face's."""
    han = "\u4e2d\u6587"
    tokens = [b"a", b"b", b"ab", b"-", *(bytes([byte]) for byte in han.encode())]
    encoder = bpe.Encoder(tokens, np.array([[0, 1, 0, 2]]), bpe.split_pattern(bpe.PATTERNS["gpt2"]))
    assert encoder.encode("ab").tolist() == [2]
    assert encoder.encode("x").tolist() == []
    for _ in range(2):  # the second time by memory
        assert encoder.encode("axb").tolist() == [2]
        assert encoder.encode("xaxxbx-").tolist() == [2, 3]
        assert encoder.encode("a\x04b").tolist() == [0, 1]  # three pieces
        for times in (7, 20, 40, 90, 2000):  # each size has a way of merging of its own
            assert encoder.encode("axb" * times).tolist() == [2] * times
    for text in (han * 9 + "x" + han, han + "x" * 9 + han, "ax" + han + "xb"):
        kept = [tokens.index(bytes([byte])) for byte in text.replace("x", "").encode()]
        assert encoder.encode(text).tolist() == kept


def test_unknown_pattern_has_no_lexer():
    assert bpe.split_pattern(r"\w+|\W") is None
    assert regex.findall(r"\w+|\W", "ab c") == ["ab", " ", "c"]


LONG = st.lists(st.tuples(FRAGMENTS, st.integers(1, 9)), max_size=60).map(
    lambda parts: "".join(fragment * times for fragment, times in parts)
)


# First and later bytes beside which UTF-8 ends to be valid, and characters of several bytes, some of them cut.
ODD = st.lists(
    st.sampled_from(
        [bytes([byte]) for byte in b"\x80\x8f\x90\x9f\xa0\xbf\xc0\xc1\xc2\xe0\xed\xf0\xf4\xf5\xff"]
    )
    | FRAGMENTS.map(str.encode)
    | st.characters(exclude_categories=["Cs"]).map(str.encode)
    | st.characters(categories=["Nd", "Nl", "No"]).map(str.encode)
    | st.characters(min_codepoint=0x800).map(lambda c: c.encode("utf-8", "surrogatepass")[:-1]),
    max_size=100,
).map(b"".join)


@pytest.mark.parametrize("name", list(bpe.PATTERNS))
@FUZZ
@given(text=LONG, place=st.integers(0, 10**6), byte=st.integers(0, 255), odd=ODD)
def test_every_instruction_set_cuts_the_same(name, text, place, byte, odd):
    """Blocks of 64 bytes against one character after the other, on texts with valid and invalid UTF-8."""
    texts = [text.encode(), bytearray(text.encode()), odd]
    if text:
        texts[1][place % len(texts[1])] = byte
    modules = [bpe.load_isa(isa) for isa in runnable()]
    for data in map(bytes, texts):
        first, *others = [module.Pattern(*bpe._LEXERS[name]).split(data) for module in modules]
        assert all(pieces == first for pieces in others)
        assert b"".join(first) == data


@pytest.mark.parametrize("name", list(bpe.PATTERNS))
def test_words_longer_than_a_block(name):
    """Letters of several kinds for up to four blocks, behind and before all that could part or end them."""
    modules = [bpe.load_isa(isa) for isa in runnable()]
    rng = random.Random(14)
    kinds = ["中文字", "אבג", "あア", "ab", "カa", "中B", "\u0915\u0916"]
    beside = [
        "",
        " ",
        "\n",
        "。",
        "'",
        "'s",
        "'LL",
        "'ſ",
        "a",
        "aB",
        "AB",
        "ß",
        "1",
        "\u0301",
        "क\u093f",
        "!\n",
    ]
    for _ in range(1500):
        runs = [
            "".join(rng.choices(rng.choice(kinds), k=rng.randint(1, 90))) for _ in range(rng.randint(1, 3))
        ]
        data = "".join(rng.choice(beside) + run + rng.choice(beside) for run in runs).encode()
        pieces, *others = [module.Pattern(*bpe._LEXERS[name]).split(data) for module in modules]
        assert all(other == pieces for other in others), data


@pytest.mark.parametrize("name", list(bpe.PATTERNS))
def test_every_instruction_set_knows_every_character(name):
    """Each character of the basic plane between two of its page, as blocks tell classes by page."""
    modules = [bpe.load_isa(isa) for isa in runnable()]
    for first in range(0, 0x10000, 1024):
        points = [point for point in range(first, first + 1024) if not 0xD800 <= point < 0xE000]
        data = "".join(
            f"{chr(a)}{chr(b)}中 {chr(a)}" for a, b in zip(points, points[::-1], strict=True)
        ).encode()
        pieces, *others = [module.Pattern(*bpe._LEXERS[name]).split(data) for module in modules]
        assert all(other == pieces for other in others), hex(first)


@settings(max_examples=60, deadline=None)
@given(
    letters=st.sampled_from(["ab", "abcdefghij", "-", " \n", "中文字符", "あいう中"]),
    size=st.integers(1, 3000),
    runs=st.integers(0, 3),
    seed=st.integers(0, 10**6),
)
@example(letters="ab", size=736, runs=2, seed=1164)  # a window joined behind one that was itself joined late
def test_windows_are_joined_right(trained, tik, letters, size, runs, seed):
    """Windows that overlap in a shared token, and, in runs of one character, windows that do not."""
    rng = random.Random(seed)
    text = "".join(rng.choices(letters, k=size))
    for _ in range(runs):
        place = rng.randint(0, len(text))
        text = text[:place] + rng.choice(letters) * rng.randint(1, 400) + text[place:]
    assert trained[3].encode(text).tolist() == tik.encode_ordinary(text)


def test_pieces_of_a_few_windows_share_lanes(trained, tik):
    """Of every number of windows up to more than there are lanes; some of runs that no window joins; one behind the
    other and among words that fill what lanes leave; first by way of the memory of pieces, then, once thousands of
    words were new, without it."""
    rng = random.Random(13)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(5, 9))) for _ in range(6000)]
    longs = []
    for size in range(56, 860, 3):
        kind = rng.choice(["abcdefghij", "ab", "éàüß", "中文字天", "ABCD"])
        piece = "".join(rng.choices(kind, k=size // len(kind[0].encode())))
        place = rng.randint(0, len(piece))
        longs.append(piece[:place] + rng.choice(kind) * rng.choice((0, 0, 40, 200)) + piece[place:])
    longs += longs[::20]  # the same twice in a batch
    rng.shuffle(longs)
    text = " ".join(longs) + " " + " ".join(longs[i] + " " + words[i] for i in range(len(longs)))
    for part in (text, " ".join(words), text.swapcase()):
        assert trained[3].encode(part).tolist() == tik.encode_ordinary(part)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text("中文字符编码あいの、é", min_size=1, max_size=12), min_size=1, max_size=30), st.data()
)
def test_cjk_is_cut_where_nothing_merges(words, data):
    """Vocabularies with tokens that span characters, or parts of them, against tiktoken."""
    lexer = bpe.split_pattern(bpe.PATTERNS["o200k"])
    counts = bpe.WordCounts()
    counts.add_texts(words * 3, lexer)
    merges = bpe.train(counts, bpe.BYTE_ORDER, 330)
    ranks = {token: i for i, token in enumerate(vocabulary(merges))}
    peer = tiktoken.Encoding("t", pat_str=bpe.PATTERNS["o200k"], mergeable_ranks=ranks, special_tokens={})
    encoder = bpe.Encoder.from_ranks(rank_file(ranks), lexer)
    text = "".join(data.draw(st.lists(st.sampled_from(words), max_size=20)))
    for _ in range(2):
        assert encoder.encode(text).tolist() == peer.encode_ordinary(text)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text("abc", min_size=2, max_size=5), unique=True, max_size=12), st.text("abc", max_size=90)
)
def test_rank_files_of_any_order(words, text):
    """Tokens whose parts come later, that are never reached, or spelled in several ways."""
    ranks = {bytes([b]): i for i, b in enumerate(bpe.BYTE_ORDER)}
    ranks |= {word.encode(): 256 + i for i, word in enumerate(words)}
    peer = tiktoken.Encoding("t", pat_str=bpe.PATTERNS["gpt2"], mergeable_ranks=ranks, special_tokens={})
    encoder = bpe.Encoder.from_ranks(rank_file(ranks), bpe.split_pattern("gpt2"))
    assert encoder.encode(text).tolist() == peer.encode_ordinary(text)


def rank_file(ranks: dict[bytes, int]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())


def test_merge_lists_of_any_order():
    """The same for merge lists, against Hugging Face tokenizers."""
    rng = random.Random(4)
    for _ in range(40):
        tokens, merges = [*"abc"], []
        for _ in range(rng.randint(1, 12)):
            pair = rng.choice(tokens), rng.choice(tokens)
            merges.append(pair)
            tokens += [t for t in ["".join(pair)] if t not in tokens]
        rng.shuffle(merges)
        merges = list(dict.fromkeys(merges))
        ids = {token: i for i, token in enumerate(tokens)}
        peer = tokenizers.Tokenizer(models.BPE(ids, merges))
        rows = [[ids[a], ids[b], i, ids[a + b]] for i, (a, b) in enumerate(merges)]
        encoder = bpe.Encoder([t.encode() for t in tokens], np.array(rows), bpe.split_pattern("gpt2"))
        for size in (3, 10, 40, 150):
            text = "".join(rng.choices("abc", k=size))
            assert encoder.encode(text).tolist() == peer.encode(text).ids, (merges, text)


def test_bad_arguments_are_refused():
    lexer = bpe.split_pattern(bpe.PATTERNS["qwen2"])
    none = np.zeros((0, 4), np.uint32)
    encoder = bpe.Encoder([bytes([b]) for b in range(256)], none, lexer)
    with pytest.raises(TypeError, match="str or bytes, not int"):
        encoder.encode(3)
    with pytest.raises(ValueError, match="outside of the vocabulary"):
        bpe.Encoder([bytes([b]) for b in range(256)], np.array([[0, 1, 0, 256]]), lexer)
    with pytest.raises(ValueError, match="no earlier merge"):
        bpe.spell(bytes(range(256)), np.array([[0, 257, 0, 256]], np.uint32))
