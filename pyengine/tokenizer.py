"""The tokenizer on the command line.

python -m pyengine.tokenizer train corpus.txt pages.jsonl --vocab-size 4096 --out tokenizer
python -m pyengine.tokenizer encode tokenizer "some text"     # ids as JSON; text "-" reads standard input
python -m pyengine.tokenizer shards tokenizer corpus.txt pages.jsonl --out shards   # ids as memory-mapped files
python -m pyengine.tokenizer show tokenizer "some text"       # coloured by token; --html for a page fragment
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from . import command
from .data import encode_files
from .errors import UserError
from .kernels.bpe import PATTERNS
from .ranges import AT_LEAST_1, checked
from .text import Tokenizer


@checked
def train(
    files: tyro.conf.Positional[tuple[Path, ...]],
    /,
    out: Path,
    vocab_size: int = 4096,
    pattern: str = "qwen2",
    min_frequency: Annotated[int, AT_LEAST_1] = 2,
    threads: Annotated[int | None, AT_LEAST_1] = None,
) -> None:
    """Learn a vocabulary from text files and JSONL files with a field "text".

    Args:
        files: text files, or JSONL whose rows hold "text"
        out: folder to write (tokenizer.json and its companions)
        vocab_size: number of ids, special tokens included
        pattern: pre-split: gpt2, smollm, llama3, cl100k, o200k, qwen2, or a regular expression
        min_frequency: merge no pair that occurs less often
        threads: all processors by default
    """
    if not files:
        raise UserError("name at least one text or JSONL file to train on")
    if pattern not in PATTERNS and pattern.isalnum():
        raise UserError(
            f"pattern: there is no {pattern!r}; expected {', '.join(PATTERNS)}, or a regular expression"
        )
    start = time.perf_counter()
    tokenizer = Tokenizer.train(
        list(files), vocab_size, pattern, min_frequency=min_frequency, threads=threads
    )
    tokenizer.save(out)
    size = sum(file.stat().st_size for file in files)
    fewer = f" (fewer than {vocab_size}: no more pairs occur {min_frequency} times)"
    print(
        f"{out}: {tokenizer.vocab_size} ids{fewer if tokenizer.vocab_size < vocab_size else ''} "
        f"from {size / 1e6:.1f} MB in {time.perf_counter() - start:.1f} s"
    )


def encode(
    tokenizer: tyro.conf.Positional[Path], text: tyro.conf.Positional[str], /, allow_special: bool = False
) -> None:
    """Print the ids of a text as a JSON list ("-": standard input).

    Args:
        tokenizer: folder or file of the vocabulary
        text: the text, or - for standard input
        allow_special: let names of special tokens become their ids
    """
    loaded, given = Tokenizer.load(tokenizer), _text(text)
    if isinstance(given, str):
        ids = loaded.encode(given, "all" if allow_special else ())
    elif allow_special:
        raise UserError("--allow-special needs UTF-8 text, and this is none; encode it without the flag")
    else:
        ids = loaded.encode_bytes(given)
    print(json.dumps(ids))


@checked
def shards(
    tokenizer: tyro.conf.Positional[Path],
    files: tyro.conf.Positional[tuple[Path, ...]],
    /,
    out: Path,
    threads: Annotated[int | None, AT_LEAST_1] = None,
) -> None:
    """Encode text files, and JSONL files with a field "text", into token shards, with a progress bar.

    Args:
        tokenizer: folder or file of the vocabulary; it must have <|endoftext|>
        files: text files, or JSONL whose rows hold "text"
        out: folder to write
        threads: all processors by default
    """
    if not files:
        raise UserError("name at least one text or JSONL file to encode")
    manifest = encode_files(files, out, Tokenizer.load(tokenizer), threads, progress=sys.stderr.isatty())
    print(f"{out}: {manifest['tokens']} tokens in {manifest['documents']} documents")


def show(
    tokenizer: tyro.conf.Positional[Path], text: tyro.conf.Positional[str], /, html: bool = False
) -> None:
    """Print a text coloured by token ("-": standard input).

    Args:
        tokenizer: folder or file of the vocabulary
        text: the text, or - for standard input
        html: an HTML fragment instead of terminal colours
    """
    loaded, given = Tokenizer.load(tokenizer), _text(text)
    shown = loaded.encode_bytes(given) if isinstance(given, bytes) else given
    print(loaded.show(shown, format="html" if html else "terminal"))


def _text(argument: str) -> str | bytes:
    """What was given: text, or bytes where it is no UTF-8."""
    data = sys.stdin.buffer.read() if argument == "-" else os.fsencode(argument)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def main(arguments: Sequence[str] | None = None) -> int:
    return command.run(
        lambda: tyro.extras.subcommand_cli_from_dict(
            {"train": train, "encode": encode, "shards": shards, "show": show},
            prog="pyengine.tokenizer",
            description="Train a vocabulary, encode with it, see a text as a model sees it.",
            args=arguments,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
