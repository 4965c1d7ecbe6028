// What no encoder with a memory of pieces can leave out: cutting, and for each piece one key, one look at a
// table that lies in L2, one write of ids. The ids mean nothing; the time is a lower bound for encoding's.
#include "ceiling.h"

#include "cache.h"

namespace text {

size_t encode_nothing(const Pattern& pattern, std::string_view text) {
  constexpr size_t most = 256;
  constexpr int line_bits = 14;  // 1 MiB
  Zeroed<ShortPieces::Line> table(size_t(1) << line_bits);
  uint32_t ends[most + piece_slack], lines[most + piece_slack], ids[most + piece_slack + 4];
  wide::Key keys[most + piece_slack];
  const uint8_t* p = reinterpret_cast<const uint8_t*>(text.data());
  const uint8_t* const end = p + text.size();
  size_t written = 0;
  while (p < end) {
    const size_t count = split(pattern, p, end, ends, most);
    for (size_t i = 0, start = 0; i < count; start = ends[i++]) {
      keys[i] = wide::key_of(p + start, ends[i] - start < 15 ? ends[i] - start : 15, end);
      lines[i] = ShortPieces::line_of(keys[i]) >> (ShortPieces::line_bits - line_bits);
      __builtin_prefetch(&table[lines[i]]);
    }
    uint32_t* out = ids;
    for (size_t i = 0; i < count; i++) {
      const ShortPieces::Slot* slot = table[lines[i]];
      slot += slot[1].holds(keys[i]);
      std::memcpy(out, slot->ids, sizeof slot->ids);
      out += 1 + slot->holds(keys[i]);  // never, but that is not known before the table is read
    }
    written += size_t(out - ids);
    p += ends[count - 1];
  }
  return written;
}

}  // namespace text
