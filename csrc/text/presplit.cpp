#include "presplit.h"

#include <algorithm>
#include <stdexcept>

#include "masks.h"
#include "unicode.h"

namespace text {
namespace {

using Bytes = const uint8_t*;

inline bool is_newline(uint32_t code) { return code == '\n' || code == '\r'; }

// The end of 's 't 'm 'd 'll 've 're at the apostrophe p, or p. Folded: in any case; U+017F (long s) folds to
// s.
inline Bytes contraction(Bytes p, Bytes end, bool folded) {
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
inline Bytes white_space(Bytes p, Bytes end, bool newlines, bool whole_tail, bool digits_apart = false) {
  Bytes q = p, last = p, line = p;  // end of the run, start of its last character, end of its last newline
  while (q < end) {
    Character c = character_at(q, end);
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

inline Bytes digits(Bytes p, Bytes end, int most) {
  for (int i = 0; i < most && p < end; i++) {
    Character c = character_at(p, end);
    if (c.cls != Number) break;
    p += c.size;
  }
  return p;
}

// '(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
// Where `digits` is not 0 (SmolLM), each digit is cut out first, and the rest is split between them.
Bytes gpt2(const Pattern& pattern, Bytes p, Bytes end) {
  const bool apart = pattern.digits != 0;
  if (Bytes q = contraction(p, end, false); q > p) return q;
  if (apart) {
    if (Bytes q = digits(p, end, pattern.digits); q > p) return q;
  }
  Bytes word = p + (*p == ' ');
  if (word < end) {
    Character c = character_at(word, end);
    if (in(c.cls, letters)) return run(word + c.size, end, letters);
    if (c.cls == Number && !apart) return run(word + c.size, end, numbers);
    if (in(c.cls, symbols)) return run(word + c.size, end, symbols);
  }
  return white_space(p, end, false, false, apart);
}

// ' ?[^\s\p{L}\p{N}]+[\r\n]*' (o200k: [\r\n/]*) and what follows it in both newer patterns.
Bytes symbols_or_space(const Pattern& pattern, Bytes p, Bytes end) {
  Bytes word = p + (*p == ' ');
  if (word < end) {
    Character c = character_at(word, end);
    if (in(c.cls, symbols)) {
      Bytes q = run(word + c.size, end, symbols);
      while (q < end && (is_newline(*q) || (*q == '/' && pattern.family == Pattern::O200k))) q++;
      return q;
    }
  }
  return white_space(p, end, true, pattern.whole_tail);
}

// '(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
Bytes cl100k(const Pattern& pattern, Bytes p, Bytes end) {
  if (Bytes q = contraction(p, end, true); q > p) return q;
  Character c = character_at(p, end);
  if (in(c.cls, letters)) return run(p + c.size, end, letters);
  if (c.cls == Number) return digits(p, end, pattern.digits);
  Bytes word = p + c.size;
  if (word < end && !is_newline(c.code)) {
    Character d = character_at(word, end);
    if (in(d.cls, letters)) return run(word + d.size, end, letters);
  }
  return symbols_or_space(pattern, p, end);
}

// head* body+ at p, or p. The heads give characters back until one of them can be a body.
Bytes word_with_body(Bytes p, Bytes end) {
  Bytes q = p, back = p;  // back: end of the last character in the run of heads that can also be a body
  while (q < end) {
    Character c = character_at(q, end);
    if (!in(c.cls, heads)) break;
    q += c.size;
    if (c.cls != Upper) back = q;
  }
  Bytes r = run(q, end, bodies);
  return r > q ? r : back;
}

// The first two alternatives of o200k, each with and without its optional first character
// [^\r\n\p{L}\p{N}]: head* body+ before head+ (whose body* is empty wherever the former failed). Or p.
Bytes cased_word(Bytes p, Bytes end) {
  Character c = character_at(p, end);
  const bool prefix = !is_newline(c.code) && !in(c.cls, letters) && c.cls != Number;
  Bytes word = p + c.size;
  if (prefix) {
    if (Bytes q = word_with_body(word, end); q > word) return q;
  }
  if (Bytes q = word_with_body(p, end); q > p) return q;
  if (prefix) {
    if (Bytes q = run(word, end, heads); q > word) return q;
  }
  return run(p, end, heads);
}

Bytes o200k(const Pattern& pattern, Bytes p, Bytes end) {
  if (Bytes q = cased_word(p, end); q > p) return contraction(q, end, true);
  if (Bytes q = digits(p, end, pattern.digits); q > p) return q;
  return symbols_or_space(pattern, p, end);
}

// By blocks where that is known to be right, one piece after the other elsewhere.
template <Pattern::Family family, class Lexer>
size_t fill(const Pattern& pattern, Bytes p, Bytes end, uint32_t* ends, size_t most, Lexer piece_end) {
  const Bytes start = p;
  size_t count = 0;
  auto one_by_one = [&](Bytes far) {
    do {
      const Bytes next = piece_end(p, end);
      if (next - start > ptrdiff_t(0xFFFFFFFE)) {
        if (count == 0) throw std::length_error("a piece of 4 GiB or more cannot be encoded");
        return false;
      }
      ends[count++] = uint32_t(next - start);
      p = next;
    } while (p < far && p < end && count < most);
    return true;
  };
#ifdef TEXT_BLOCKS
  if (family != Pattern::None && masks::covers(pattern)) {
    const bool three_digits = family != Pattern::Gpt2 && pattern.digits == 3;
    while (count < most && p < end && p - start < ptrdiff_t(0x80000000)) {
      const wide::Block block(p, end);
      masks::Masks m = masks::classify<family == Pattern::O200k>(block, three_digits);
      uint64_t begins = masks::starts<family>(block, pattern, m);
      begins &= begins - 1;  // that of the first piece is no end
      const int sure = m.last ? m.known : std::max(m.known - 2, 1);
      begins &= (uint64_t(1) << sure) - 1;
      if (!m.regular || (!begins && !m.last)) {
        if (!one_by_one(m.regular ? p : p + 48)) break;
        continue;
      }
      count += wide::write_places(begins, uint32_t(p - start), ends + count);
      if (m.last) {
        p = end;
        ends[count++] = uint32_t(p - start);
      } else {
        p += wide::highest_bit(begins);
      }
    }
    return count;
  }
#endif
  one_by_one(end);
  return count;
}

}  // namespace

#ifdef TEXT_AVX512
namespace masks {

const Pages& pages() {
  static const Pages all = [] {
    Pages pages{};
    auto fill = [](Page& page, uint32_t first) {
      page = Page();
      for (uint32_t i = 0; i < 64; i++) {
        const Class cls = class_table().of(first + i);
        const uint64_t bit = uint64_t(1) << i;
        if (in(cls, letters)) page.letters |= bit;
        if (cls == Upper) page.upper |= bit;
        if (cls == Lower) page.lower |= bit;
        if (cls == Number) page.numbers |= bit;
        if (cls == Space) page.spaces |= bit;
        if (cls == Mark) page.marks |= bit;
      }
      page.plain = !(page.numbers | page.spaces | page.marks);
    };
    for (uint32_t i = 2; i < 32; i++) fill(pages.two[i], i << 6);
    for (uint32_t i = 0; i < 1024; i++) {
      const uint32_t first = i << 6;
      fill(pages.three[i], first);
      if (first < 0x800 || (first >= 0xD800 && first < 0xE000)) {  // overlong forms, surrogates
        pages.three[i].plain = pages.three[i].valid = false;
      }
    }
    for (int lead = 0; lead < 16; lead++) {
      pages.whole[lead] = 0xFF;
      for (int i = 0; i < 64; i++) {
        const Page& page = pages.three[lead << 6 | i];
        if (~page.letters || page.upper || page.lower || !page.valid) pages.whole[lead] = 0;
      }
    }
    return pages;
  }();
  return all;
}

}  // namespace masks
#endif

size_t split(const Pattern& pattern, Bytes p, Bytes end, uint32_t* ends, size_t most) {
  switch (pattern.family) {
    case Pattern::Gpt2:
      return fill<Pattern::Gpt2>(pattern, p, end, ends, most,
                                 [&](Bytes a, Bytes b) { return gpt2(pattern, a, b); });
    case Pattern::Cl100k:
      return fill<Pattern::Cl100k>(pattern, p, end, ends, most,
                                   [&](Bytes a, Bytes b) { return cl100k(pattern, a, b); });
    case Pattern::O200k:
      return fill<Pattern::O200k>(pattern, p, end, ends, most,
                                  [&](Bytes a, Bytes b) { return o200k(pattern, a, b); });
    default:
      return fill<Pattern::None>(pattern, p, end, ends, most, [](Bytes, Bytes b) { return b; });
  }
}

}  // namespace text
