// A vocabulary: the bytes of each id, and how merging makes them.
//
// It comes as a list of merges (Hugging Face, GGUF, our own), or as tokens with ranks (tiktoken), where any two
// neighbours whose joined bytes are a token merge, at that token's rank. Both are brought to one form: for each
// token the one pair that merging its bytes ends with, found by merging them. Pairs never reached are left out.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "merge.h"
#include "tables.h"

namespace text {

// The bytes of each id, in one piece of memory. Empty: no such token.
class Tokens {
 public:
  void set(size_t id, std::string_view bytes);
  size_t size() const { return spans_.size(); }
  std::string_view operator[](size_t id) const { return {bytes_.data() + spans_[id].start, spans_[id].size}; }

 private:
  friend std::vector<uint8_t> image_of(const Vocabulary&, const Pattern&);
  struct Span {
    uint32_t start = 0, size = 0;
  };
  std::string bytes_;
  std::vector<Span> spans_;
};

// Reads a tiktoken rank file: a token in base64, a space, its rank, on each line. Throws std::invalid_argument
// "LINE: what is wrong".
Tokens parse_ranks(std::string_view file);

// Bytes -> id, for pieces that are one token as a whole.
class WholeTable {
 public:
  explicit WholeTable(size_t tokens);
  void add(std::string_view bytes, uint32_t id);
  void prefetch(std::string_view bytes) const {
    __builtin_prefetch(&entries_[hash_of(bytes.data(), bytes.size()) >> shift_]);
  }
  // The id, or none.
  uint32_t find(const Tokens& tokens, std::string_view bytes) const {
    return find_whole(entries_.data(), shift_, hash_of(bytes.data(), bytes.size()),
                      [&](uint32_t id) { return tokens[id] == bytes; });
  }

 private:
  friend std::vector<uint8_t> image_of(const Vocabulary&, const Pattern&);
  std::vector<WholeEntry> entries_;
  int shift_;
};

// The JunctionTable of a vocabulary. Short parts are met again and again where whole pieces are not.
class Junctions {
 public:
  explicit Junctions(const Tokens& tokens);
  // The first certain place of a short piece from byte `from` >= 2 on, or its size.
  size_t cut(const uint8_t* piece, size_t size, size_t from) const { return table().cut(piece, size, from); }
  // Certain places among bytes base to base + 62 of a piece, base >= 6: bit i is byte base - 1 + i. Of those
  // that stand side by side every second, so that parts are two characters at least. None in a piece of more
  // than a kilobyte, which is no sentence: its parts are mostly new, and windows in step (merge.h) are faster
  // than they. No branch depends on whether a place is certain.
  uint64_t cuts(const uint8_t* piece, size_t size, size_t base) const {
    if (size > 1024 || base + 3 > size) return 0;
    const uint8_t* const start = piece + base - 1;
    const uint64_t places = wide::leads_behind_tails(start, piece + size - 2);
    uint64_t certain = 0, bit = 1;  // a bit for each place
    for (uint64_t left = places; left; left &= left - 1, bit <<= 1)
      certain |= table().crossed(key(start + wide::lowest_bit(left))) ? 0 : bit;
    return wide::deposit(wide::every_second(certain), places);
  }
  // Nothing is certain any more.
  void close();

 private:
  friend std::vector<uint8_t> image_of(const Vocabulary&, const Pattern&);
  JunctionTable table() const { return {narrow_.data(), broad_.data()}; }
  // JunctionTable::key, where five bytes before p can be read.
  static uint32_t key(const uint8_t* p) {
#ifdef TEXT_BLOCKS
    return uint32_t(wide::extract(number_of(p - 5, 8), uint64_t(0x3F3F0F3F3F) << 24));
#else
    return JunctionTable::key(p);
#endif
  }
  std::vector<uint64_t> narrow_, broad_;
};

struct Merge {
  uint32_t left, right, rank, id;
};

class Vocabulary {
 public:
  // From merges, whose ranks are the order. Each of the 256 bytes must be a token. whole_pieces: a piece that
  // is a token is that token, whatever its merges would give.
  Vocabulary(Tokens tokens, const std::vector<Merge>& merges, bool whole_pieces);
  // From tokens alone: an id is its rank, and whole pieces are tokens, as in tiktoken. All bytes must be
  // tokens.
  explicit Vocabulary(Tokens tokens);

  const Tokens tokens;
  const std::array<uint32_t, 256> byte_ids;
  Junctions junctions;  // closed where a part could be a token that its bytes do not merge to
  const Merger& merger() const { return merger_; }
  // The id of a piece that is one token, or none.
  uint32_t whole(std::string_view piece) const { return whole_.find(tokens, piece); }
  uint32_t id_of(uint32_t symbol) const { return symbol < renamed_ ? ids_[symbol] : symbol; }
  // Whether each byte of a piece is certain to stay a token, and those tokens, where there are any; returns the
  // end.
  bool inert(const uint8_t* p, size_t n) const {
    return all_merge_ && merger_.inert(p, n) && !lacks_a_byte_of(p, n);
  }
  uint32_t* bytes(const uint8_t* p, size_t n, uint32_t* out) const {
    for (size_t i = 0; i < n; i++) *out++ = byte_ids[p[i]];
    return out;
  }
  // Whether some byte of a piece is no token. It is dropped, and what stood beside it are neighbours.
  bool lacks_a_byte_of(const uint8_t* p, size_t n) const {
    return lacks_bytes_ && std::any_of(p, p + n, [&](uint8_t byte) { return byte_ids[byte] == none; });
  }
  // Whether each token that whole() finds is also what its bytes merge to, so that merging alone finds it.
  bool all_merge() const { return all_merge_; }
  // The merges that are ever reached, in order, with ranks 0, 1, 2 ...
  std::vector<Merge> merges() const { return merges_; }

 private:
  using Naive = std::function<Merge(uint32_t, uint32_t)>;  // two ids -> what they merge to; id none: nothing

  struct Parts {
    uint32_t left = none, right = none;
  };
  Parts parts_of(std::string_view bytes, MergeScratch& scratch) const;
  uint32_t count_renamed() const;
  bool settle_in_order(const std::vector<Merge>& made);
  void settle_naively(const std::vector<Merge>& made, const Naive& pair);
  void add(const Merge& merge);

  friend std::vector<uint8_t> image_of(const Vocabulary&, const Pattern&);
  std::vector<uint32_t> ids_;  // [symbol] -> id
  uint32_t renamed_;           // symbols from here on are ids, so that id_of() reads little of a large array
  std::vector<uint32_t> symbols_;  // [id] -> symbol, or none
  Merger merger_;
  WholeTable whole_;
  bool all_merge_ = true;
  bool lacks_bytes_ = false;
  std::vector<Merge> merges_;
};

// What an Image (image.h) begins with, and all that it names.
std::vector<uint8_t> image_of(const Vocabulary& vocabulary, const Pattern& pattern);

}  // namespace text
