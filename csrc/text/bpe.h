// Byte-level BPE: encoding with a given vocabulary, and training one.
//
// Encoding a piece merges, again and again, the adjacent pair of lowest rank (leftmost on ties) until no pair
// is in the table. Short pieces scan an array; long ones keep the pairs in a heap, so that n bytes cost
// O(n log n) whatever they are. Most pieces never get there: a cache of fixed size maps a piece of up to 15
// bytes to its up to 4 ids in one 32-byte slot.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "presplit.h"

namespace text {

struct Merge {
  uint32_t left, right, rank, id;
};

// (left, right) -> rank and id of the merged token. Open addressing, at most half full, never changed after
// build.
class PairTable {
 public:
  static constexpr uint32_t none = 0xFFFFFFFF;
  struct Entry {
    uint64_t key;
    uint32_t rank, id;
  };
  explicit PairTable(const std::vector<Merge>& merges);
  // The entry of a pair, or one whose rank is `none`.
  const Entry& find(uint32_t left, uint32_t right) const {
    const uint64_t key = uint64_t(left) << 32 | right;
    for (size_t i = key * 0x9E3779B97F4A7C15u >> shift_;; i = (i + 1) & mask_) {
      if (entries_[i].key == key || entries_[i].rank == none) return entries_[i];
    }
  }

 private:
  std::vector<Entry> entries_;
  int shift_;
  size_t mask_;
};

// What one encoding thread needs: the piece cache and scratch memory.
struct Workspace {
  struct Slot {
    uint64_t low, high;  // the piece's bytes; top byte of high: length in the low half, ids in the high half
    uint32_t ids[4];
  };
  static constexpr int slot_bits = 16;  // 2 MiB
  std::vector<Slot> slots = std::vector<Slot>(size_t(1) << slot_bits);
  std::vector<uint32_t> ids, next, previous;
  std::vector<uint64_t> heap;
};

// A growing array of ids, without the zeros that a vector would write first.
class Ids {
 public:
  // Where the next ids go; `more` of them have room there.
  uint32_t* room(size_t more) {
    if (size_ + more > capacity_) grow(size_ + more);
    return data_.get() + size_;
  }
  void end_at(const uint32_t* end) { size_ = end - data_.get(); }
  void append(const Ids& other) {
    uint32_t* out = room(other.size_);
    end_at(std::copy_n(other.data_.get(), other.size_, out));
  }
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

class Encoder {
 public:
  // tokens: the bytes of each id (empty: no such token). A byte that is no token is dropped from texts,
  // and nothing merges across it.
  // whole_pieces: a piece that is a token is that token, whatever its merges would give.
  Encoder(std::vector<std::string> tokens, const std::vector<Merge>& merges, Pattern pattern,
          bool whole_pieces);

  // Appends the ids of a text (pre-split first) or of one piece. Safe from many threads at once.
  void encode(std::string_view text, Ids& out) const;
  void encode_pieces(const std::vector<std::string_view>& pieces, Ids& out) const;

  // Encodes all texts on `threads` threads; result i is texts[i]'s.
  void encode_batch(const std::vector<std::string_view>& texts, int threads, Ids& ids,
                    std::vector<int64_t>& offsets) const;

  const Pattern pattern;

 private:
  // These write the ids of one piece to out, where its size in bytes and four more have room; they return the
  // end.
  uint32_t* piece(const uint8_t* p, size_t size, const uint8_t* text_end, Workspace& w, uint32_t* out) const;
  uint32_t* merge(const uint8_t* p, size_t size, Workspace& w, uint32_t* out) const;
  uint32_t* merge_short(size_t size, Workspace& w, uint32_t* out) const;
  uint32_t* merge_long(size_t size, Workspace& w, uint32_t* out) const;
  std::unique_ptr<Workspace> take() const;
  void give(std::unique_ptr<Workspace> workspace) const;

  std::vector<std::string> tokens_;
  uint32_t byte_ids_[256];  // none where no token is that byte
  bool complete_;           // every byte is a token
  PairTable pairs_;
  std::unordered_map<std::string_view, uint32_t> whole_;
  mutable std::mutex idle_lock_;  // held only to move a pointer
  mutable std::vector<std::unique_ptr<Workspace>> idle_;
};

// Distinct pieces and how often each occurs.
class WordCounts {
 public:
  void add(std::string_view word, int64_t count);
  void add(const WordCounts& other);
  size_t size() const { return counts_.size(); }
  std::string_view word(size_t i) const { return {&bytes_[starts_[i]], starts_[i + 1] - starts_[i]}; }
  int64_t count(size_t i) const { return counts_[i]; }

 private:
  void grow();
  std::vector<char> bytes_;
  std::vector<uint64_t> starts_{0}, hashes_;
  std::vector<int64_t> counts_;
  std::vector<uint32_t> slots_;  // 1 + index of a word; 0: empty
};

// Splits the texts and counts their pieces on `threads` threads.
void count_words(const std::vector<std::string_view>& texts, const Pattern& pattern, int threads,
                 WordCounts& into);

// Learns merges until `vocab_size` distinct tokens exist or no pair occurs min_frequency (at least 1) times.
// byte_ids: the id of each byte, a permutation of 0..255; new tokens get 256, 257 ...
// Ties go to the pair of lower ids. The result is that of Hugging Face's BpeTrainer, merge for merge.
std::vector<Merge> train(const WordCounts& words, const uint8_t byte_ids[256], size_t vocab_size,
                         int64_t min_frequency);

}  // namespace text
