// The lexers: where a piece that begins at p ends, by the twin of one regular expression each
// (kernels/bpe/__init__.py holds the strings). One source for the host and the GPU.
//
// Classes knows the characters: `Character at(const uint8_t* p, const uint8_t* end) const`.
#pragma once
#include "presplit.h"
#include "unicode.h"

namespace text {

using Bytes = const uint8_t*;

TEXT_BOTH inline bool is_newline(uint32_t code) { return code == '\n' || code == '\r'; }

template <class Classes>
struct Lexer {
  Classes classes;
  Pattern pattern;
  Bytes end;  // of the text

  // The end of the piece that begins at p < end.
  TEXT_BOTH Bytes piece_end(Bytes p) const {
    switch (pattern.family) {
      case Pattern::Gpt2:
        return gpt2(p);
      case Pattern::Cl100k:
        return cl100k(p);
      case Pattern::O200k:
        return o200k(p);
      default:
        return end;
    }
  }

  // Whether a piece begins at p for certain, seen from the characters beside p alone; the text began at
  // `begin`. Between two certain places lies one piece, mostly, so that a text can be cut by many at once, each
  // from such a place to the next. What the patterns have in common: a letter that is no mark, or a number,
  // ends its piece where another class follows, unless an apostrophe does; the last white space of a run goes
  // with what follows it or stays alone; and white space up to a newline is followed by a new piece unless by a
  // slash (or more white space).
  TEXT_BOTH bool begins(Bytes begin, Bytes p) const {
    if (p == begin || pattern.family == Pattern::None) return p == begin;
    if ((*p & 0xC0) == 0x80) return false;
    const Character here = at(p), before = before_this(begin, p);
    if (here.cls == Space && !is_newline(here.code)) {
      const Bytes next = p + here.size;
      const ClassSet joined = spaces | (pattern.family == Pattern::Gpt2 && pattern.digits ? numbers : 0);
      if (next < end && !in(at(next).cls, joined)) return true;
    }
    if (before.cls == Number) return here.cls != Number;
    if (in(before.cls, letters)) return !in(here.cls, letters | set_of(Mark)) && here.code != '\'';
    return is_newline(before.code) && here.cls != Space && here.code != '/';
  }

  TEXT_BOTH Character at(Bytes p) const { return classes.at(p, end); }

  // The character that ends at p; begin < p, and p is no byte inside of a character.
  TEXT_BOTH Character before_this(Bytes begin, Bytes p) const {
    Bytes q = p - 1;
    while (q > begin && p - q < 4 && (*q & 0xC0) == 0x80) q--;
    const Character c = at(q);
    return q + c.size == p ? c : Character{Other, 1, p[-1]};
  }

  // The longest run from p of characters in `set`.
  TEXT_BOTH Bytes run(Bytes p, ClassSet set) const {
    while (p < end) {
      const Character c = at(p);
      if (!in(c.cls, set)) break;
      p += c.size;
    }
    return p;
  }

  // The end of 's 't 'm 'd 'll 've 're at the apostrophe p, or p. Folded: in any case; U+017F (long s) folds to
  // s.
  TEXT_BOTH Bytes contraction(Bytes p, bool folded) const {
    if (end - p < 2 || *p != '\'') return p;
    const uint8_t fold = folded ? 0x20 : 0;
    auto low = [&](uint8_t b) { return uint8_t(b >= 'A' && b <= 'Z' ? b | fold : b); };
    const uint8_t a = low(p[1]);
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return p + 2;
    if (end - p < 3) return p;
    if (folded && p[1] == 0xC5 && p[2] == 0xBF) return p + 3;
    const uint8_t b = low(p[2]);
    if ((a == 'l' && b == 'l') || (a == 'v' && b == 'e') || (a == 'r' && b == 'e')) return p + 3;
    return p;
  }

  // White space at p, by the alternatives  \s*[\r\n]+ | \s+(?!\S) | \s+  (the first only with `newlines`; with
  // `digits_apart` the second is \s+(?![^\s\p{N}])).
  TEXT_BOTH Bytes white_space(Bytes p, bool newlines, bool whole_tail, bool digits_apart = false) const {
    Bytes q = p, last = p, line = p;  // end of the run, start of its last character, end of its last newline
    while (q < end) {
      Character c = at(q);
      if (c.cls != Space) {
        if (digits_apart && c.cls == Number) return q;
        break;
      }
      last = q;
      q += c.size;
      if (is_newline(c.code)) line = q;
    }
    if (q == end && whole_tail) return q;
    if (newlines && line > p) return line;
    if (q == end || last == p) return q;
    return last;  // the last white space goes with the word that follows
  }

  TEXT_BOTH Bytes digits(Bytes p, int most) const {
    for (int i = 0; i < most && p < end; i++) {
      Character c = at(p);
      if (c.cls != Number) break;
      p += c.size;
    }
    return p;
  }

  // '(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
  // Where `digits` is not 0 (SmolLM), each digit is cut out first, and the rest is split between them.
  TEXT_BOTH Bytes gpt2(Bytes p) const {
    const bool apart = pattern.digits != 0;
    if (Bytes q = contraction(p, false); q > p) return q;
    if (apart) {
      if (Bytes q = digits(p, pattern.digits); q > p) return q;
    }
    Bytes word = p + (*p == ' ');
    if (word < end) {
      Character c = at(word);
      if (in(c.cls, letters)) return run(word + c.size, letters);
      if (c.cls == Number && !apart) return run(word + c.size, numbers);
      if (in(c.cls, symbols)) return run(word + c.size, symbols);
    }
    return white_space(p, false, false, apart);
  }

  // ' ?[^\s\p{L}\p{N}]+[\r\n]*' (o200k: [\r\n/]*) and what follows it in both newer patterns.
  TEXT_BOTH Bytes symbols_or_space(Bytes p) const {
    Bytes word = p + (*p == ' ');
    if (word < end) {
      Character c = at(word);
      if (in(c.cls, symbols)) {
        Bytes q = run(word + c.size, symbols);
        while (q < end && (is_newline(*q) || (*q == '/' && pattern.family == Pattern::O200k))) q++;
        return q;
      }
    }
    return white_space(p, true, pattern.whole_tail);
  }

  // '(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|
  // ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
  TEXT_BOTH Bytes cl100k(Bytes p) const {
    if (Bytes q = contraction(p, true); q > p) return q;
    Character c = at(p);
    if (in(c.cls, letters)) return run(p + c.size, letters);
    if (c.cls == Number) return digits(p, pattern.digits);
    Bytes word = p + c.size;
    if (word < end && !is_newline(c.code)) {
      Character d = at(word);
      if (in(d.cls, letters)) return run(word + d.size, letters);
    }
    return symbols_or_space(p);
  }

  // head* body+ at p, or p. The heads give characters back until one of them can be a body.
  TEXT_BOTH Bytes word_with_body(Bytes p) const {
    Bytes q = p, back = p;  // back: end of the last character in the run of heads that can also be a body
    while (q < end) {
      Character c = at(q);
      if (!in(c.cls, heads)) break;
      q += c.size;
      if (c.cls != Upper) back = q;
    }
    Bytes r = run(q, bodies);
    return r > q ? r : back;
  }

  // The first two alternatives of o200k, each with and without its optional first character
  // [^\r\n\p{L}\p{N}]: head* body+ before head+ (whose body* is empty wherever the former failed). Or p.
  TEXT_BOTH Bytes cased_word(Bytes p) const {
    Character c = at(p);
    const bool prefix = !is_newline(c.code) && !in(c.cls, letters) && c.cls != Number;
    Bytes word = p + c.size;
    if (prefix) {
      if (Bytes q = word_with_body(word); q > word) return q;
    }
    if (Bytes q = word_with_body(p); q > p) return q;
    if (prefix) {
      if (Bytes q = run(word, heads); q > word) return q;
    }
    return run(p, heads);
  }

  TEXT_BOTH Bytes o200k(Bytes p) const {
    if (Bytes q = cased_word(p); q > p) return contraction(q, true);
    if (Bytes q = digits(p, pattern.digits); q > p) return q;
    return symbols_or_space(p);
  }
};

}  // namespace text
