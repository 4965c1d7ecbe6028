// Character classes of UTF-8 text, as the pre-split patterns see them.
//
// Text is any bytes. A byte that starts no valid UTF-8 sequence (stray continuation, cut sequence, overlong
// form, surrogate) is a character of its own, one byte long, of class Other.
#pragma once
#include <cstdint>

// What nvcc compiles for both the host and the GPU.
#ifdef __CUDACC__
#define TEXT_BOTH __host__ __device__
#else
#define TEXT_BOTH
#endif

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
  TEXT_BOTH Class of(uint32_t code) const { return Class(cells[page[code >> 7] * 128 + (code & 127)]); }
};
const ClassTable& class_table();

extern const Class ascii_class[128];

// The character beyond ASCII that starts at p; p < end. Its class is looked up in `table`.
TEXT_BOTH inline Character decode(const ClassTable& table, const uint8_t* p, const uint8_t* end) {
  const uint32_t a = p[0];
  const Character invalid{Other, 1, a};
  auto tail = [&](int i) { return (p[i] & 0xC0) == 0x80; };
  uint32_t code;
  uint8_t size;
  if (a >= 0xC2 && a <= 0xDF && end - p >= 2 && tail(1)) {
    code = (a & 31) << 6 | (p[1] & 63);
    size = 2;
  } else if ((a & 0xF0) == 0xE0 && end - p >= 3 && tail(1) && tail(2)) {
    code = (a & 15) << 12 | (p[1] & 63) << 6 | (p[2] & 63);
    size = 3;
    if (code < 0x800 || (code >= 0xD800 && code < 0xE000)) return invalid;
  } else if (a >= 0xF0 && a <= 0xF4 && end - p >= 4 && tail(1) && tail(2) && tail(3)) {
    code = (a & 7) << 18 | (p[1] & 63) << 12 | (p[2] & 63) << 6 | (p[3] & 63);
    size = 4;
    if (code < 0x10000 || code > 0x10FFFF) return invalid;
  } else {
    return invalid;
  }
  return {table.of(code), size, code};
}

// The character that starts at p; p < end. This one the host's, by the table that it builds.
Character decode(const uint8_t* p, const uint8_t* end);

// Sets of classes, as bits.
using ClassSet = uint8_t;
TEXT_BOTH constexpr ClassSet set_of(Class c) { return ClassSet(1 << c); }
constexpr ClassSet letters = set_of(Upper) | set_of(Lower) | set_of(Letter);
constexpr ClassSet numbers = set_of(Number);
constexpr ClassSet spaces = set_of(Space);
constexpr ClassSet symbols = set_of(Other) | set_of(Mark);  // [^\s\p{L}\p{N}]
constexpr ClassSet heads = set_of(Upper) | set_of(Letter) | set_of(Mark);
constexpr ClassSet bodies = set_of(Lower) | set_of(Letter) | set_of(Mark);
TEXT_BOTH inline bool in(Class c, ClassSet set) { return set >> c & 1; }

}  // namespace text
