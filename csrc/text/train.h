// Training: which pairs to merge, learnt from counted pieces.
#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

#include "presplit.h"
#include "vocabulary.h"

namespace text {

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
