"""Which pages are kept: address, language, and the published quality rules, each switchable, each with a
reason.

The rules and their default thresholds are those of Gopher (Rae et al. 2021), C4 (Raffel et al. 2020) and
FineWeb (Penedo et al. 2024), as datatrove applies them; they were made for the open web in English.
`FilterConfig.site()` is for the pages of one chosen site (a handbook, an encyclopedia): there short pages,
lists, code, tables and sums are content, and only what is broken, repeated or empty has to go.

A filter is a function (Text, FilterConfig) -> reason or None. `FILTERS` is the order they run in.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any
from urllib.parse import urlsplit

import numpy as np

STOP_WORDS = frozenset("the be to of and that have with".split())
_END = (".", "!", "?", '"', "'", "\u201d", "\u2019", "\u3002", "\uff01", "\uff1f")
_POLICY = (
    "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies",
)  # fmt: skip
_UNSPACED = r"[\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
_GONE = re.compile(
    r"(?i)\b(404|not found|can(no|')t be found|could not (be found|find)"
    r"|no longer (exists|available)|does(n't| not) exist|nothing here|page (is )?missing|403|forbidden"
    r"|cannot be found|access denied|error 5\d\d)\b"
)


@dataclass(frozen=True)
class FilterConfig:
    """Thresholds; the names follow the papers. Shares lie between 0 and 1."""

    url: bool = True
    language: bool = True
    soft_404: bool = True
    gopher_repetition: bool = True
    gopher_quality: bool = True
    c4: bool = True
    fineweb: bool = True

    blocked_words: tuple[str, ...] = ("porn", "xxx", "viagra", "casino")  # of host names and paths
    blocked_hosts: tuple[str, ...] = ()
    languages: tuple[str, ...] = ("en",)  # () keeps every language
    language_score: float = 0.65
    language_words: int = 5  # shorter texts have no language that could be told

    soft_404_words: int = 100  # longer pages are no error pages

    dup_line: float = 0.3
    dup_line_chars: float = 0.2
    dup_paragraph: float = 0.3
    dup_paragraph_chars: float = 0.2
    top_ngrams: tuple[tuple[int, float], ...] = ((2, 0.20), (3, 0.18), (4, 0.16))
    dup_ngrams: tuple[tuple[int, float], ...] = (
        (5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10),
    )  # fmt: skip

    min_words: int = 50
    max_words: int = 100_000
    mean_word_length: tuple[float, float] = (3.0, 10.0)
    symbols_per_word: float = 0.1  # "#" and "..."
    bullet_lines: float = 0.9
    ellipsis_lines: float = 0.3
    stop_words: int = 2
    words_with_letter: float = 0.8

    min_sentences: int = 5
    min_line_words: int = 3  # shorter lines are taken out (never the title)
    curly_bracket: bool = True
    lorem_ipsum: bool = True
    policy_lines: bool = True  # take out lines that speak of cookies and policies, or of JavaScript

    line_punctuation: float = 0.12
    char_duplicates: float = 0.01
    short_line: int = 30
    short_lines: float = 0.67
    newlines_per_word: float = 0.3

    @classmethod
    def site(cls, languages: tuple[str, ...] = ("en",)) -> "FilterConfig":
        """For the pages of a site that was chosen: broken, repeated and empty pages go, short ones stay."""
        return cls(
            languages=languages, min_words=20, stop_words=1, words_with_letter=0.4,
            min_sentences=1, min_line_words=0,
            dup_line=0.6, dup_line_chars=0.3, symbols_per_word=1.0, mean_word_length=(2.0, 12.0),
            bullet_lines=1.0, curly_bracket=False, fineweb=False,
            top_ngrams=((2, 0.35), (3, 0.30), (4, 0.25)), dup_ngrams=((10, 0.40),),
        )  # fmt: skip

    def without(self, *steps: str) -> "FilterConfig":
        """The same with some steps switched off."""
        off: dict[str, Any] = dict.fromkeys(steps, False)
        return replace(self, **off)


class Text:
    """A document's text and what several rules need of it. `title` may be empty; `lines` come without it."""

    def __init__(self, url: str, title: str, lines: Sequence[str]) -> None:
        self.url, self.title, self.lines = url, title, list(lines)

    @cached_property
    def body(self) -> str:
        return "\n".join(self.lines)

    @cached_property
    def words(self) -> list[str]:
        if self.is_unspaced:
            return re.findall(rf"{_UNSPACED}|\w+|[^\w\s]+", self.body)
        return re.findall(r"[^\W_]+(?:['\u2019-][^\W_]+)*|[^\w\s]+", self.body)

    @cached_property
    def is_unspaced(self) -> bool:
        """Whether the script puts no spaces between words; then each character counts as a word."""
        return len(re.findall(_UNSPACED, self.body[:2000])) > 0.2 * len(self.body[:2000])

    @cached_property
    def tokens(self) -> list[str]:
        """White-space separated words."""
        return self.body.split()

    @cached_property
    def language(self) -> tuple[str, float]:
        """Code and score; not looked at again when lines are taken out."""
        return detect_language(self.body)

    @property
    def text(self) -> str:
        return "\n".join([self.title, *self.lines] if self.title else self.lines)


Filter = Callable[[Text, FilterConfig], "str | None"]


def by_url(text: Text, config: FilterConfig) -> str | None:
    """Addresses of blocked hosts, or with blocked words."""
    parts = urlsplit(text.url)
    host = parts.hostname or ""
    if any(host == blocked or host.endswith("." + blocked) for blocked in config.blocked_hosts):
        return "blocked host"
    words = set(re.split(r"[^a-z0-9]+", f"{host} {parts.path}".lower()))
    hit = words & set(config.blocked_words)
    return f"blocked word: {min(hit)}" if hit else None


def by_language(text: Text, config: FilterConfig) -> str | None:
    """Pages in another language, or in none that is clear."""
    if not config.languages or len(text.tokens) < config.language_words:
        return None
    language, score = text.language
    if language not in config.languages:
        return f"language {language}"
    return None if score >= config.language_score else "language unclear"


def by_soft_404(text: Text, config: FilterConfig) -> str | None:
    """Short pages that say that there is no page, although the server said 200."""
    if len(text.tokens) > config.soft_404_words:
        return None
    start = " ".join([text.title, *text.lines])[:300]
    return "error page" if _GONE.search(start) and len(text.tokens) < 60 or _GONE.search(text.title) else None


def by_gopher_repetition(text: Text, config: FilterConfig) -> str | None:
    """Lines, paragraphs and word sequences that repeat within the page."""
    size = len(text.body)
    if not size:
        return "empty"
    for name, parts, share, chars in (
        ("lines", [line for line in text.lines if line.strip()], config.dup_line, config.dup_line_chars),
        ("paragraphs", text.body.split("\n\n"), config.dup_paragraph, config.dup_paragraph_chars),
    ):
        repeats = _repeats(parts)
        if len(repeats) > share * len(parts):
            return f"repeated {name}"
        if sum(map(len, repeats)) > chars * size:
            return f"repeated {name} (characters)"
    tokens = text.tokens
    lengths = np.fromiter(map(len, tokens), dtype=np.int64, count=len(tokens))
    numbers: dict[str, int] = {}
    ids = np.fromiter(
        (numbers.setdefault(t, len(numbers)) for t in tokens), dtype=np.uint64, count=len(tokens)
    )
    total = int(lengths.sum()) or 1
    for n, share in config.top_ngrams:
        if _top_ngram_chars(ids, lengths, n) > share * total:
            return f"top {n}-gram"
    for n, share in config.dup_ngrams:
        if _repeated_ngram_chars(ids, lengths, n) > share * total:
            return f"repeated {n}-grams"
    return None


def by_gopher_quality(text: Text, config: FilterConfig) -> str | None:
    """Length, word length, symbols, bullets, ellipses, stop words."""
    words = [word for word in text.words if word[0].isalnum()]
    if len(words) < config.min_words:
        return "too few words"
    if len(words) > config.max_words:
        return "too many words"
    low, high = config.mean_word_length
    if not text.is_unspaced and not low <= sum(map(len, words)) / len(words) <= high:
        return "mean word length"
    if text.body.count("#") > config.symbols_per_word * len(words):
        return "too many hashes"
    if text.body.count("...") + text.body.count("\u2026") > config.symbols_per_word * len(words):
        return "too many ellipses"
    lines = text.lines
    if sum(line.startswith(("\u2022", "-", "*")) for line in lines) > config.bullet_lines * len(lines):
        return "bullets"
    if sum(line.endswith(("...", "\u2026")) for line in lines) > config.ellipsis_lines * len(lines):
        return "ellipsis lines"
    if sum(any(map(str.isalpha, token)) for token in text.tokens) < config.words_with_letter * len(
        text.tokens
    ):
        return "words without a letter"
    if "en" in config.languages and len(STOP_WORDS.intersection(map(str.lower, words))) < config.stop_words:
        return "too few stop words"
    return None


def by_c4(text: Text, config: FilterConfig) -> str | None:
    """Lines that are no sentences are taken out of `text`; pages of placeholders, code and fragments go."""
    lower = text.body.lower()
    if config.lorem_ipsum and re.search(r"\blorem ipsum\b|\bipsum\b.*\bdolor\b|\bdolor\b.*\bipsum\b", lower):
        return "lorem ipsum"
    if config.curly_bracket and "{" in lower:
        return "curly bracket"
    kept = [line for line in text.lines if not _c4_drops(line, config)]
    if len(kept) < len(text.lines):
        text.lines = kept
        for name in ("body", "words", "tokens"):
            text.__dict__.pop(name, None)
    sentences = sum(
        len(re.findall(r"[.!?\u3002\uff01\uff1f]+[\"'\u201d\u2019)]*(?:\s|$)", line)) or 1 for line in kept
    )
    return "too few sentences" if sentences < config.min_sentences else None


def by_fineweb(text: Text, config: FilterConfig) -> str | None:
    """Lists of short lines, lines without an end, repeated characters."""
    lines = [line for line in text.lines if line.strip()]
    if not lines:
        return "empty"
    if sum(line.endswith(_END) for line in lines) < config.line_punctuation * len(lines):
        return "line ends without punctuation"
    if sum(len(line) <= config.short_line for line in lines) > config.short_lines * len(lines):
        return "short lines"
    if sum(map(len, _repeats(lines))) > config.char_duplicates * len(text.body.replace("\n", "")):
        return "duplicate characters"
    if len(lines) - 1 > config.newlines_per_word * len(text.words):
        return "newlines per word"
    return None


FILTERS: tuple[tuple[str, Filter], ...] = (
    ("url", by_url), ("soft_404", by_soft_404), ("language", by_language),
    ("gopher_repetition", by_gopher_repetition), ("gopher_quality", by_gopher_quality), ("c4", by_c4),
    ("fineweb", by_fineweb),
)  # fmt: skip


def apply(text: Text, config: FilterConfig) -> tuple[str, str] | None:
    """The first filter that removes the text and its reason; None keeps it. C4 may take lines out of it."""
    for step, function in FILTERS:
        if getattr(config, step):
            reason = function(text, config)
            if reason:
                return step, reason
    return None


@lru_cache(maxsize=1)
def _identifier():
    """py3langid, for languages with much text on the web only: others come of code and names."""
    from py3langid import langid

    identifier = langid.LanguageIdentifier.from_model_file(
        langid.MODEL_DIR / langid.MODEL_FILE, norm_probs=True
    )
    identifier.set_languages(
        "ar bg ca cs da de el en es et fa fi fr he hi hr hu id it ja ko lt lv nl no pl pt ro ru sk sl sv th"
        " tr uk vi zh".split()
    )  # fmt: skip
    return identifier


def detect_language(text: str) -> tuple[str, float]:
    """Two-letter code and a probability, from the text's first 2,000 characters."""
    language, score = _identifier().classify(text[:2000])
    return language, float(score)


def _c4_drops(line: str, config: FilterConfig) -> bool:
    if config.min_line_words and len(line.split()) < config.min_line_words:
        return True
    if config.policy_lines:
        lower = line.lower()
        return any(phrase in lower for phrase in _POLICY) or ("javascript" in lower and "enable" in lower)
    return False


def _repeats(parts: Iterable[str]) -> list[str]:
    """Every occurrence but the first."""
    seen: set[str] = set()
    out = []
    for part in parts:
        if part in seen:
            out.append(part)
        seen.add(part)
    return out


def _ngram_codes(ids: np.ndarray, n: int) -> np.ndarray:
    """One 64-bit number for each sequence of n words (a rolling hash)."""
    codes = np.zeros(len(ids) - n + 1, dtype=np.uint64)
    for i in range(n):
        codes = codes * np.uint64(0x9E3779B97F4A7C15) + ids[i : len(ids) - n + 1 + i] + np.uint64(1)
    return codes


def _top_ngram_chars(ids: np.ndarray, lengths: np.ndarray, n: int) -> int:
    """Characters covered by the most frequent n-gram (0 if none repeats)."""
    if len(ids) < n:
        return 0
    codes, first, counts = np.unique(_ngram_codes(ids, n), return_index=True, return_counts=True)
    most = int(counts.max())
    if most < 2:
        return 0
    start = int(first[counts == most].min())
    return int(lengths[start : start + n].sum()) * most


def _repeated_ngram_chars(ids: np.ndarray, lengths: np.ndarray, n: int) -> int:
    """Characters inside n-grams seen before, none counted twice."""
    if len(ids) < n:
        return 0
    codes = _ngram_codes(ids, n)
    _, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    if int(counts.max()) < 2:
        return 0
    chars, i, seen = 0, 0, set()
    inverse_list, ends = inverse.tolist(), np.concatenate([[0], np.cumsum(lengths)]).tolist()
    while i < len(inverse_list):
        code = inverse_list[i]
        if code in seen:
            chars += ends[i + n] - ends[i]
            i += n
        else:
            seen.add(code)
            i += 1
    return chars
