// Pre-split: cuts text into the pieces inside which BPE merges, as the regular expressions of the GPT family
// do.
//
// Each lexer (lexers.h) is the hand-written twin of one regular expression; a piece costs one pass over its
// characters and one of look-ahead.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace text {

struct Pattern {
  enum Family : uint8_t { None, Gpt2, Cl100k, O200k };
  Family family = None;     // None: the caller splits the text
  uint8_t digits = 3;       // longest run of digits in a piece (Gpt2: 0, or 1 for SmolLM's)
  bool whole_tail = false;  // white space up to the end of the text is one piece (tiktoken's form of cl100k)
};

// Where the pieces that begin at p end, as offsets from p: at least one of them, at most `most` and some that
// piece_slack leaves room for. Returns how many. p < end.
constexpr size_t piece_slack = 80;
size_t split(const Pattern& pattern, const uint8_t* p, const uint8_t* end, uint32_t* ends, size_t most);

// Calls visit(begin, end) for each piece of the text, cutting a few hundred at a time.
template <class Visit>
void for_each_piece(const Pattern& pattern, std::string_view text, Visit visit) {
  const uint8_t* p = reinterpret_cast<const uint8_t*>(text.data());
  const uint8_t* const end = p + text.size();
  constexpr size_t most = 256;
  uint32_t ends[most + piece_slack];
  while (p < end) {
    const size_t count = split(pattern, p, end, ends, most);
    for (size_t i = 0, start = 0; i < count; start = ends[i++]) visit(p + start, p + ends[i]);
    p += ends[count - 1];
  }
}

}  // namespace text
