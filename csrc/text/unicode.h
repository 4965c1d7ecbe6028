// Character classes of UTF-8 text, as the pre-split patterns see them.
//
// Text is any bytes. A byte that starts no valid UTF-8 sequence (stray continuation, cut sequence, overlong
// form, surrogate) is a character of its own, one byte long, of class Other.
#pragma once
#include <cstdint>

namespace text {

// Upper is \p{Lu}\p{Lt}, Lower \p{Ll}, Letter \p{Lm}\p{Lo}: together \p{L}. Mark is \p{M}, Number \p{N}, Space
// \s.
enum Class : uint8_t { Other, Upper, Lower, Letter, Mark, Number, Space };

struct Character {
  Class cls;
  uint8_t size;   // bytes, at least 1
  uint32_t code;  // code point; the byte itself where the bytes are not valid UTF-8
};

// The class of each code point: pages of 128 code points, equal pages stored once.
struct ClassTable {
  uint16_t page[0x110000 >> 7];
  uint8_t cells[512 * 128];
  Class of(uint32_t code) const { return Class(cells[page[code >> 7] * 128 + (code & 127)]); }
};
const ClassTable& class_table();

extern const Class ascii_class[128];

// The character that starts at p; p < end.
Character decode(const uint8_t* p, const uint8_t* end);

inline Character character_at(const uint8_t* p, const uint8_t* end) {
  if (*p < 128) return {ascii_class[*p], 1, *p};
  return decode(p, end);
}

// Sets of classes, as bits.
using ClassSet = uint8_t;
constexpr ClassSet set_of(Class c) { return ClassSet(1 << c); }
constexpr ClassSet letters = set_of(Upper) | set_of(Lower) | set_of(Letter);
constexpr ClassSet numbers = set_of(Number);
constexpr ClassSet spaces = set_of(Space);
constexpr ClassSet symbols = set_of(Other) | set_of(Mark);  // [^\s\p{L}\p{N}]
constexpr ClassSet heads = set_of(Upper) | set_of(Letter) | set_of(Mark);
constexpr ClassSet bodies = set_of(Lower) | set_of(Letter) | set_of(Mark);
inline bool in(Class c, ClassSet set) { return set >> c & 1; }

// The longest run from p of characters in `set`.
inline const uint8_t* run(const uint8_t* p, const uint8_t* end, ClassSet set) {
  while (p < end) {
    if (*p < 128) {
      if (!in(ascii_class[*p], set)) break;
      p++;
    } else {
      Character c = decode(p, end);
      if (!in(c.cls, set)) break;
      p += c.size;
    }
  }
  return p;
}

}  // namespace text
