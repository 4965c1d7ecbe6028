// Pre-split: cuts text into the pieces inside which BPE merges, as the regular expressions of the GPT family
// do.
//
// Each lexer is the hand-written twin of one regular expression (kernels/bpe/__init__.py holds the strings); a
// piece costs one pass over its characters and one of look-ahead.
#pragma once
#include <cstdint>

namespace text {

struct Pattern {
  enum Family : uint8_t { None, Gpt2, Cl100k, O200k };
  Family family = None;     // None: the caller splits the text
  uint8_t digits = 3;       // longest run of digits in a piece (Cl100k, O200k)
  bool whole_tail = false;  // white space up to the end of the text is one piece (tiktoken's form of cl100k)
};

// The end of the piece that starts at p; p < end. Always advances.
const uint8_t* next_piece(const Pattern& pattern, const uint8_t* p, const uint8_t* end);

}  // namespace text
