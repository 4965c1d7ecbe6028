"""Token shards and the pre-training loader: what is written is read, what does not fit is named, resume is exact."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyengine.data import PackedLoader, ShardWriter, TokenShards, encode_files, write_shards
from pyengine.data.loader import IGNORE
from pyengine.errors import UserError
from pyengine.text import Tokenizer

TEXTS = [f"Document {i} says {'word ' * (i % 17)}and ends." for i in range(60)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300)


@pytest.fixture
def folder(tokenizer, tmp_path):
    write_shards(tmp_path / "shards", TEXTS, tokenizer, threads=2, shard_tokens=200)
    return tmp_path / "shards"


def test_documents_come_back(tokenizer, folder):
    shards = TokenShards(folder, tokenizer, verify=True)
    assert len(shards) == len(TEXTS) and len(shards.manifest["shards"]) > 3
    assert [tokenizer.decode(document) for document in shards] == ["<|endoftext|>" + text for text in TEXTS]
    assert shards.tokens == sum(len(document) for document in shards)
    assert shards[0].dtype == np.uint16


def test_writing_twice_gives_the_same_bytes(tokenizer, folder, tmp_path):
    write_shards(tmp_path / "again", TEXTS, tokenizer, threads=1, shard_tokens=200)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_big_vocabulary_takes_four_bytes(tmp_path):
    tokens = [bytes([i]) for i in range(256)]
    big = Tokenizer(tokens, np.zeros((0, 4)), "qwen2", {"<|endoftext|>": 70_000})
    with ShardWriter(tmp_path, big) as writer:
        writer.add([70_000, 1, 2])
        writer.add([])
    shards = TokenShards(tmp_path, big)
    assert [document.tolist() for document in shards] == [[70_000, 1, 2]]
    with pytest.raises(ValueError, match="outside of the vocabulary"):
        writer.add([70_001])


def test_files_are_encoded_text_by_text(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text(TEXTS[0])
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    files = [tmp_path / "a.txt", tmp_path / "b.jsonl"]
    for progress in (True, False):
        manifest = encode_files(files, tmp_path / "out", tokenizer, progress=progress)
        assert manifest["documents"] == 1 + len(TEXTS)
        shards = TokenShards(tmp_path / "out", tokenizer)
        assert [tokenizer.decode(ids) for ids in shards] == [f"<|endoftext|>{t}" for t in (TEXTS[0], *TEXTS)]
    bare = Tokenizer([bytes([i]) for i in range(256)], np.zeros((0, 4)), "qwen2", {})
    with pytest.raises(UserError, match=r"which this vocabulary lacks"):
        encode_files(files, tmp_path / "out", bare)


def test_what_does_not_fit_is_named(tokenizer, folder):
    other = Tokenizer.train(TEXTS[:5], 290)
    with pytest.raises(UserError, match="another vocabulary"):
        TokenShards(folder, other)
    tokens = folder / "tokens-00001.bin"
    content = tokens.read_bytes()
    tokens.write_bytes(content[:-2])
    with pytest.raises(UserError, match=r"tokens-00001.bin: the shard has \d+ bytes, not"):
        TokenShards(folder)
    tokens.write_bytes(b"\x01" + content[1:])
    TokenShards(folder)
    with pytest.raises(UserError, match="tokens-00001.bin: .* changed"):
        TokenShards(folder, verify=True)
    tokens.unlink()
    with pytest.raises(UserError, match="tokens-00001.bin: the shard is missing"):
        TokenShards(folder)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="not a manifest"):
        TokenShards(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="unfinished"):
        TokenShards(folder)


def test_a_killed_writer_leaves_no_manifest(tokenizer, folder):
    with pytest.raises(RuntimeError), ShardWriter(folder, tokenizer) as writer:
        writer.add([1, 2])
        raise RuntimeError
    with pytest.raises(UserError, match="unfinished"):
        TokenShards(folder)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    tokens=st.integers(1, 40),
    context=st.none() | st.integers(1, 15),
    seed=st.integers(0, 3),
)
def test_packing(lengths, tokens, context, seed):
    """Three epochs: each token once an epoch, its target the next of its document, nothing crosses documents."""
    starts = np.cumsum([0, *lengths])
    documents = [np.arange(a + 1, b + 1) for a, b in zip(starts, starts[1:], strict=False)]  # all ids differ
    loader = PackedLoader(documents, tokens, seed, context=context, start=0)
    last = {int(document[-1]) for document in documents}
    owner = {int(i): n for n, document in enumerate(documents) for i in document}
    seen = []
    while loader.epoch < 3:
        batch = loader.next()
        assert batch.ids.shape == batch.targets.shape == batch.positions.shape == (tokens,)
        cu = batch.cu_seqlens.tolist()
        assert cu[0] == 0 and cu[-1] == tokens and all(a < b for a, b in zip(cu, cu[1:], strict=False))
        for a, b in zip(cu, cu[1:], strict=False):
            assert b - a <= (context or tokens)
            assert len({owner[int(i)] for i in batch.ids[a:b]}) == 1
            assert batch.positions[a:b].tolist() == list(range(b - a))
        for i, target in zip(batch.ids.tolist(), batch.targets.tolist(), strict=True):
            assert target == (0 if i in last else i + 1)
        seen += batch.ids.tolist()
    size = sum(lengths)
    for epoch in range(3):
        assert sorted(seen[epoch * size : (epoch + 1) * size]) == list(range(1, size + 1))


def test_without_a_start_id_the_last_token_has_no_target():
    batch = PackedLoader([np.array([5, 6])], 2).next()
    assert batch.targets.tolist() == [6, IGNORE] and batch.trained == 1


def test_epochs_are_shuffled_by_seed(folder):
    shards = TokenShards(folder)
    first, again, other = (PackedLoader(shards, 512, seed).next().ids for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_resume_is_exact(folder):
    shards = TokenShards(folder)
    loader = PackedLoader(shards, 100, seed=7, context=40)
    batches = [loader.next() for _ in range(60)]
    assert loader.epoch >= 2
    for cut in (0, 1, 13, 40):
        before = PackedLoader(shards, 100, seed=7, context=40)
        for _ in range(cut):
            before.next()
        state = json.loads(json.dumps(before.state_dict()))
        resumed = PackedLoader(shards, 100, seed=7, context=40)
        resumed.load_state_dict(state)
        for batch in batches[cut : cut + 20]:
            found = resumed.next()
            assert torch.equal(found.ids, batch.ids) and torch.equal(found.cu_seqlens, batch.cu_seqlens)
            assert torch.equal(found.targets, batch.targets)
    with pytest.raises(ValueError, match="seed 7, this one has 8"):
        PackedLoader(shards, 100, seed=8).load_state_dict(state)


def test_processes_share_the_documents():
    documents = [np.full(5, i) for i in range(7)]
    seen = []
    for rank in range(2):
        loader = PackedLoader(documents, 5, seed=3, rank=rank, world_size=2)
        while loader.epoch == 0:
            seen.append(int(loader.next().ids[0]))
    assert sorted(seen) == list(range(7))
    with pytest.raises(ValueError, match="7 documents cannot feed 8"):
        PackedLoader(documents, 5, rank=0, world_size=8)
