#include "image.h"

#include <algorithm>
#include <stdexcept>

#include "vocabulary.h"

namespace text {

std::vector<uint8_t> image_of(const Vocabulary& vocabulary, const Pattern& pattern) {
  std::vector<uint8_t> bytes(sizeof(Image));
  auto append = [&](const auto* values, size_t count) {
    const size_t place = (bytes.size() + 63) / 64 * 64, size = count * sizeof(*values);
    bytes.resize(place + size);
    if (size) std::memcpy(&bytes[place], values, size);
    return uint64_t(place);
  };
  const Tokens& tokens = vocabulary.tokens;
  const Merger& merger = vocabulary.merger_;
  static_assert(sizeof(Image::Span) == sizeof(Tokens::Span), "spans are copied as they are");
  Image image{};
  image.pattern = pattern;
  image.whole_shift = vocabulary.whole_.shift_;
  image.pair_shift = merger.pairs_.shift_;
  for (const Tokens::Span& span : tokens.spans_) image.longest = std::max(image.longest, span.size);
  image.lacks_bytes = vocabulary.lacks_bytes_;
  if (class_table().page[0] != 0) throw std::logic_error("ASCII is not the first page of classes");
  image.classes = append(&class_table(), 1);
  image.whole = append(vocabulary.whole_.entries_.data(), vocabulary.whole_.entries_.size());
  image.spans = append(tokens.spans_.data(), tokens.spans_.size());
  image.bytes = append(tokens.bytes_.data(), tokens.bytes_.size());
  image.narrow = append(vocabulary.junctions.narrow_.data(), vocabulary.junctions.narrow_.size());
  image.broad = append(vocabulary.junctions.broad_.data(), vocabulary.junctions.broad_.size());
  image.ids = append(vocabulary.ids_.data(), vocabulary.ids_.size());
  image.byte_symbols = append(merger.byte_symbols_, 256);
  image.byte_pairs = append(merger.byte_pairs_.data(), merger.byte_pairs_.size());
  image.pairs = append(merger.pairs_.entries_.data(), merger.pairs_.entries_.size());
  std::memcpy(bytes.data(), &image, sizeof image);
  return bytes;
}

}  // namespace text
