// Encoding: a text is cut into pieces, and each piece becomes ids, by memory or by merging.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "cache.h"
#include "presplit.h"
#include "vocabulary.h"

namespace text {

struct Free {
  void operator()(uint32_t* p) const { std::free(p); }
};
using IdMemory = std::unique_ptr<uint32_t, Free>;

// The memory of the last large array of ids that was given up, up to 128 MiB, for the next one: new memory
// costs a tenth of a pass for the zeros that the system writes into it.
class SpareIds {
 public:
  void keep(IdMemory memory, size_t capacity);
  std::pair<IdMemory, size_t> take();

 private:
  std::mutex lock_;  // held only to move a pointer
  IdMemory memory_;
  size_t capacity_ = 0;
};

// A growing array of ids, without the zeros that a vector would write first.
class Ids {
 public:
  explicit Ids(std::shared_ptr<SpareIds> spare = nullptr) : spare_(std::move(spare)) {
    if (spare_) std::tie(data_, capacity_) = spare_->take();
  }
  ~Ids() {
    if (spare_ && data_) spare_->keep(std::move(data_), capacity_);
  }
  Ids(Ids&&) = default;
  Ids& operator=(Ids&&) = default;
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
  IdMemory data_;
  size_t size_ = 0, capacity_ = 0;
  std::shared_ptr<SpareIds> spare_;
};

// A piece whose ids are not at hand, or a part of one.
struct Unknown {
  const uint8_t* p;
  wide::Key key;  // of more than 15 bytes: hash and size
  ShortPieces::Line* line;
  uint32_t size;
  bool met;                    // remembered, but as more ids than its slot has room for
  bool fits;                   // its slot has room for its ids
  uint32_t ids, count;         // where its ids are, in Unknowns::ids
  uint32_t same;               // the number of the piece that holds its ids: its own, or that of an equal one
  uint32_t parts, part_count;  // the number of the first of its parts, and how many
  uint32_t name;               // what LongPieces calls it, if it goes there
  uint32_t older;              // one more than the number of an older piece in its bucket, or 0
  uint32_t like;               // one more than the number of another piece of its size to be merged, or 0
};

// Pieces that wait until many are learnt together, and where their ids belong.
class Unknowns {
 public:
  Unknowns();
  // Where the ids of a piece belong in an array of ids: between two that are there, or where room is left.
  struct Place {
    size_t at;
    uint32_t piece;
  };
  std::vector<Unknown> pieces;
  std::vector<Place> gaps, blanks;
  // Where a text ends in the array of ids, less what is missing in so many gaps.
  struct End {
    int64_t* at;
    size_t gaps;
  };
  std::vector<End> ends;
  std::unique_ptr<uint32_t[]> ids;

  void add(const uint8_t* p, size_t size, const wide::Key& key, ShortPieces::Line* line, bool met) {
    const uint32_t at = pieces.empty() ? 0 : pieces.back().ids + pieces.back().size + 4;
    const uint32_t number = uint32_t(pieces.size());
    Unknown& piece = pieces.emplace_back();  // filled where it is: a copy would wait for what was just stored
    piece.p = p;
    piece.key = key;
    piece.line = line;
    piece.size = uint32_t(size);
    piece.met = met;
    piece.ids = at;
    piece.same = number;
  }
  // The number of a piece equal to this one that was entered before; else enters this one and returns its own.
  uint32_t enter(uint32_t number) {
    Unknown& piece = pieces[number];
    uint32_t& newest = newest_[piece.key.hash() >> (64 - bucket_bits)];
    for (uint32_t n = newest; n; n = pieces[n - 1].older) {
      const Unknown& other = pieces[n - 1];
      if (other.key.low == piece.key.low && other.key.high == piece.key.high &&
          (piece.size <= 15 || !std::memcmp(other.p, piece.p, piece.size)))
        return n - 1;
    }
    piece.older = newest;
    newest = number + 1;
    return number;
  }
  // Notes a piece of the text, if none waits that is equal to it; returns the number of the one or the other.
  uint32_t note(const uint8_t* p, size_t size, const wide::Key& key, ShortPieces::Line* line, bool met) {
    const uint32_t number = uint32_t(pieces.size());
    add(p, size, key, line, met);
    const uint32_t same = size > LongPieces::most_bytes ? number : enter(number);
    if (same != number) pieces.pop_back();
    return same;
  }
  void clear() {
    pieces.clear(), gaps.clear(), blanks.clear(), ends.clear();
    std::fill_n(newest_, buckets, 0);
  }

 private:
  static constexpr int bucket_bits = 10;
  static constexpr size_t buckets = size_t(1) << bucket_bits;
  uint32_t newest_[buckets] = {};  // of each bucket, one more than the number of the piece entered last
};

// Whether the pieces that come by are so new that to look for them and to remember them costs more than merging
// alone. Kept by what the one and the other cost, as a balance that real texts hold near zero.
class Novelty {
 public:
  // After a batch in which so many pieces had to be learnt.
  void count(size_t bytes, size_t pieces, size_t bytes_of_them) {
    const int64_t spared = int64_t(pieces * overhead + bytes_of_them) - int64_t(bytes);
    balance_ = std::min(std::max<int64_t>(balance_ + spared, 0), 2 * enough);
  }
  // Whether to merge the next batch without memory. One in sixteen goes the other way, to see whether the time
  // of new pieces is over, and so do batches that came by before, since a text that is repeated should be
  // remembered.
  bool holds(const uint8_t* batch, size_t size) {
    if (balance_ < enough) return false;
    const uint64_t hash = hash_of(batch, std::min<size_t>(size, 64));
    uint32_t& seen = seen_[hash >> (64 - seen_bits)];
    if (seen == uint32_t(hash)) return false;
    seen = uint32_t(hash);
    return ++batches_ % 16 != 0;
  }

 private:
  // What a new piece costs beside its merging, and how much must be spared; both in bytes merged.
  static constexpr int64_t overhead = 8, enough = 32768;
  static constexpr int seen_bits = 14;
  int64_t balance_ = 0;
  uint32_t batches_ = 0;
  std::vector<uint32_t> seen_ = std::vector<uint32_t>(1 << seen_bits);
};

// What one encoding thread needs.
struct Workspace {
  ShortPieces short_pieces;
  LongPieces long_pieces;
  Novelty novelty;
  MergeScratch scratch;
  std::vector<uint8_t> kept;  // of a piece, the bytes that are tokens
  Unknowns unknown;
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

  // An empty array for ids that leave this encoder.
  Ids fresh_ids() const { return Ids(spare_); }

  const Vocabulary vocabulary;
  const Pattern pattern;

 private:
  void encode(std::string_view text, Workspace& w, Ids& out, size_t most = SIZE_MAX) const;
  // The same, but for pieces that wait until settle().
  void encode_known(std::string_view text, Workspace& w, Ids& out, size_t most) const;
  // Piece i is p + ends[i - 1] to p + ends[i], from ends[-1], which is 0; behind the last there is room for 16
  // more.
  void encode_pieces(const uint8_t* p, const uint8_t* text_end, uint32_t* ends, size_t count, Workspace& w,
                     Ids& out) const;
  void encode_parts(const uint8_t* p, const uint8_t* text_end, const uint32_t* ends, size_t count, Workspace& w,
                    Ids& ids) const;
  // The same by merging alone, for pieces that are mostly new.
  void merge_pieces(const uint8_t* p, const uint32_t* ends, size_t count, Workspace& w, Ids& out) const;
  void learn(Workspace& w) const;
  // Learns what waits and puts its ids where they belong.
  void settle(Workspace& w, Ids& ids) const;
  void announce(Unknown& piece, Workspace& w) const;
  void remember(const Unknown& piece, Workspace& w) const;
  // Writes the ids of one piece to out, where its size in bytes and four more have room; returns the end.
  uint32_t* merge(const uint8_t* p, size_t size, Workspace& w, uint32_t* out) const;
  // Whether a piece of more than 62 bytes is merged in windows, in step with others, instead of alone.
  bool in_windows(const uint8_t* p, size_t size) const;
  // Symbols become the ids of their tokens.
  void to_ids(uint32_t* symbols, uint32_t* end) const;

  const std::shared_ptr<SpareIds> spare_ = std::make_shared<SpareIds>();
  mutable std::mutex idle_lock_;  // held only to move a pointer
  mutable std::vector<std::unique_ptr<Workspace>> idle_;
};

}  // namespace text
