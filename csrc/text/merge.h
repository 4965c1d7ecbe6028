// Merging: from the bytes of a piece to its tokens.
//
// Symbols. While merging, a token is named by its rank: the place of the merge that makes it. So the number
// that says which pair goes first is also the name of what the pair becomes. One merge at most makes a token:
// inside its bytes merging is deterministic, whatever stands around, so only one last pair is ever reached.
//
// Theorem. A sequence of tokens is the result of merging its bytes if and only if each two neighbours alone
// are the result of merging theirs. (Until the first merge across a border, both sides go on as if alone, and
// the same merge would come next with just the two of them.) Two consequences carry all that is fast here:
// a part of a result is the result of that part; and two results that share one token can be joined at it.
//
// So a long piece is encoded in windows: each begins a few tokens before the end of what is known, and is
// joined there if its first token is the known one; else it begins twice as far back. Windows grow with the
// way back, so that each byte is merged a constant number of times: a piece of n bytes costs O(n).
//
// Windows of one size need not wait for each other: 16 of them, each overlapping the one before, are merged in
// step, and joined where both have a token in the overlap. Where that fails, one window after the other goes
// on.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

#include "tables.h"
#include "wide.h"

namespace text {

constexpr uint32_t most_symbols = (1 << symbol_bits) - 1;

class Vocabulary;
struct Pattern;

// (left, right) -> the symbol of the merged token. A bucket is one cache line: a look-up reads one, whether it
// finds or not. Most pairs that are asked for are not there, and the table is larger than L2; a set of their
// hashes, a few bits for each pair, fits there and spares most of these lines.
class PairTable {
 public:
  explicit PairTable(size_t pairs = 0);
  void add(uint32_t left, uint32_t right, uint32_t merged);  // of equal pairs the first stays
  void prefetch(uint64_t key) const { __builtin_prefetch(&entries_[pair_bucket(key, shift_) * 8]); }
  // Whether the set leaves it open that this pair is there.
  bool may_have(uint64_t key) const {
    const uint64_t bit = pair_bucket(key, set_shift_);
    return set_[bit >> 6] >> (bit & 63) & 1;
  }
  uint32_t find(uint32_t left, uint32_t right) const {
    const uint64_t key = pair_key(left, right);
    return may_have(key) ? find(key) : none;
  }
  uint32_t find(uint64_t key) const { return find_from(pair_bucket(key, shift_), key); }
  uint32_t find_from(size_t bucket, uint64_t key) const {  // a key's own bucket
    for (;; bucket = (bucket + 1) & mask_) {
      const uint64_t* entries = &entries_[bucket * 8];
      const uint32_t place = wide::find_entry<22>(entries, key << 22);
      const uint32_t value = uint32_t(entries[place & 7]) & most_merged;
      if (__builtin_expect((place < 8) | (entries[7] == no_pair), 1)) return place < 8 ? value : none;
    }
  }
#ifdef TEXT_AVX512
  // A round of merging, in three steps that may take turns with those of another: the new pairs of which the
  // set leaves it open that they are there, their lines asked for, and their ranks found.
  uint32_t merge_lowest(wide::Columns& columns, uint32_t outer) const {
    return columns.merge_lowest(set_.data(), set_shift_, outer);
  }
  void prefetch(const wide::Columns& columns, uint32_t wanted) const {
    for (; wanted; wanted &= wanted - 1)
      __builtin_prefetch(&entries_[size_t(columns.buckets[wide::lowest_bit(wanted)]) * 8]);
  }
  void find_ranks(wide::Columns& columns, uint32_t wanted) const {
    for (; wanted; wanted &= wanted - 1) {
      const int i = wide::lowest_bit(wanted);
      columns.ranks[i] = find_from(columns.buckets[i], columns.keys[i]);
    }
  }
#endif

 private:
  friend std::vector<uint8_t> image_of(const Vocabulary&, const Pattern&);
  std::vector<uint64_t, wide::Aligned<uint64_t>> entries_;
  std::vector<uint64_t> set_;
  int shift_, set_shift_;
  size_t mask_;
};

// Memory for merging long pieces; one for each thread.
struct MergeScratch {
  std::vector<uint32_t> symbols;  // the tokens of one window
  std::vector<uint32_t> region, ranks, next, previous;
  std::vector<uint64_t> heap;
};

// Up to 16 pieces of up to `bytes` bytes that are merged in step: what they wait for, they wait for together.
// Byte i of a piece is place i + 1; the places before the first and behind the last hold a symbol that no pair
// has. A row for each place, so that the lowest rank of all pieces is found at once.
template <size_t bytes_>
struct Lanes {
  static constexpr size_t most = 16, bytes = bytes_;
  alignas(64) uint32_t symbols[bytes + 2][most];
  alignas(64) uint32_t ranks[bytes + 2][most];  // of the pair that begins here, times 64, plus the place
  uint64_t alive[most];  // bit i: a token begins at place i; the two outer places are always alive
  uint64_t gaps[most];   // bit i: place i is between two pieces of this lane, always alive and in no pair
  size_t count = 0;
  int used[most];   // places between the outer ones
  int longest = 0;  // the most of these
  void clear() { count = 0, longest = 0; }
  // Bit i: a token of this lane begins at byte i, or in place of a byte if pieces stand before it.
  uint64_t starts(size_t lane) const {
    return (alive[lane] & ~gaps[lane] & ~(uint64_t(1) << wide::highest_bit(alive[lane]))) >> 1;
  }
};

class Merger {
 public:
  // byte_symbols: the symbol of each byte; pairs: as many as will be added, about.
  Merger(const uint32_t byte_symbols[256], size_t pairs);

  // Pairs must be added in order of `merged`, unless `monotone` is set to false.
  void add(uint32_t left, uint32_t right, uint32_t merged);
  // Whether no two neighbours of these bytes merge, so that nothing ever does: each byte stays a token.
  bool inert(const uint8_t* p, size_t n) const {
    for (size_t i = 0; i + 1 < n; i++) {
      if (bytes_merge_[p[i]][p[i + 1] >> 6] >> (p[i + 1] & 63) & 1) return false;
    }
    return true;
  }
  bool has(uint32_t left, uint32_t right) const { return pairs_.find(left, right) != none; }
  void prefetch(uint32_t left, uint32_t right) const { pairs_.prefetch(pair_key(left, right)); }
  // Whether every pair's parts have lower symbols than what it becomes. All places of the lowest pair can then
  // be merged in one round, because none of them makes a pair that should have gone before.
  bool monotone = true;

  // Merges n <= 64 bytes. symbols[i] holds the token that starts at byte i, for each bit i of the result.
  uint64_t window(const uint8_t* p, size_t n, uint32_t symbols[64]) const;
  // Adds a piece in a lane of its own, where fewer than 16 are; 0 < n <= bytes, which is 15 or 62.
  template <size_t bytes>
  void add(const uint8_t* p, size_t n, Lanes<bytes>& lanes) const;
  // Adds a piece behind the last, in the same lane if it has room. Returns whether there was a lane with room.
  bool pack(const uint8_t* p, size_t n, Lanes<62>& lanes) const;
  // Adds a piece of more than 62 bytes as windows, in lanes of their own. Returns whether there were as many.
  bool add_windows(const uint8_t* p, size_t n, Lanes<62>& lanes) const;
  static constexpr size_t overlap = 16, stride = 62 - overlap,
                          most_in_windows = Lanes<62>::most * stride + overlap;  // bytes
  // Merges them all. The tokens of lane i are symbols[byte + 1][i] for each byte of lanes.starts(i).
  template <size_t bytes>
  void merge(Lanes<bytes>& lanes) const;
  // The same for some groups of short pieces, of which one is merged while the others' look-ups are on their
  // way.
  static constexpr size_t groups = 4;
  void merge(Lanes<15> (&several)[groups]) const;
  // The tokens of a piece whose windows begin with this lane, to out, where n have room; returns their end and
  // moves the lane behind the last window.
  uint32_t* join_windows(const uint8_t* p, size_t n, const Lanes<62>& lanes, size_t& lane, MergeScratch& s,
                         uint32_t* out) const;

  // Merges n bytes, any number below 4 GiB. The tokens go to out, where n have room; returns their end.
  uint32_t* merge(const uint8_t* p, size_t n, MergeScratch& scratch, uint32_t* out) const;

 private:
  template <size_t bytes>
  void fill(const uint8_t* p, size_t n, size_t first, size_t lane, Lanes<bytes>& lanes) const;
  template <class Ranks>
  uint64_t rounds(size_t n, uint32_t* symbols, const uint32_t* first) const;
  struct Known;
  struct Windows;
  void grow(const uint8_t* p, size_t n, MergeScratch& scratch, Known& known) const;
  bool attach(const uint8_t* p, size_t n, const Lanes<62>& lanes, const Windows& windows, MergeScratch& scratch,
              Known& known) const;
  bool grow_in_step(const uint8_t* p, size_t n, MergeScratch& scratch, Known& known) const;
  void region(const uint8_t* p, uint32_t start, uint32_t end, MergeScratch& scratch) const;
  bool region_by_rounds(int most, uint32_t n, MergeScratch& scratch) const;
  void region_by_heap(uint32_t n, MergeScratch& scratch) const;

  friend std::vector<uint8_t> image_of(const Vocabulary&, const Pattern&);
  uint32_t byte_symbols_[256];
  std::vector<int16_t> byte_of_;       // [symbol]; -1: none
  std::vector<uint32_t> byte_pairs_;   // [first << 8 | second]
  uint64_t bytes_merge_[256][4] = {};  // a bit of each of them: whether it is not `none`
  std::vector<uint32_t> sizes_;        // [symbol] bytes
  PairTable pairs_;
};

}  // namespace text
