#include "unicode.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace text {
namespace {

struct Range {
  uint32_t first;
  Class cls;
};
const Range ranges[] = {
#include "unicode_classes.h"
};

std::unique_ptr<ClassTable> build() {
  std::vector<uint8_t> flat(0x110000);
  const size_t count = sizeof(ranges) / sizeof(ranges[0]);
  for (size_t i = 0; i < count; i++) {
    uint32_t end = i + 1 < count ? ranges[i + 1].first : 0x110000;
    std::memset(&flat[ranges[i].first], ranges[i].cls, end - ranges[i].first);
  }
  auto table = std::make_unique<ClassTable>();
  std::map<std::string, uint16_t> seen;
  for (uint32_t page = 0; page < (0x110000 >> 7); page++) {
    std::string cells(reinterpret_cast<char*>(&flat[page << 7]), 128);
    auto [it, fresh] = seen.emplace(cells, uint16_t(seen.size()));
    if (fresh) {
      if (it->second >= 512) std::abort();  // the table in unicode.h is too small for this Unicode version
      std::memcpy(&table->cells[it->second * 128], cells.data(), 128);
    }
    table->page[page] = it->second;
  }
  return table;
}

}  // namespace

#define S Space
#define O Other
#define N Number
#define U Upper
#define L Lower
const Class ascii_class[128] = {
    O, O, O, O, O, O, O, O, O, S, S, S, S, S, O, O, O, O, O, O, O, O, O, O, O, O, O, O, O, O, O, O,
    S, O, O, O, O, O, O, O, O, O, O, O, O, O, O, O, N, N, N, N, N, N, N, N, N, N, O, O, O, O, O, O,
    O, U, U, U, U, U, U, U, U, U, U, U, U, U, U, U, U, U, U, U, U, U, U, U, U, U, U, O, O, O, O, O,
    O, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, O, O, O, O, O,
};
#undef S
#undef O
#undef N
#undef U
#undef L

const ClassTable& class_table() {
  static const std::unique_ptr<ClassTable> table = build();
  return *table;
}

Character decode(const uint8_t* p, const uint8_t* end) {
  if (*p < 0x80) return {ascii_class[*p], 1, *p};
  return decode(class_table(), p, end);
}

}  // namespace text
