// From ids back to text: the bytes of every token, one behind the other, and where each begins.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace text {

class Decoder {
 public:
  // tokens: the bytes of each id. Throws std::length_error beyond 4 GiB of them.
  explicit Decoder(const std::vector<std::string_view>& tokens) {
    starts_.reserve(tokens.size() + 1);
    for (std::string_view token : tokens) {
      starts_.push_back(uint32_t(bytes_.size()));
      bytes_ += token;
      if (bytes_.size() > std::numeric_limits<uint32_t>::max() - chunk)
        throw std::length_error("the tokens of a vocabulary are more than 4 GiB together");
    }
    starts_.push_back(uint32_t(bytes_.size()));
    bytes_.append(chunk, '\0');
  }

  size_t size() const { return starts_.size() - 1; }

  // Bytes of the text of `count` ids; std::out_of_range if one of them is no id.
  template <class Id>
  size_t measure(const Id* ids, size_t count) const {
    size_t bytes = 0;
    for (size_t i = 0; i < count; i++) {
      const size_t id = size_t(ids[i]);  // a negative one is too large then
      if (id >= size()) throw std::out_of_range("no such id");
      bytes += starts_[id + 1] - starts_[id];
    }
    return bytes;
  }

  // Writes that text to [out, end), as many bytes as measure() said.
  template <class Id>
  void write(const Id* ids, size_t count, char* out, const char* end) const {
    for (size_t i = 0; i < count; i++) {
      const uint32_t start = starts_[size_t(ids[i])], bytes = starts_[size_t(ids[i]) + 1] - start;
      // Nearly all tokens are shorter than a chunk, which is copied faster than a number of bytes that varies.
      // What it brings too much, the next token overwrites.
      if (bytes <= chunk && end - out >= ptrdiff_t(chunk))
        std::memcpy(out, bytes_.data() + start, chunk);
      else
        std::memcpy(out, bytes_.data() + start, bytes);
      out += bytes;
    }
  }

 private:
  static constexpr size_t chunk = 16;
  std::vector<uint32_t> starts_;  // and where the last one ends
  std::string bytes_;             // and a chunk's more, so that the last token is copied like the others
};

}  // namespace text
