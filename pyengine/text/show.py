"""A text coloured by token, so that a person sees what a model sees: for a terminal, and as HTML."""

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

# Backgrounds that repeat in this order, so that neighbours always differ; dark text is readable on each.
COLOURS = ("#ffd6a5", "#caffbf", "#a0c4ff", "#ffc6ff", "#fdffb6")
SPECIAL_COLOUR = "#495057"


def spell(tokenizer: "Tokenizer", i: int) -> str:
    """One token as visible text: line ends are marked, bytes of a cut character are given in hexadecimal."""
    text = tokenizer.token_bytes(i).decode("utf-8", "backslashreplace")
    text = text.replace("\r", "␍").replace("\n", "↵\n").replace("\t", "⇥\t")
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\u{ord(c):04x}" for c in text)


def show_terminal(tokenizer: "Tokenizer", ids: list[int]) -> str:
    """The tokens on coloured backgrounds (24-bit escape codes), and how many there are."""
    parts = []
    for n, i in enumerate(ids):
        special = tokenizer.is_special(i)
        colour = SPECIAL_COLOUR if special else COLOURS[n % len(COLOURS)]
        r, g, b = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
        ink = "97" if special else "30"
        # The colour ends before a line end, or the terminal would paint the rest of the line.
        parts.append(
            f"\x1b[{ink};48;2;{r};{g};{b}m" + spell(tokenizer, i).replace("\n", "\x1b[0m\n") + "\x1b[0m"
        )
    return "".join(parts) + f"\n{len(ids)} tokens"


def show_html(tokenizer: "Tokenizer", ids: list[int]) -> str:
    """A <div class="tokens"> of one <span> a token, whose title holds the id; self-contained, escaped."""
    parts = []
    for n, i in enumerate(ids):
        special = tokenizer.is_special(i)
        colour = SPECIAL_COLOUR if special else COLOURS[n % len(COLOURS)]
        ink = "#fff" if special else "#212529"
        text = html.escape(spell(tokenizer, i))
        parts.append(f'<span style="background:{colour};color:{ink}" title="{i}">{text}</span>')
    return (
        '<div class="tokens" style="white-space:pre-wrap;font-family:monospace">' + "".join(parts) + "</div>"
    )
