// A vocabulary and its pattern as one piece of memory without pointers: what a GPU is given of an encoder.
#pragma once
#include "lexers.h"
#include "tables.h"

namespace text {

struct TableClasses {
  const ClassTable* table;
  TEXT_BOTH Character at(Bytes p, Bytes end) const {
    if (*p < 128) return {Class(table->cells[*p]), 1, *p};  // the first page stands first
    return decode(*table, p, end);
  }
};

// The header. What it names begins so many bytes behind its own begin, at a whole cache line.
struct Image {
  struct Span {
    uint32_t start, size;
  };

  Pattern pattern;
  int32_t whole_shift, pair_shift;
  uint32_t longest;        // bytes of the longest token
  bool lacks_bytes;        // whether some byte is no token
  uint64_t classes;        // a ClassTable
  uint64_t whole;          // WholeEntry of each piece that is one token
  uint64_t spans, bytes;   // of id i: spans[i] of bytes
  uint64_t narrow, broad;  // a JunctionTable's
  uint64_t ids;            // [symbol]; none: a byte that is no token, which is dropped
  uint64_t byte_symbols;   // [byte]
  uint64_t byte_pairs;     // [first << 8 | second]: the symbol that two bytes merge to, or none
  uint64_t pairs;          // the same of any two symbols; see tables.h

  template <class T>
  TEXT_BOTH const T* at(uint64_t place) const {
    return reinterpret_cast<const T*>(reinterpret_cast<const uint8_t*>(this) + place);
  }
  TEXT_BOTH Lexer<TableClasses> lexer(Bytes end) const { return {{at<ClassTable>(classes)}, pattern, end}; }
  TEXT_BOTH JunctionTable junctions() const { return {at<uint64_t>(narrow), at<uint64_t>(broad)}; }
  // Whether some byte of a piece is no token; see Vocabulary.
  TEXT_BOTH bool lacks_a_byte_of(Bytes p, size_t size) const {
    for (size_t i = 0; lacks_bytes && i < size; i++) {
      if (!is_token(p[i])) return true;
    }
    return false;
  }
  TEXT_BOTH bool is_token(uint8_t byte) const {
    return at<uint32_t>(ids)[at<uint32_t>(byte_symbols)[byte]] != none;
  }
  // The id of a piece that is one token, or none; by its hash_of.
  TEXT_BOTH uint32_t whole_of(Bytes p, size_t size, uint64_t hash) const {
    return find_whole(at<WholeEntry>(whole), whole_shift, hash, [&](uint32_t id) {
      const Span span = at<Span>(spans)[id];
      if (span.size != size) return false;
      const uint8_t* token = at<uint8_t>(bytes) + span.start;
      for (size_t i = 0; i < size; i++) {
        if (token[i] != p[i]) return false;
      }
      return true;
    });
  }
  // What two symbols merge to, or none.
  TEXT_BOTH uint32_t merged(uint32_t left, uint32_t right) const {
    const uint64_t key = pair_key(left, right);
    const size_t mask = (size_t(1) << (64 - pair_shift)) - 1;
    for (size_t bucket = pair_bucket(key, pair_shift);; bucket = (bucket + 1) & mask) {
      const uint64_t* entries = at<uint64_t>(pairs) + bucket * 8;
      for (int i = 0; i < 8; i++) {
        if (entries[i] >> 22 == key) return uint32_t(entries[i]) & most_merged;
      }
      if (entries[7] == no_pair) return none;
    }
  }
};

}  // namespace text
