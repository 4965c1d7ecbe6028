"""The tokenizer: any text comes back, specials cannot be forged, files load elsewhere with the same ids."""

import base64
import json
import os
import random
import subprocess
import sys
import warnings
from unittest.mock import patch

import numpy as np
import pytest
import tiktoken
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyengine.kernels import bpe
from pyengine.kernels.bpe import PATTERNS
from transformers import AutoTokenizer

from pyengine.data import TokenShards
from pyengine.errors import UserError
from pyengine.text import SPECIAL_TOKENS, Tokenizer, formats
from pyengine.tokenizer import main

TEXTS = [
    "The moon of Tavor is cold. It's 1234 km wide, isn't it?\n\nNobody has been there since 1987.",
    "Die Straße über den Fluss ist schön; l'été à Paris. Привет, мир! 中文字符 😀😀 e\u0301",
    "def f(x):\n    return x + 1\n\n# comment\n" * 3,
] * 4
FUZZ = settings(max_examples=100, deadline=None)
TEXT = st.lists(st.text(max_size=8) | st.sampled_from([*SPECIAL_TOKENS, " ", "\n\n", "12", "it's"])).map(
    "".join
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=400)


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return folder


@FUZZ
@given(text=TEXT)
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.count(text) == len(ids)
    assert not set(ids) & set(tokenizer.special_ids.values())
    assert tokenizer.decode(tokenizer.encode(text, "all")) == text


@FUZZ
@given(data=st.binary())
def test_any_bytes_come_back(tokenizer, data):
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data


def test_lone_surrogates(tokenizer):
    ids = tokenizer.encode("a\ud800b")
    assert tokenizer.decode(ids, errors="surrogatepass") == "a\ud800b"
    assert tokenizer.decode(ids).encode() == "a\ufffd\ufffd\ufffdb".encode()  # can be written to a file


@FUZZ
@given(text=TEXT)
def test_stream_is_whole_characters(tokenizer, text):
    stream = tokenizer.decode_stream()
    parts = [stream.push(i) for i in tokenizer.encode(text)]
    assert "".join(parts) + stream.end() == text
    assert not any("\ufffd" in part for part in parts) or "\ufffd" in text


def test_stream_of_a_cut_character(tokenizer):
    stream = tokenizer.decode_stream()
    assert stream.push(*tokenizer.encode_bytes("é".encode()[:1])) == ""
    assert stream.end() == "\ufffd"


def test_specials_only_when_allowed(tokenizer):
    text = "<|user|>hi<|end|>"
    assert tokenizer.encode(text, "all") == [tokenizer.user, *tokenizer.encode("hi"), tokenizer.end]
    assert tokenizer.encode(text, ["<|end|>"]) == [*tokenizer.encode("<|user|>hi"), tokenizer.end]
    assert (
        tokenizer.encode(text)
        == tokenizer.encode_array(text).tolist()
        == tokenizer.encode_bytes(text.encode())
    )
    with pytest.raises(UserError, match="no such special token: <.nope.>"):
        tokenizer.encode(text, ["<|nope|>"])


def test_special_ids_come_last(tokenizer):
    assert [tokenizer.special_ids[name] for name in SPECIAL_TOKENS] == list(range(392, 400))
    assert tokenizer.vocab_size == 400
    assert tokenizer.token_bytes(tokenizer.pad) == b"<|pad|>"
    for wrong in ([1, -1], [1, 400], np.array([1, 400]), torch.tensor([1, -1])):
        with pytest.raises(ValueError, match="ids must be from 0 to 399, got (1 to 400|-1 to 1)"):
            tokenizer.decode(wrong)
        with pytest.raises(ValueError, match="ids must be from 0 to 399"):
            tokenizer.decode_bytes(wrong)
    ids = tokenizer.encode("as it is")
    for form in (tuple(ids), iter(ids), torch.tensor(ids), np.array(ids, np.uint16)):
        assert tokenizer.decode(form) == "as it is"
    assert tokenizer.decode([]) == tokenizer.decode(np.array([], int)) == ""
    with pytest.raises(AttributeError, match="nonsense"):
        tokenizer.nonsense  # noqa: B018


def test_digits_are_single(tokenizer):
    assert len(tokenizer.encode("2026")) == 4


def test_batch_equals_one_by_one(tokenizer):
    # Words never met before, which wait for each other across texts, some of them twice.
    words = [
        "".join(chr(97 + i) for i in row) for row in np.random.default_rng(7).integers(26, size=(900, 9))
    ]
    texts = [
        *TEXTS,
        "",
        "<|end|>",
        "x",
        "",
        *words[:40],
        "",
        *(" ".join(words[i : i + 7]) for i in range(0, 900, 5)),
    ]
    for threads in (1, 2):
        ids, offsets = tokenizer.encode_batch(texts, threads=threads)
        assert ids.dtype == np.uint32 and offsets.dtype == np.int64
        assert [ids[a:b].tolist() for a, b in zip(offsets, offsets[1:], strict=False)] == [
            tokenizer.encode(text) for text in texts
        ]


@FUZZ
@given(text=TEXT)
def test_loads_elsewhere_with_equal_ids(tokenizer, saved, text):
    peer = tokenizers.Tokenizer.from_file(str(saved / "tokenizer.json"))
    assert peer.encode(text).ids == tokenizer.encode(text, "all")
    peer.encode_special_tokens = True
    assert peer.encode(text).ids == tokenizer.encode(text)


def test_loads_in_transformers(tokenizer, saved):
    peer = AutoTokenizer.from_pretrained(saved)
    text = "".join(TEXTS) + "<|end|> it's"
    assert peer.encode(text) == tokenizer.encode(text, "all")
    assert peer.decode(peer.encode(text)) == text
    assert (peer.eos_token_id, peer.pad_token_id) == (tokenizer.endoftext, tokenizer.pad)
    assert set(peer.all_special_tokens) == set(SPECIAL_TOKENS)


def test_save_and_load(tokenizer, saved, tmp_path):
    loaded = Tokenizer.load(saved)
    assert loaded.hash == tokenizer.hash
    assert loaded.chat_template == tokenizer.chat_template
    loaded.save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (saved / "tokenizer.json").read_bytes()


def test_other_vocabulary_has_another_hash(tokenizer):
    assert Tokenizer.train(TEXTS[:1], 300).hash != tokenizer.hash


@pytest.mark.parametrize("name", ["gpt2", "cl100k", "o200k"])
@FUZZ
@given(text=TEXT)
def test_rank_file(tmp_path_factory, name, text):
    """A tiktoken rank file: equal ids to tiktoken, and to tokenizers after saving as tokenizer.json."""
    if name not in _RANKED:
        trained = Tokenizer.train(TEXTS, 600, PATTERNS[name], special_tokens=())
        folder = tmp_path_factory.mktemp(name)
        path = folder / "vocab.tiktoken"
        ranks = {trained.token_bytes(i): i for i in range(trained.vocab_size)}
        path.write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % i for t, i in ranks.items()))
        special = {"<|endoftext|>": len(ranks) + 3}
        ours = Tokenizer.load(path, pattern=name, special_ids=special)
        ours.save(folder)
        peer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        _RANKED[name] = (
            ours,
            tiktoken.Encoding(name, pat_str=PATTERNS[name], mergeable_ranks=ranks, special_tokens=special),
            peer,
        )
    ours, tik, peer = _RANKED[name]
    assert ours.encode(text, "all") == peer.encode(text).ids
    if any("\ud800" <= c <= "\udfff" for c in text):
        return
    assert ours.encode(text) == tik.encode_ordinary(text)
    assert ours.encode(text, "all") == tik.encode(text, allowed_special="all")


_RANKED: dict[str, tuple] = {}


def test_gguf(tokenizer, tmp_path):
    gguf = pytest.importorskip("gguf")
    model = json.loads((_saved(tokenizer, tmp_path) / "tokenizer.json").read_text())["model"]
    writer = gguf.GGUFWriter(tmp_path / "vocab.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    names = [*sorted(model["vocab"], key=model["vocab"].get), *SPECIAL_TOKENS]
    writer.add_token_list(names)
    writer.add_token_types([1] * len(model["vocab"]) + [3] * len(SPECIAL_TOKENS))
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert Tokenizer.load(tmp_path / "vocab.gguf").hash == tokenizer.hash


def test_gguf_comes_back(tokenizer, tmp_path):
    """A vocabulary without a model, as llama.cpp's own reader and ours see it."""
    gguf = pytest.importorskip("gguf")
    tokenizer.save(tmp_path / "vocab.gguf")
    assert Tokenizer.load(tmp_path / "vocab.gguf").hash == tokenizer.hash
    read = gguf.GGUFReader(tmp_path / "vocab.gguf")
    assert not read.tensors
    names = read.fields["tokenizer.ggml.tokens"].contents()
    assert names[tokenizer.end] == "<|end|>" and len(names) == tokenizer.vocab_size
    assert len(read.fields["tokenizer.ggml.merges"].contents()) == len(tokenizer.merges)
    with pytest.warns(UserWarning, match="no hand-written lexer"):
        other = Tokenizer.train(["ab " * 9], 257, pattern=r"\w+|\W+", special_tokens=())
    with pytest.raises(UserError, match="GGUF has no name"):
        other.save(tmp_path / "other.gguf")
    assert not (tmp_path / "other.gguf").exists()


def _saved(tokenizer, folder):
    tokenizer.save(folder)
    return folder


def test_single_digits_are_those_of_huggingface():
    """SmolLM's two pre-splits, digits and then GPT-2's, are one pattern here."""
    digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    both = tokenizers.pre_tokenizers.Sequence([digits, byte_level])
    lexer = bpe.split_pattern(PATTERNS["smollm"])
    random_of = random.Random(5)
    for _ in range(300):
        text = "".join(random_of.choices("ab 1²x' \n\t.s٣", k=random_of.randint(1, 30)))
        theirs = ["".join(p) for p, _ in both.pre_tokenize_str(text)]
        ours = ["".join(formats.PRINTABLE[b] for b in piece) for piece in lexer.split(text)]
        assert ours == theirs, repr(text)


def test_unknown_pattern_is_slower_and_said_so():
    pattern = r"[a-z]+|\d"
    with pytest.warns(UserWarning, match="no hand-written lexer"):
        tokenizer = Tokenizer.train(TEXTS, 300, pattern, special_tokens=("<|end|>",))
    peer_like = tokenizer.encode("ab 1É<|end|>")
    assert tokenizer.decode(peer_like) == "ab 1É<|end|>"
    data = bytes(range(256))
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data
    ids, offsets = tokenizer.encode_batch(["ab", "", "c1"])
    assert offsets.tolist() == [0, tokenizer.count("ab"), tokenizer.count("ab"), len(ids)]


def test_unknown_pattern_equals_tokenizers(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = Tokenizer.train(TEXTS, 350, r"\p{L}+|\p{N}{1,2}|\s+|[^\s\p{L}\p{N}]")
    tokenizer.save(tmp_path)
    peer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in TEXTS:
        assert peer.encode(text).ids == tokenizer.encode(text)


def test_normalizer_of_qwen(tokenizer, saved, tmp_path):
    data = json.loads((saved / "tokenizer.json").read_text())
    data["normalizer"] = {"type": "NFC"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    loaded = Tokenizer.load(tmp_path)
    peer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert (
        loaded.encode("e\u0301t\u00e9")
        == peer.encode("e\u0301t\u00e9").ids
        == loaded.encode_batch(["e\u0301t\u00e9"])[0].tolist()
    )


def test_train_reads_files(tmp_path):
    (tmp_path / "a.txt").write_text(TEXTS[0] + TEXTS[1])
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": TEXTS[2]}) + "\n")
    from_files = Tokenizer.train([tmp_path / "a.txt", tmp_path / "b.jsonl"], 330)
    assert from_files.hash == Tokenizer.train([TEXTS[0] + TEXTS[1], TEXTS[2]], 330).hash


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d["model"].update(type="BPE", byte_fallback=True), "byte_fallback"),
        (lambda d: d["model"]["vocab"].update({"\u4e2d": 5}), "not byte-level"),
        (lambda d: d["model"]["merges"].append(["zz", "qq"]), "unknown token"),
        (lambda d: d.update(pre_tokenizer={"type": "Whitespace"}), "pre_tokenizer"),
        (lambda d: d.update(normalizer={"type": "Lowercase"}), "normalizer 'Lowercase'"),
        (lambda d: d.pop("model"), "not a tokenizer.json"),
        (lambda d: d["model"]["vocab"].update(a="x"), "the id 'x'; expected an integer"),
        (lambda d: d["model"]["vocab"].update(a=10**12), "the id 1000000000000; expected"),
        (lambda d: d["model"]["merges"].append("a b c"), "not a tokenizer.json"),
        (lambda d: d.update(added_tokens=[{"id": 3}]), "not a tokenizer.json"),
        (
            lambda d: d.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [1]}),
            "not a tokenizer.json",
        ),
    ],
)
def test_bad_files_are_named(saved, tmp_path, change, message):
    data = json.loads((saved / "tokenizer.json").read_text())
    change(data)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=message) as error:
        Tokenizer.load(tmp_path)
    assert str(tmp_path / "tokenizer.json") in str(error.value)


def test_mistakes_are_told(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        Tokenizer.load(tmp_path / "nothing")
    with pytest.raises(UserError, match="at least 264"):
        Tokenizer.train(TEXTS, 100)
    with pytest.raises(UserError, match="no regular expression"):
        Tokenizer.train(TEXTS, 300, "(")
    (tmp_path / "bad.jsonl").write_text('\n{"no": 1}\n')
    with pytest.raises(UserError, match=r"bad.jsonl:2: expected"):
        Tokenizer.train(tmp_path / "bad.jsonl", 300)
    (tmp_path / "mixed.jsonl").write_text('{"text": "aaaa"}\n[1]\n{"text": "aaaa"}\n')
    with pytest.warns(UserWarning, match="mixed.jsonl: 1 rows without .* in line 2"):
        assert Tokenizer.train(tmp_path / "mixed.jsonl", 300).hash == Tokenizer.train(["aaaa"] * 2, 300).hash
    (tmp_path / "x.tiktoken").write_bytes(b"YQ== 0\n!!\n")
    with pytest.raises(UserError, match=r"x.tiktoken:2"):
        Tokenizer.load(tmp_path / "x.tiktoken", pattern="gpt2")


def test_show(tokenizer):
    page = tokenizer.show("<b>é 中\n" + "x" * 3, format="html")
    assert "&lt;b&gt;" in page or "&lt;" in page and "<b>" not in page
    assert page.count("<span") == tokenizer.count("<b>é 中\nxxx")
    assert f'title="{tokenizer.encode("x")[0]}"' in tokenizer.show("x", format="html")
    assert "\x1b[" in tokenizer.show("ab") and tokenizer.show("ab").endswith("tokens")


def test_command_line(tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXTS[0] * 3)
    folder = str(tmp_path / "tok")
    assert main(["train", str(tmp_path / "text.txt"), "--vocab-size", "300", "--out", folder]) == 0
    tokenizer = Tokenizer.load(folder)
    capsys.readouterr()
    assert main(["encode", folder, "It's 12<|end|>"]) == 0
    assert json.loads(capsys.readouterr().out) == tokenizer.encode("It's 12<|end|>")
    assert main(["encode", folder, "<|end|>", "--allow-special"]) == 0
    assert json.loads(capsys.readouterr().out) == [tokenizer.end]
    assert main(["shards", folder, str(tmp_path / "text.txt"), "--out", str(tmp_path / "shards")]) == 0
    assert TokenShards(tmp_path / "shards", tokenizer).tokens == tokenizer.count(TEXTS[0] * 3) + 1
    assert main(["show", folder, "It's 12", "--html"]) == 0
    assert "<span" in capsys.readouterr().out


def test_command_line_tells_a_mistake_without_traceback(tmp_path):
    command = [sys.executable, "-m", "pyengine.tokenizer", "encode", str(tmp_path / "nowhere"), "x"]
    failed = subprocess.run(command, capture_output=True, text=True)
    assert failed.returncode == 1
    assert "no such file" in failed.stderr and "Traceback" not in failed.stderr


def test_command_line_takes_any_bytes(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tok")
    for action in ("encode", "show"):
        command = [sys.executable, "-m", "pyengine.tokenizer", action, str(tmp_path / "tok"), "-"]
        done = subprocess.run(command, input=b"ab\xff\n", capture_output=True, env={"LC_ALL": "C.UTF-8"})
        assert done.returncode == 0 and not done.stderr
        if action == "encode":
            assert tokenizer.decode_bytes(json.loads(done.stdout)) == b"ab\xff\n"
        else:
            assert rb"\xff" in done.stdout


def test_command_line_names_what_cannot_be_read_or_written(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("some text")
    text, out = str(tmp_path / "text.txt"), str(tmp_path / "out")
    for arguments, told in (
        (["train", str(tmp_path), "--out", out], "a folder; name the text or JSONL files in it"),
        (
            ["train", text, "--vocab-size", "300", "--out", text],
            "text.txt: file exists; a folder is needed there",
        ),
        (["encode", text, "x"], "text.txt: not a tokenizer.json"),
        (["train", "--out", out], "name at least one text or JSONL file to train on"),
        (["shards", out, "--out", out], "name at least one text or JSONL file to encode"),
        (["train", text, "--out", out, "--pattern", "qwen"], "pattern: there is no 'qwen'; expected gpt2, "),
        (["train", text, "--out", out, "--pattern", "(a"], "is no regular expression"),
        (["train", text, "--out", out, "--threads", "-3"], "threads = -3: expected at least 1"),
        (["train", text, "--out", out, "--min-frequency", "0"], "min_frequency = 0: expected at least 1"),
        (["shards", out, text, "--out", out, "--threads", "0"], "threads = 0: expected at least 1"),
    ):
        assert main(arguments) == 1
        assert told in (shown := capsys.readouterr().err) and shown.count("\n") == 1
    assert main(["train", text, "--vocab-size", "300", "--out", out]) == 0
    assert "(fewer than 300: no more pairs occur 2 times)" in capsys.readouterr().out


@FUZZ
@given(text=TEXT, cuts=st.lists(st.integers(0, 200), max_size=6))
def test_text_in_parts_gives_the_same_ids(tokenizer, text, cuts):
    stream, ids, cuts = tokenizer.encode_stream(), [], sorted(min(c, len(text)) for c in cuts)
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        ids += stream.push(text[start:end])
    assert ids + stream.end() == tokenizer.encode(text)


@FUZZ
@given(text=TEXT)
def test_offsets_hold_each_token(tokenizer, text):
    ids, spans = tokenizer.encode_with_offsets(text)
    assert ids.tolist() == tokenizer.encode(text)
    for i, (start, end) in zip(ids.tolist(), spans.tolist(), strict=True):
        assert tokenizer.token_bytes(i) in text[start:end].encode("utf-8", "surrogatepass")
    assert len(spans) == 0 or (spans[0, 0] == 0 and spans[-1, 1] == len(text))


def test_truncate(tokenizer):
    text = "".join(TEXTS) * 50
    for tokens in (0, 1, 77, 10**9):
        assert tokenizer.truncate(text, tokens) == tokenizer.encode(text)[:tokens]
    with pytest.raises(ValueError, match="0 or more"):
        tokenizer.truncate("a", -1)


def test_to_tiktoken(tokenizer):
    peer = tokenizer.to_tiktoken()
    text = "".join(TEXTS) + "<|end|> it's"
    assert peer.encode(text, allowed_special="all") == tokenizer.encode(text, "all")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_encoding_after_a_fork(tokenizer):
    expected = tokenizer.encode(TEXTS[1])
    child = os.fork()
    if child == 0:
        same = tokenizer.encode(TEXTS[1]) == expected and len(tokenizer.encode_batch(TEXTS, threads=2)[0]) > 0
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


@FUZZ
@given(texts=st.lists(TEXT, max_size=4))
def test_encoding_into_tensors(tokenizer, texts):
    for allowed in ((), "all", ["<|end|>"]):
        ids, offsets, handed_over = tokenizer.encode_on("cpu", texts, allowed_special=allowed)
        parts = [ids[a:b].tolist() for a, b in zip(offsets, offsets[1:], strict=False)]
        assert parts == [tokenizer.encode(text, allowed) for text in texts]
        assert handed_over == 0
        with patch("pyengine.text.tokenizer.DEVICE_BATCH", 5):  # in many parts
            again = tokenizer.encode_on("cpu", texts, allowed_special=allowed)
        assert torch.equal(again.ids, ids) and torch.equal(again.offsets, offsets)
    data = [text.encode() for text in texts]
    assert tokenizer.encode_on("cpu", data).ids.tolist() == tokenizer.encode_batch(data)[0].tolist()


def test_encoding_on_a_device_refuses_what_it_cannot_do(tokenizer):
    text, offsets = torch.zeros(3, dtype=torch.uint8), torch.tensor([0, 3])
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="there is no cuda here"):
            tokenizer.encode_on("cuda", ["a"])
    with pytest.warns(UserWarning):
        slow = Tokenizer.train(TEXTS, vocab_size=300, pattern=r"\w+|\W")
    with pytest.raises(UserError, match="hand-written lexer"):
        slow.encode_tensor(text, offsets)
    tokens = [bytes([b]) for b in range(256)]
    normal = Tokenizer(tokens, np.zeros((0, 4), np.uint32), "gpt2", {}, normalizer="NFC")
    assert normal.encode_on("cpu", ["e\u0301"]).ids.tolist() == list("\u00e9".encode())
    with pytest.raises(UserError, match="normalizes"):
        normal.encode_tensor(text, offsets)
    for wrong in (torch.tensor([0, 2]), torch.tensor([1, 3]), torch.tensor([0, 2, 1, 3]), torch.tensor([3])):
        with pytest.raises(ValueError, match="rise from 0 to 3"):
            tokenizer.encode_tensor(text, wrong)
    with pytest.raises(ValueError, match="uint8"):
        tokenizer.encode_tensor(text.float(), offsets)
    with pytest.raises(ValueError, match="int64"):
        tokenizer.encode_tensor(text, offsets.int())


def test_bytes_in_the_order_of_their_values_give_rustbpes_merges():
    rustbpe = pytest.importorskip("rustbpe")
    peer = rustbpe.Tokenizer()
    peer.train_from_iterator(iter(TEXTS), vocab_size=400, pattern=PATTERNS["llama3"])
    ours = Tokenizer.train(TEXTS, 400, "llama3", special_tokens=(), min_frequency=1, byte_order="value")
    assert [bytes(token) for token, _ in peer.get_mergeable_ranks()] == [
        ours.token_bytes(i) for i in range(400)
    ]
