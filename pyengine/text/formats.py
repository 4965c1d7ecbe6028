"""Vocabulary files: Hugging Face's tokenizer.json with its companions, tiktoken rank files, GGUF.

All readers give the arguments of `Tokenizer`. In tokenizer.json bytes are spelled with 256 printable
characters (GPT-2's table below). A rank file is read in C++ (csrc/text/vocabulary.cpp).
"""

import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import gguf
from ..errors import UserError
from ..files import atomic_write, read_json, write_json
from ..kernels.bpe import BYTE_ORDER, PATTERNS

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

PRINTABLE = {b: chr(b) if i < 188 else chr(256 + i - 188) for i, b in enumerate(BYTE_ORDER)}
BYTE_OF = {char: b for b, char in PRINTABLE.items()}
TIKTOKEN = {  # what OpenAI's rank files leave unsaid: pattern, special tokens
    "r50k_base": ("gpt2", {"<|endoftext|>": 50256}),
    "p50k_base": ("gpt2", {"<|endoftext|>": 50256}),
    "cl100k_base": (
        "cl100k",
        {
            "<|endoftext|>": 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "o200k_base": ("o200k", {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}),
}
GGUF_PATTERNS = {
    "gpt-2": "gpt2",
    "smollm": "smollm",
    "llama-bpe": "llama3",
    "llama3": "llama3",
    "qwen2": "qwen2",
    "gpt-4o": "o200k",
}
# Kinds of tokens in a GGUF file.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
SPECIAL_KINDS = (CONTROL, USER_DEFINED)


MAX_IDS = 1 << 24  # no vocabulary comes near; a damaged file may name more than memory holds


def load(path: Path, **options) -> dict[str, Any]:
    """The arguments of Tokenizer from a folder or file, by what it is."""
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; expected a folder with tokenizer.json, a .tiktoken or a .gguf file"
        )
    if path.suffix == ".tiktoken":
        return load_tiktoken(path, **options)
    if path.suffix == ".gguf":
        return load_gguf(path, **options)
    return load_huggingface(path, **options)


# tokenizer.json


def load_huggingface(path: Path) -> dict[str, Any]:
    """Tokenizer's arguments from a tokenizer.json of byte-level BPE; UserError if it is none."""
    try:
        found = _byte_level_bpe(json.loads(path.read_text("utf-8")), path)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not a tokenizer.json with a BPE model ({error!r})") from None
    return {**found, "chat_template": _chat_template_of(path.parent)}


def _byte_level_bpe(data: dict[str, Any], path: Path) -> dict[str, Any]:
    model = data["model"]
    vocab, merges = model["vocab"], model["merges"]
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout", "byte_fallback"):
        if model.get(name):
            raise UserError(f"{path}: model.{name} is {model[name]!r}; only byte-level BPE can be loaded")
    added = {entry["content"]: entry["id"] for entry in data.get("added_tokens") or []}
    for token, i in (*vocab.items(), *added.items()):
        if type(i) is not int or not 0 <= i < MAX_IDS:
            raise UserError(f"{path}: token {token!r} has the id {i!r}; expected an integer below {MAX_IDS}")
    tokens = [b""] * (max([*vocab.values(), *added.values()], default=-1) + 1)
    for token, i in vocab.items():
        if token not in added:
            try:
                tokens[i] = bytes([BYTE_OF[char] for char in token])
            except KeyError:
                raise UserError(
                    f"{path}: token {token!r} is not byte-level; only byte-level BPE can be loaded"
                ) from None
    rows = []
    for rank, pair in enumerate(merges):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        try:
            rows.append((vocab[left], vocab[right], rank, vocab[left + right]))
        except KeyError as error:
            raise UserError(
                f"{path}: merge {rank} ({left!r}, {right!r}) names the unknown token {error}"
            ) from None
    return {
        "tokens": tokens,
        "merges": np.array(rows, np.uint32).reshape(-1, 4),
        "pattern": _pattern_of(data.get("pre_tokenizer"), path),
        "special_ids": added,
        "whole_pieces": bool(model.get("ignore_merges")),
        "normalizer": _normalizer_of(data.get("normalizer"), path),
    }


def _pattern_of(pre_tokenizer: dict | None, path: Path) -> str:
    """The regular expression of [Split, ByteLevel], [Digits, ByteLevel], or ByteLevel, whose own is GPT-2's."""
    steps = [pre_tokenizer] if pre_tokenizer else []
    if steps and steps[0].get("type") == "Sequence":
        steps = steps[0]["pretokenizers"]
    kinds = [step.get("type") for step in steps]
    if kinds in (["Split", "ByteLevel"], ["Digits", "ByteLevel"], ["ByteLevel"]) and not steps[-1].get(
        "add_prefix_space"
    ):
        uses_regex = steps[-1].get("use_regex", True)
        if kinds == ["ByteLevel"] and uses_regex:
            return PATTERNS["gpt2"]
        if kinds[0] == "Digits" and uses_regex and steps[0].get("individual_digits"):
            return PATTERNS["smollm"]
        if kinds[0] == "Split" and not uses_regex:
            split, regex = steps[0], steps[0]["pattern"].get("Regex")
            isolated = split["behavior"] == "Isolated" and not split.get("invert")
            removed = split["behavior"] == "Removed" and split.get("invert")
            if regex and (isolated or removed):
                return regex
    raise UserError(
        f"{path}: pre_tokenizer {json.dumps(pre_tokenizer)[:200]} is not one split before ByteLevel"
    )


def _normalizer_of(normalizer: dict | None, path: Path) -> str | None:
    if normalizer in (None, {"type": "Sequence", "normalizers": []}):
        return None
    if normalizer.get("type") == "NFC":
        return "NFC"
    raise UserError(f"{path}: normalizer {normalizer.get('type')!r} is not supported; only none or NFC")


def _chat_template_of(folder: Path) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text ({error}); fetch or save it again") from None
    config = folder / "tokenizer_config.json"
    template = read_json(config).get("chat_template") if config.is_file() else None
    return template if isinstance(template, str) else None


def save(tokenizer: "Tokenizer", path: Path) -> None:
    """Write a .gguf file, or a folder with the files that transformers and tokenizers load; each file whole or
    not at all."""
    if path.suffix == ".gguf":
        # An architecture must be named; readers of vocabularies look at none of its dimensions.
        head = {"general.architecture": "llama", "general.type": "vocab"}
        gguf.write(path, {**head, **gguf_values(tokenizer, tokenizer.vocab_size)}, [])
    else:
        _save_folder(tokenizer, path)


def _save_folder(tokenizer: "Tokenizer", folder: Path) -> None:
    names = ["".join(PRINTABLE[b] for b in tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)]
    # Readers number added tokens without gaps, so an id without a token (cl100k has some) gets a name.
    unused = {f"<|unused_{i}|>": i for i, name in enumerate(names) if not name}
    added = sorted({**tokenizer.special_ids, **unused}.items(), key=lambda item: item[1])
    special = {i for _, i in added}
    vocab = {name: i for i, name in enumerate(names) if i not in special}
    order = np.lexsort((tokenizer.merges[:, 1], tokenizer.merges[:, 0], tokenizer.merges[:, 2]))
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {
        "type": "Split",
        "pattern": {"Regex": tokenizer.pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": i, "content": name, **flags} for name, i in added],
            "normalizer": {"type": tokenizer.normalizer} if tokenizer.normalizer else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
            "post_processor": None,
            "decoder": {**byte_level, "use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": tokenizer.whole_pieces,
                "vocab": vocab,
                "merges": [[names[a], names[b]] for a, b, _, _ in tokenizer.merges[order].tolist()],
            },
        },
    )
    roles = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
    roles = {role: name for role, name in roles.items() if name in tokenizer.special_ids}
    others = [name for name in tokenizer.special_ids if name not in roles.values()]
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {str(i): {"content": name, **flags} for name, i in added},
        "additional_special_tokens": others,
        "clean_up_tokenization_spaces": False,
        **roles,
    }
    if tokenizer.chat_template:
        config["chat_template"] = tokenizer.chat_template
        with atomic_write(folder / "chat_template.jinja") as file:
            file.write(tokenizer.chat_template)
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", {**roles, "additional_special_tokens": others})


# tiktoken and GGUF


def load_tiktoken(
    path: Path, pattern: str | None = None, special_ids: dict[str, int] | None = None
) -> dict[str, Any]:
    """Tokenizer's arguments from a rank file; UserError if neither its name nor `pattern` says how text is cut."""
    known_pattern, known_special = TIKTOKEN.get(path.stem, (None, {}))
    if not (pattern := pattern or known_pattern):
        raise UserError(
            f"{path}: a rank file does not hold its pattern; give pattern= a name of {list(PATTERNS)}"
        )
    return {
        "tokens": None,
        "merges": None,
        "rank_file": path.read_bytes(),
        "pattern": pattern,
        "special_ids": known_special if special_ids is None else special_ids,
        "whole_pieces": True,
    }


def load_gguf(path: Path) -> dict[str, Any]:
    """Tokenizer's arguments from a GGUF file; UserError if its vocabulary is not byte-level BPE of a known pattern."""
    values = gguf.read(path).values

    def value(name: str, default: Any = None) -> Any:
        return values.get(f"tokenizer.{name}", default)

    if value("ggml.model") != "gpt2":
        raise UserError(
            f"{path}: the vocabulary is {value('ggml.model')!r}; only byte-level BPE ('gpt2') can be loaded"
        )
    if (pre := value("ggml.pre", "gpt-2")) not in GGUF_PATTERNS:
        raise UserError(f"{path}: pre-split {pre!r} is not known; known are {sorted(GGUF_PATTERNS)}")
    names = value("ggml.tokens", [])
    kinds = value("ggml.token_type") or [NORMAL] * len(names)
    special = {n: i for i, (n, kind) in enumerate(zip(names, kinds, strict=False)) if kind in SPECIAL_KINDS}
    unused = {n for n, kind in zip(names, kinds, strict=False) if kind == UNUSED}
    vocab = {
        name: i
        for i, name in enumerate(names)
        if name not in special and name not in unused and all(c in BYTE_OF for c in name)
    }
    tokens = [
        bytes([BYTE_OF[c] for c in name]) if vocab.get(name) == i else b"" for i, name in enumerate(names)
    ]
    rows = []
    for rank, merge in enumerate(value("ggml.merges", [])):
        left, _, right = merge.partition(" ")
        try:
            rows.append((vocab[left], vocab[right], rank, vocab[left + right]))
        except KeyError as error:
            raise UserError(f"{path}: merge {rank} ({merge!r}) names the unknown token {error}") from None
    return {
        "tokens": tokens,
        "merges": np.array(rows, np.uint32).reshape(-1, 4),
        "pattern": GGUF_PATTERNS[pre],
        "special_ids": special,
        "whole_pieces": pre in ("llama-bpe", "llama3"),
        "chat_template": value("chat_template"),
    }


def gguf_values(tokenizer: "Tokenizer", size: int) -> dict[str, Any]:
    """What a GGUF file says of a tokenizer whose ids are filled up to `size`; load_gguf reads it back.

    The chat template goes without the marks of what the assistant is trained on, which only transformers knows.
    Raises UserError for a pattern that the format has no name for.
    """
    pre = {bpe_pattern: name for name, bpe_pattern in reversed(GGUF_PATTERNS.items())}
    named = {spelled: pre[name] for name, spelled in PATTERNS.items() if name in pre}
    if tokenizer.pattern not in named or tokenizer.normalizer:
        raise UserError("GGUF has no name for this tokenizer's pattern or normalizer; it cannot be written")
    spelled = ["".join(PRINTABLE[b] for b in tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)]
    special = {i: name for name, i in tokenizer.special_ids.items()}
    names = [special.get(i) or name or f"<|unused_{i}|>" for i, name in enumerate(spelled)]
    kinds = [CONTROL if i in special else NORMAL if name else UNUSED for i, name in enumerate(spelled)]
    extra = range(len(names), size)
    order = np.lexsort((tokenizer.merges[:, 1], tokenizer.merges[:, 0], tokenizer.merges[:, 2]))
    values: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": named[tokenizer.pattern],
        "tokenizer.ggml.tokens": [*names, *(f"<|unused_{i}|>" for i in extra)],
        "tokenizer.ggml.token_type": [*kinds, *(UNUSED for _ in extra)],
        "tokenizer.ggml.merges": [f"{spelled[a]} {spelled[b]}" for a, b, _, _ in tokenizer.merges[order]],
        "tokenizer.ggml.add_bos_token": False,
    }
    roles = {"bos": "<|endoftext|>", "eos": "<|end|>", "padding": "<|pad|>"}
    for role, name in roles.items():
        if name in tokenizer.special_ids:
            values[f"tokenizer.ggml.{role}_token_id"] = tokenizer.special_ids[name]
    if tokenizer.chat_template:
        values["tokenizer.chat_template"] = plain_template(tokenizer.chat_template)
    return {name: value for name, value in values.items() if value != []}


def plain_template(template: str) -> str:
    """A chat template without its marks for a training loss, which other programs' Jinja does not know."""
    return re.sub(r"\{%-?\s*(end)?generation\s*-?%\}\s*", "", template)


# Texts to train on


def read_texts(source: str | os.PathLike | Iterable[str | bytes | os.PathLike]) -> Iterator[str | bytes]:
    """Texts of an iterable in which paths stand for the texts of that file; or of one path."""
    for item in [Path(source)] if isinstance(source, (str, os.PathLike)) else source:
        if isinstance(item, os.PathLike):
            yield from _read_file(Path(item))
        else:
            yield item


def _read_file(path: Path) -> Iterator[str | bytes]:
    if path.is_dir():
        raise UserError(f"{path}: a folder; name the text or JSONL files in it")
    if not path.exists():
        raise UserError(f"{path}: no such file; expected a text file or JSONL with a field 'text'")
    if path.suffix == ".jsonl":
        yield from _read_rows(path)
        return
    # A text file in blocks. The cut is where a line ends in a visible character and the next begins with a
    # letter: there every pattern that has a lexer begins a piece, so the pieces are those of the whole file.
    with open(path, "rb") as file:
        rest = b""
        while block := file.read(16 << 20):
            rest = rest + block if rest else block
            for reach in (1 << 12, 1 << 20):  # the last such place is near the end, as a rule
                tail = rest[-reach:]
                cuts = [match.start() + 2 for match in re.finditer(rb"[!-~]\n(?=[A-Za-z])", tail)]
                if cuts:
                    cut = len(rest) - len(tail) + cuts[-1]
                    yield rest[:cut]
                    rest = rest[cut:]
                    break
        if rest:
            yield rest


def _read_rows(path: Path) -> Iterator[str]:
    """The field "text" of each row; rows without one are left out with a warning, a file without any is refused."""
    good, bad = 0, []
    with open(path, "rb") as rows:
        for number, line in enumerate(rows, 1):
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError):
                text = None
            if isinstance(text, str):
                good += 1
                yield text
            elif line.strip():
                bad.append(number)
    if bad and not good:
        raise UserError(f"{path}:{bad[0]}: expected a JSON object with a field 'text', as in every row")
    if bad:
        left_out = f"{path}: {len(bad)} rows without a field 'text' left out, the first in line {bad[0]}"
        warnings.warn(left_out, stacklevel=2)
