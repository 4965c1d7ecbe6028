// Encoding: a text is cut into pieces, and each piece becomes ids, by memory or by merging.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string_view>
#include <vector>

#include "cache.h"
#include "presplit.h"
#include "vocabulary.h"

namespace text {

// A growing array of ids, without the zeros that a vector would write first.
class Ids {
 public:
  // Where the next ids go; `more` of them have room there.
  uint32_t* room(size_t more) {
    if (size_ + more > capacity_) grow(size_ + more);
    return data_.get() + size_;
  }
  void end_at(const uint32_t* end) { size_ = end - data_.get(); }
  void clear() { size_ = 0; }
  const uint32_t* data() const { return data_.get(); }
  uint32_t* data() { return data_.get(); }
  size_t size() const { return size_; }

 private:
  void grow(size_t least);
  struct Free {
    void operator()(uint32_t* p) const { std::free(p); }
  };
  std::unique_ptr<uint32_t, Free> data_;
  size_t size_ = 0, capacity_ = 0;
};

// What one encoding thread needs.
struct Workspace {
  ShortPieces short_pieces;
  LongPieces long_pieces;
  MergeScratch scratch;
  Ids ids;  // for callers that only look at them
};

class Encoder {
 public:
  Encoder(Vocabulary vocabulary, Pattern pattern);

  // Appends the ids of a text (pre-split first) or of pieces. Safe from many threads at once; no lock is held.
  // Stops soon after `most` ids.
  void encode(std::string_view text, Ids& out, size_t most = SIZE_MAX) const;
  void encode_pieces(const std::vector<std::string_view>& pieces, Ids& out) const;
  // Encodes all texts on `threads` threads; result i is texts[i]'s.
  void encode_batch(const std::vector<std::string_view>& texts, int threads, Ids& ids,
                    std::vector<int64_t>& offsets) const;

  // The same for small texts, with a workspace that the caller holds for a moment.
  std::unique_ptr<Workspace> take() const;
  void give(std::unique_ptr<Workspace> workspace) const;
  const Ids& encode_in(Workspace& w, std::string_view text) const {
    w.ids.clear();
    encode(text, w, w.ids);
    return w.ids;
  }

  const Vocabulary vocabulary;
  const Pattern pattern;

 private:
  void encode(std::string_view text, Workspace& w, Ids& out, size_t most = SIZE_MAX) const;
  void encode_pieces(const uint8_t* p, const uint8_t* text_end, const uint32_t* ends, size_t count,
                     Workspace& w, Ids& out) const;
  struct Unknown;
  void learn(Unknown* unknown, size_t count, Workspace& w) const;
  void remember(Unknown& piece, size_t count, Workspace& w) const;
  // These write the ids of one piece to out, where its size in bytes and four more have room; they return the
  // end.
  uint32_t* merge(const uint8_t* p, size_t size, Workspace& w, uint32_t* out) const;
  uint32_t* in_parts(const uint8_t* p, size_t size, bool known, Workspace& w, uint32_t* out) const;
  uint32_t* long_piece(const uint8_t* p, size_t size, Workspace& w, uint32_t* out) const;
  uint32_t* short_piece(wide::Key key, uint32_t line, const uint8_t* p, size_t size, Workspace& w,
                        uint32_t* out) const;

  mutable std::mutex idle_lock_;  // held only to move a pointer
  mutable std::vector<std::unique_ptr<Workspace>> idle_;
};

}  // namespace text
