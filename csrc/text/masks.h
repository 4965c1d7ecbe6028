// Pre-split by mask algebra: the pieces of 64 bytes found at once, without a branch for each.
//
// A block begins where a piece begins, so what came before does not matter. Each class of characters is a mask
// with one bit a byte (every byte of a character has its class); where a piece begins is then a formula in
// shifts, carries and bit operations. The last start found begins the next block, so a decision that would need
// to look beyond the block is never made. What the formulas leave out (`regular` false: rare neighbours) is
// left to the lexers (lexers.h), which define the meaning.
#pragma once
#include "presplit.h"
#include "unicode.h"
#include "wide.h"

#ifdef TEXT_BLOCKS
namespace text::masks {

struct Masks {
  uint64_t letters = 0, numbers = 0, newlines, spaces, blanks;  // blanks: white space that is no newline
  uint64_t upper = 0, lower = 0;                                // of letters, where asked for
  uint64_t apostrophes, slashes;
  uint64_t continuation = 0, twos = 0, threes = 0;  // bytes that begin no character; first bytes of 2 and 3
  int known;                                        // bytes that count
  bool last;                                        // the text ends behind them
  bool regular = true;
};

#ifdef TEXT_AVX512
// The classes of 64 code points that share all but the last six bits, as masks.
struct Page {
  uint64_t letters = 0, upper = 0, lower = 0, numbers = 0, spaces = 0, marks = 0;
  bool plain = true;  // no numbers, spaces, marks
};
struct Pages {
  Page two[32], three[1024];       // by first byte; by first and second byte
  alignas(64) uint8_t whole[128];  // a bit for each of `three`: whether all its characters are uncased letters
  // A bit for each character of U+3000 to U+30FF and U+FF00 to U+FFFF: whether it is an uncased letter; a
  // symbol.
  alignas(64) uint8_t letters[64], symbols[64];
  // A bit for each character below U+0800, and from there to U+0FFF: whether it is a letter; in `symbols` of a
  // pattern that knows no case.
  alignas(64) uint8_t two_letters[256], two_symbols[256], e0_letters[256], e0_symbols[256];
};
const Pages& pages();

// Classes of the characters beyond ASCII. A byte of no valid one is a character of its own, in no class.
template <bool cased>
__attribute__((always_inline)) inline Masks beyond_ascii(const wide::Block& block, const Pages& pages,
                                                         Masks m) {
  const uint64_t tails = block.from_to(0x80, 0xBF), two = tails >> 1, three = two & tails >> 2;
  const uint64_t from_90 = block.from_to(0x90, 0xBF) >> 1, from_a0 = block.from_to(0xA0, 0xBF) >> 1;
  uint64_t twos = block.from_to(0xC2, 0xDF), threes = block.from_to(0xE0, 0xEF),
           fours = block.from_to(0xF0, 0xF4);
  constexpr uint64_t place61 = uint64_t(1) << 61, place62 = place61 << 1, place63 = place62 << 1;
  const uint64_t cut = ((twos | threes | fours) & place63) | ((threes | fours) & place62) | (fours & place61);
  if (!m.last) m.known = cut ? wide::lowest_bit(cut) : 64;  // a character may go on behind the block
  // Overlong forms, surrogates and what is beyond U+10FFFF are not valid.
  twos &= two;
  threes &= three & ~(block.equal(0xE0) & ~from_a0) & ~(block.equal(0xED) & from_a0);
  fours &= three & tails >> 3 & ~(block.equal(0xF0) & ~from_90) & ~(block.equal(0xF4) & from_90);
  m.twos = twos;
  m.threes = threes;
  m.continuation = (twos | threes | fours) << 1 | (threes | fours) << 2 | fours << 3;
  const uint64_t leads = twos | threes | fours;
  uint64_t letters = 0, symbols = 0, numbers = 0, blanks = 0, upper = 0, lower = 0;
  if (threes) {  // most of what stands in CJK text, without a branch for it
    const uint64_t mixed = threes & ((block.equal(0xE3) & block.from_to(0x80, 0x83) >> 1) |
                                     (block.equal(0xEF) & block.from_to(0xBC, 0xBF) >> 1));
    letters = (block.pages(pages.whole) & threes) | (block.characters(pages.letters) & mixed);
    symbols = block.characters(pages.symbols) & mixed;
  }
  if (!cased && twos) {
    letters |= block.of_two(pages.two_letters) & twos;
    symbols |= block.of_two(pages.two_symbols) & twos;
  }
  if (const uint64_t e0 = cased ? 0 : block.equal(0xE0) & threes) {
    letters |= block.behind(pages.e0_letters) & e0;
    symbols |= block.behind(pages.e0_symbols) & e0;
  }
  for (uint64_t todo = leads & ~(letters | symbols); todo;) {
    const int i = wide::lowest_bit(todo);
    const uint8_t* p = block.begin() + i;
    if (*p >= 0xF0) {
      const Character c = decode(p, block.end());
      const uint64_t bit = uint64_t(1) << i;
      m.regular = m.regular && !(cased && (c.cls == Mark || c.cls == Upper));
      if (in(c.cls, text::letters)) letters |= bit;
      if (c.cls == Lower) lower |= bit;
      if (c.cls == Number) numbers |= bit;
      todo &= todo - 1;
      continue;
    }
    const bool of_two = *p < 0xE0;
    const Page& page = of_two ? pages.two[*p & 31] : pages.three[(p[0] & 15) << 6 | (p[1] & 63)];
    const uint64_t same = todo & (of_two ? block.equal(*p) : block.equal(p[0], p[1]));
    const auto last = of_two ? block.second() : block.third();
    letters |= wide::pick(page.letters, last) & same;
    if (!page.plain) {
      numbers |= wide::pick(page.numbers, last) & same;
      blanks |= wide::pick(page.spaces, last) & same;
      if (cased && (wide::pick(page.marks, last) & same)) m.regular = false;
    }
    if (cased) {
      upper |= wide::pick(page.upper, last) & same;
      lower |= wide::pick(page.lower, last) & same;
    }
    todo &= ~same;
  }
  auto spread = [&](uint64_t mask) {  // from first bytes to all bytes, by carries through those behind
    return mask | (m.continuation & ~(m.continuation + (mask << 1)));
  };
  m.letters |= spread(letters);
  m.numbers |= spread(numbers);
  m.blanks |= spread(blanks);
  if (cased) {
    m.upper |= spread(upper);
    m.lower |= spread(lower);
  }
  return m;
}
#endif

template <bool cased>
__attribute__((always_inline)) inline Masks classify(const wide::Block& block) {
  Masks m;
  m.known = block.size();
  m.last = block.ends_text();
  if (cased) {
    m.upper = block.from_to('A', 'Z');
    m.lower = block.from_to('a', 'z');
    m.letters = m.upper | m.lower;
  } else {
    m.letters = block.letters();
  }
  m.numbers = block.from_to('0', '9');
  m.spaces = block.equal(' ');
  m.newlines = block.equal('\n') | block.equal('\r');
  m.blanks = (block.from_to('\t', '\r') & ~m.newlines) | m.spaces;
  m.apostrophes = block.equal('\'');
  m.slashes = cased ? block.equal('/') : 0;
  if (block.high()) {
#ifdef TEXT_AVX512
    static const Pages& all = pages();
    m = beyond_ascii<cased>(block, all, m);
#else
    m.regular = false;
#endif
  }
  return m;
}

// Those of the apostrophes that begin 's 't 'm 'd 'll 've 're, by length.
struct Contractions {
  uint64_t of_two, of_three;
  uint64_t starts() const { return of_two | of_three; }
  uint64_t behind() const { return of_two << 2 | of_three << 3; }
};
inline Contractions contractions(const wide::Block& block, uint64_t apostrophes, bool folded) {
  auto letter = [&](char c) { return block.equal(uint8_t(c)) | (folded ? block.equal(uint8_t(c - 32)) : 0); };
  const uint64_t one = letter('s') | letter('t') | letter('m') | letter('d'), e = letter('e'), l = letter('l');
  const uint64_t two = (l & l >> 1) | ((letter('v') | letter('r')) & e >> 1);
  return {apostrophes & one >> 1, apostrophes & two >> 1};
}

// Where an ASCII character that is neither letter nor apostrophe follows a letter: in every pattern a piece
// begins there. Of places that the block is sure of; none in the last block or beside other characters, where
// most would be lost.
inline uint64_t word_ends(const wide::Block& block, const Masks& m) {
  if (m.last || block.high()) return 0;
  return m.letters << 1 & ~(m.letters | m.apostrophes) & ((uint64_t(1) << (m.known - 2)) - 1);
}

// Bit just behind each run of `mask`; runs that reach bit 63 have none.
inline uint64_t behind_runs(uint64_t mask) { return (mask + (mask & ~(mask << 1))) & ~mask; }

// Where pieces begin; bit 0 does. Sets m.regular to false where the formulas do not hold, and lowers m.known
// where less is sure: starts at the last two known bytes are not, unless the text ends there.
template <Pattern::Family family>
__attribute__((always_inline)) inline uint64_t starts(const wide::Block& block, const Pattern& pattern,
                                                      Masks& m) {
  constexpr bool gpt2 = family == Pattern::Gpt2, o200k = family == Pattern::O200k;
  const uint64_t valid = m.known == 64 ? ~uint64_t(0) : (uint64_t(1) << m.known) - 1;
  const uint64_t letters = m.letters & valid, numbers = m.numbers & valid, newlines = m.newlines & valid;
  const uint64_t white = (m.blanks | m.newlines) & valid;
  uint64_t symbols = valid & ~(letters | numbers | white);
  auto begins = [](uint64_t mask) { return mask & ~(mask << 1); };

  // Symbols: one run, with the space before it and (but for gpt2) the newlines behind it, in o200k slashes too.
  uint64_t eaten = 0;
  if (!gpt2) {
    const uint64_t food = o200k ? newlines | m.slashes : newlines;
    eaten = food & ~(food + (newlines & symbols << 1));
    if (o200k) {
      if ((m.slashes & newlines << 1) && (newlines & m.slashes << 1)) m.regular = false;
      symbols &= ~eaten;
    }
  }
  uint64_t symbol_starts = begins(symbols) & ~(m.spaces << 1);

  // White space: up to the last newline; then all but the last character; then that one, which joins what
  // follows.
  const uint64_t rest = white & ~eaten, rest_starts = begins(rest);
  const uint64_t blanks = gpt2 ? rest : m.blanks & rest;
  const uint64_t behind = behind_runs(blanks);
  uint64_t followed = behind & ~newlines & valid;
  if (gpt2 && pattern.digits) followed &= ~numbers;
  const uint64_t ends = followed >> 1;
  uint64_t space_starts = rest_starts;
  space_starts |= blanks & ((ends & ~m.continuation) | (ends >> 1 & m.twos) | (ends >> 2 & m.threes));
  if (!gpt2) {
    const uint64_t line_starts = begins(blanks) & newlines << 1;
    space_starts |= line_starts & wide::deposit(wide::extract(behind & ~newlines, behind), begins(blanks));
  }
  const int white_tail = -int(rest >> (m.known - 1) & 1), tail = wide::highest_bit(rest_starts | 1);
  if (!m.last)
    m.known += (tail + 3 - m.known) & white_tail;  // nothing is sure behind its start
  else if (white_tail && pattern.whole_tail)
    space_starts &= (uint64_t(2) << tail) - 1;  // all of the tail is one piece

  // Words, with the character before them.
  uint64_t word_starts = begins(letters), behind_contractions = 0;
  if (gpt2) {
    word_starts &= ~(m.spaces << 1);
  } else {
    const uint64_t tails = symbols & m.continuation;
    const uint64_t behind_first = ((symbol_starts << 1) + tails) & ~tails;
    word_starts &= ~behind_first & ~(m.blanks << 1);
  }
  if (o200k) {
    word_starts |= m.upper & m.lower << 1 & valid;
    if (m.upper & (letters & ~m.upper & ~m.lower) << 1) m.regular = false;
  }
  if (const uint64_t apostrophes = m.apostrophes & symbol_starts) {
    // In o200k a contraction is the end of the word before it, else a piece.
    const Contractions found = contractions(block, o200k ? apostrophes & letters << 1 : apostrophes, !gpt2);
    behind_contractions = found.behind() & valid;
    word_starts &= ~(found.starts() << 1 | found.of_three << 2);  // 'lL is no change of case
    if (o200k) {
      symbol_starts &= ~found.starts();
      if (found.starts() & found.behind()) m.regular = false;
    }
    if (!gpt2 && (apostrophes & block.equal(0xC5) >> 1)) m.regular = false;  // the long s, a folded s
  }

  uint64_t number_starts = begins(numbers);
  if (gpt2 && !pattern.digits) {
    number_starts &= ~(m.spaces << 1);
  } else if (pattern.digits == 1) {
    number_starts = numbers & ~m.continuation;
  } else {
    auto by_three = [](uint64_t starts, uint64_t numbers) {
      const uint64_t three = numbers & numbers << 1 & numbers << 2;
      for (uint64_t next = starts; (next = next << 3 & three);) starts |= next;
      return starts;
    };
    if (const uint64_t all = ~m.continuation; numbers & ~all) {  // counted in characters, each one bit
      number_starts = by_three(wide::extract(number_starts, all), wide::extract(numbers, all));
      number_starts = wide::deposit(number_starts, all);
    } else {
      number_starts = by_three(number_starts, numbers);
    }
  }
  return 1 | symbol_starts | space_starts | word_starts | number_starts | behind_contractions;
}

// Of a block that is all one piece and goes on behind it: a letter near its end from which a word, cut there,
// ends where it would have ended. 0: none. Where cases part words, none behind a lower one.
template <bool cased>
int word_goes_on(const wide::Block& block) {
  const Masks m = classify<cased>(block);
  const uint64_t letters = m.letters & ~(m.upper | m.continuation) & ((uint64_t(1) << (m.known - 2)) - 1);
  return m.lower ? 0 : wide::highest_bit(letters | 1);
}

// Whether these masks know what a pattern counts.
inline bool covers(const Pattern& pattern) {
  return pattern.digits == 0 || pattern.digits == 1 || pattern.digits == 3;
}

}  // namespace text::masks
#endif
