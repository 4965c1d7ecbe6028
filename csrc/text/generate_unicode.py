"""Write unicode_classes.h: the character classes that the pre-split patterns can tell apart.

The table holds the ranges of code points by class, as Unicode 16 defines them: that is the version which
tiktoken and Hugging Face tokenizers carry, and ids must equal theirs. So the classes are asked of the
`tokenizers` package itself, and tests/kernels/test_bpe.py compares every code point with both. Run again
when those packages move to a newer Unicode:

    python csrc/text/generate_unicode.py
"""

from pathlib import Path

from tokenizers import Regex, pre_tokenizers

CLASSES = {  # name in unicode.h -> pattern; later entries win, everything else is Other
    "Upper": r"[\p{Lu}\p{Lt}]",
    "Lower": r"\p{Ll}",
    "Letter": r"[\p{Lm}\p{Lo}]",
    "Mark": r"\p{M}",
    "Number": r"\p{N}",
    "Space": r"\s",
}


def members(pattern: str) -> set[int]:
    splitter = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    found = set()
    for start in range(0, 0x110000, 4096):
        text = "".join(chr(c) for c in range(start, start + 4096) if not 0xD800 <= c < 0xE000)
        found.update(ord(piece) for piece, _ in splitter.pre_tokenize_str(text))
    return found


def main() -> None:
    table = ["Other"] * 0x110000
    for name, pattern in CLASSES.items():
        for code in members(pattern):
            table[code] = name
    ranges = [(code, name) for code, name in enumerate(table) if code == 0 or table[code - 1] != name]
    lines, line = [], ""
    for code, name in ranges:
        item = f"{{0x{code:x}, {name}}}, "
        if len(line) + len(item) > 108:
            lines.append(line.rstrip())
            line = ""
        line += item
    lines.append(line.rstrip())
    header = "// Written by generate_unicode.py: where each range of equal class begins (Unicode 16).\n"
    header += "// clang-format off\n"
    Path(__file__).with_name("unicode_classes.h").write_text(header + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
