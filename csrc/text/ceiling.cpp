// What no encoder with a memory of pieces can leave out: cutting, and for each piece one key, one look at a
// table that lies in L2, one write of ids. The ids mean nothing; the time is a lower bound for encoding's.
#include "ceiling.h"

#include "cache.h"

namespace text {

size_t encode_nothing(const Pattern& pattern, std::string_view text) {
  constexpr size_t most = 256, room = most + piece_slack + 16;
  ShortPieces pieces(14);  // 1 MiB
  uint32_t whole[1 + room], *const ends = whole + 1, longer[room], ids[room + 4];
  alignas(64) ShortPieces::Line* lines[room];
  alignas(64) wide::Key keys[room];
  whole[0] = 0;
  const uint8_t* p = reinterpret_cast<const uint8_t*>(text.data());
  const uint8_t* const end = p + text.size();
  size_t written = 0;
  while (p < end) {
    const size_t count = split(pattern, p, end, ends, most);
    pieces.ask(p, end, ends, count, keys, lines, longer);
    uint32_t* out = ids;
    for (size_t i = 0; i < count; i++) {
      const size_t known = ShortPieces::find(keys[i], lines[i], out);
      *out++ = uint32_t(known);
    }
    written += size_t(out - ids);
    p += ends[count - 1];
  }
  return written;
}

}  // namespace text
