"""python -m pyengine.quantize: the file holds the model and its tokenizer, and says what quantising cost."""

import json

import numpy as np
import pytest
import torch

from pyengine import gguf
from pyengine.errors import UserError
from pyengine.model import ModelConfig, Transformer, load, save
from pyengine.model import gguf as model_gguf
from pyengine.quantize import Command, documents_of, main, perplexity, quantize
from pyengine.serve import open_model
from pyengine.text import Tokenizer

TEXT = "The moon of Tavor is cold. It's 1234 km wide, isn't it?\n\nNobody has been there since 1987. " * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small random model in a Hugging Face directory, and a text."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer.train([TEXT], 320)
    tokenizer.save(folder)
    config = ModelConfig.from_depth(2, vocab_size=330, hidden_size=64, max_position_embeddings=256)
    model = Transformer(config, seed=1)
    with torch.no_grad():
        model.embedding.mul_(8)
    save(model, folder / "m", tokenizer=folder)
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": TEXT}) for _ in range(3)))
    return folder


@pytest.mark.parametrize("kind, allowed", [("F32", 1e-6), ("int8", 0.01), ("int4", 0.05), ("Q4_0", 0.1)])
def test_the_cost_is_measured(folder, tmp_path, kind, allowed, capsys):
    out = tmp_path / "m.gguf"
    assert (
        main([str(folder / "m"), "--type", kind, "--out", str(out), "--text", str(folder / "text.jsonl")])
        == 0
    )
    assert "perplexity" in capsys.readouterr().out
    _, rows = quantize(Command(folder / "m", kind, out, text=folder / "text.jsonl", tokens=2000))
    (_, size, before), (_, smaller, after) = rows
    assert abs(after / before - 1) <= allowed
    tokenizer_bytes = 20_000
    assert kind == "F32" or smaller - tokenizer_bytes < size / (3 if kind == "int8" else 4)


def test_perplexity_is_that_of_plain_torch(folder):
    model, tokenizer = load(folder / "m"), Tokenizer.load(folder / "m")
    documents = documents_of(folder / "text.jsonl", tokenizer, 700, context=256)
    assert sum(map(len, documents)) <= 701 and max(map(len, documents)) <= 256
    assert all(ids[0] == tokenizer.endoftext for ids in documents)
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "m", dtype=torch.float64)
    losses = []
    with torch.no_grad():
        for ids in documents:
            rows = torch.tensor(ids)
            losses.append(
                torch.nn.functional.cross_entropy(
                    theirs(rows[None]).logits[0, :-1], rows[1:], reduction="none"
                )
            )
    assert perplexity(model, documents) == pytest.approx(torch.cat(losses).mean().exp().item(), rel=1e-5)


def test_the_file_is_the_model_and_its_tokenizer(folder, tmp_path):
    out, _ = quantize(Command(folder / "m", "F32", tmp_path / "m.gguf"))
    ours, again = load(folder / "m"), load(out)
    assert again.config == ours.config
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), again.parameters(), strict=True))
    tokenizer, theirs = Tokenizer.load(folder / "m"), Tokenizer.load(out)
    assert theirs.special_ids == tokenizer.special_ids and theirs.vocab_size == 330
    assert theirs.encode(TEXT) == tokenizer.encode(TEXT)
    assert "generation" in tokenizer.chat_template and "endgeneration" not in theirs.chat_template
    served = open_model(out)
    asked = [{"role": "user", "content": "Who?"}]
    assert served.format.prompt(asked) == open_model(folder / "m").format.prompt(asked)


def test_pure_stores_the_embedding_alike(folder, tmp_path):
    kinds = {}
    for pure in (False, True):
        out, _ = quantize(Command(folder / "m", "int4", tmp_path / f"{pure}.gguf", pure=pure))
        kinds[pure] = gguf.read(out).tensors["token_embd.weight"].kind.name
    assert kinds == {False: "Q8_0", True: "Q4_1"}


def test_a_file_is_measured_as_it_lies(folder, tmp_path):
    first, _ = quantize(Command(folder / "m", "int8", tmp_path / "m-1.7B.gguf"))
    out, rows = quantize(Command(first, "int4"))
    assert out == tmp_path / "m-1.7B.Q4_1.gguf" and gguf.read(out).values["general.name"] == "m-1.7B"
    assert [size for _, size, _ in rows] == [first.stat().st_size, out.stat().st_size]


def test_a_folder_may_have_a_dot_in_its_name(folder, tmp_path):
    (tmp_path / "m-1.7B").symlink_to(folder / "m")
    out, _ = quantize(Command(tmp_path / "m-1.7B"))
    assert out.name == "m-1.7B.Q8_0.gguf" and gguf.read(out).values["general.name"] == "m-1.7B"


def test_mistakes_are_named(folder, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("")
    assert (
        main([str(folder / "m"), "--out", str(tmp_path / "m.gguf"), "--text", str(tmp_path / "empty.txt")])
        == 1
    )
    assert "no text to measure" in capsys.readouterr().err
    out, _ = quantize(Command(folder / "m", "int8", tmp_path / "m.gguf"))
    with pytest.raises(UserError, match="is the model itself"):
        quantize(Command(out, "int8", out))
    with pytest.raises(UserError, match="not quantised again"):
        model_gguf.save(load(out), tmp_path / "n.gguf", "Q8_0")


def test_llama_cpp_reads_it(folder, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    out, _ = quantize(Command(folder / "m", "F32", tmp_path / "m.gguf"))
    peer = llama_cpp.Llama(str(out), n_ctx=256, logits_all=True, verbose=False)
    tokenizer = Tokenizer.load(folder / "m")
    ids = tokenizer.encode(TEXT)[:100]
    assert peer.tokenize(TEXT.encode(), add_bos=False, special=False)[:100] == ids
    peer.eval(ids)
    from .model.test_hf import logits

    ours = logits(load(out), torch.tensor(ids)).numpy()
    assert np.abs(ours - np.array(peer.scores[:100])).max() < 2e-2 * np.abs(ours).max()
