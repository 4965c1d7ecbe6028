#include "presplit.h"

#include <algorithm>
#include <stdexcept>

#include "lexers.h"
#include "masks.h"
#include "unicode.h"

namespace text {
namespace {

struct HostClasses {
  Character at(Bytes p, Bytes end) const {
    if (*p < 128) return {ascii_class[*p], 1, *p};
    return decode(p, end);
  }
};

// By blocks where that is known to be right, one piece after the other elsewhere.
template <Pattern::Family family, class PieceEnd>
size_t fill(const Lexer<HostClasses>& lexer, Bytes p, uint32_t* ends, size_t most, PieceEnd piece_end) {
  const Bytes start = p, end = lexer.end;
  size_t count = 0;
  auto one_by_one = [&](Bytes far) {
    do {
      const Bytes next = piece_end(p);
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
  const Pattern& pattern = lexer.pattern;
  auto long_piece = [&]() __attribute__((noinline)) {  // that goes on behind the block
    if (const int letter = masks::word_goes_on<family == Pattern::O200k>(wide::Block(p, end))) {
      p += letter;
      return true;
    }
    return one_by_one(p);
  };
  if (family != Pattern::None && masks::covers(pattern)) {
    while (count < most && p < end && p - start < ptrdiff_t(0x80000000)) {
      const wide::Block block(p, end);
      masks::Masks m = masks::classify<family == Pattern::O200k>(block);
      const uint64_t word_ends = masks::word_ends(block, m);
      uint64_t begins = masks::starts<family>(block, pattern, m);
      begins &= begins - 1;  // that of the first piece is no end
      const int sure = m.last ? m.known : std::max(m.known - 2, 1);
      begins &= (uint64_t(1) << sure) - 1;
      if (!m.regular || (!begins && !m.last)) {
        if (!(m.regular ? long_piece() : one_by_one(p + 48))) break;
        continue;
      }
      // The next block begins at the last end of a word, known long before all places are, so that the
      // processor goes on with it meanwhile; only where there is none, at the last place of all.
      const Bytes block_start = p;
      if (__builtin_expect(word_ends != 0, 1)) {  // a branch, foreseen, where a selection would wait
        const int next = wide::highest_bit(word_ends);
        begins &= (uint64_t(2) << next) - 1;
        p += next;
      } else {
        p += wide::highest_bit(begins | 1);
      }
      count += wide::write_places(begins, uint32_t(block_start - start), ends + count);
      if (m.last) {
        p = end;
        ends[count++] = uint32_t(p - start);
      }
    }
    if (count > 0) return count;  // else a word of gigabytes
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
    for (uint32_t i = 0; i < 1024; i++) fill(pages.three[i], i << 6);
    for (int i = 0; i < 1024; i++) {
      const Page& page = pages.three[i];
      const bool whole = !(~page.letters | page.upper | page.lower);
      pages.whole[i >> 3] = uint8_t(pages.whole[i >> 3] | whole << (i & 7));
    }
    for (uint32_t i = 0; i < 512; i++) {
      const Class cls = class_table().of(i < 256 ? 0x3000 + i : 0xFE00 + i);
      pages.letters[i >> 3] = uint8_t(pages.letters[i >> 3] | (cls == Letter) << (i & 7));
      pages.symbols[i >> 3] = uint8_t(pages.symbols[i >> 3] | (cls == Other) << (i & 7));
    }
    for (uint32_t i = 0; i < 2048; i++) {
      auto note = [&](uint8_t* letters_of, uint8_t* symbols_of, Class cls) {
        letters_of[i >> 3] = uint8_t(letters_of[i >> 3] | in(cls, letters) << (i & 7));
        symbols_of[i >> 3] = uint8_t(symbols_of[i >> 3] | in(cls, symbols) << (i & 7));
      };
      note(pages.two_letters, pages.two_symbols, class_table().of(i));
      note(pages.e0_letters, pages.e0_symbols, class_table().of(2048 + i));
    }
    return pages;
  }();
  return all;
}

}  // namespace masks
#endif

size_t split(const Pattern& pattern, Bytes p, Bytes end, uint32_t* ends, size_t most) {
  const Lexer<HostClasses> lexer{{}, pattern, end};
  switch (pattern.family) {
    case Pattern::Gpt2:
      return fill<Pattern::Gpt2>(lexer, p, ends, most, [&](Bytes a) { return lexer.gpt2(a); });
    case Pattern::Cl100k:
      return fill<Pattern::Cl100k>(lexer, p, ends, most, [&](Bytes a) { return lexer.cl100k(a); });
    case Pattern::O200k:
      return fill<Pattern::O200k>(lexer, p, ends, most, [&](Bytes a) { return lexer.o200k(a); });
    default:
      return fill<Pattern::None>(lexer, p, ends, most, [&](Bytes) { return end; });
  }
}

}  // namespace text
