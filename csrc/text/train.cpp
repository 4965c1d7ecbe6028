// Training: count the distinct pieces, then merge the most frequent pair until the vocabulary is full.
//
// The corpus is looked at once, to count words. From then on all work is on distinct words: each pair knows its
// count and in which words it arose, so a merge visits only those words and changes the counts of the
// neighbouring pairs. The heap holds counts as they were when pushed; a stale one is pushed back corrected.
#include "train.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <unordered_map>

#include "cache.h"
#include "threads.h"

namespace text {
namespace {

uint64_t hash_of(std::string_view word) {
  uint64_t h = word.size() * 0x9E3779B97F4A7C15u, block = 0;
  const char* p = word.data();
  size_t left = word.size();
  for (; left >= 8; left -= 8, p += 8) {
    std::memcpy(&block, p, 8);
    h = (h ^ block) * 0xD6E8FEB86659FD93u;
    h ^= h >> 32;
  }
  block = 0;
  std::memcpy(&block, p, left);
  h = (h ^ block) * 0xD6E8FEB86659FD93u;
  return h ^ h >> 32;
}

}  // namespace

void WordCounts::grow() {
  slots_.assign(std::max<size_t>(1024, slots_.size() * 2), 0);
  const size_t mask = slots_.size() - 1;
  for (size_t i = 0; i < hashes_.size(); i++) {
    size_t s = hashes_[i] & mask;
    while (slots_[s]) s = (s + 1) & mask;
    slots_[s] = uint32_t(i + 1);
  }
}

void WordCounts::add(std::string_view text, int64_t times) {
  if (counts_.size() * 2 >= slots_.size()) grow();
  const uint64_t hash = hash_of(text);
  const size_t mask = slots_.size() - 1;
  size_t s = hash & mask;
  for (; slots_[s]; s = (s + 1) & mask) {
    const size_t i = slots_[s] - 1;
    if (hashes_[i] == hash && word(i) == text) {
      counts_[i] += times;
      return;
    }
  }
  bytes_.insert(bytes_.end(), text.begin(), text.end());
  starts_.push_back(bytes_.size());
  hashes_.push_back(hash);
  counts_.push_back(times);
  slots_[s] = uint32_t(counts_.size());
}

void WordCounts::add(const WordCounts& other) {
  for (size_t i = 0; i < other.size(); i++) add(other.word(i), other.count(i));
}

namespace {

// Counts of short words before they reach the dictionary: two slots of 32 bytes in each cache line, asked for a
// batch of words ahead. The word that finds no room pushes an older one out into the dictionary.
class ShortCounts {
 public:
  // bytes: of text that will be counted, about; few need no large table.
  ShortCounts(WordCounts& rest, size_t bytes)
      : rest_(rest), bits_(bits_for(bytes)), lines_(size_t(1) << bits_) {}
  void finish() {
    for (size_t line = 0; line < size_t(1) << bits_; line++) {
      for (const Slot& slot : lines_[line]) put_out(slot);
    }
  }
  void add(const uint8_t* p, const uint8_t* text_end, const uint32_t* ends, size_t count) {
    wide::Key keys[batch];
    uint32_t places[batch];
    for (size_t i = 0, start = 0; i < count; start = ends[i++]) {
      const size_t size = ends[i] - start;
      if (size > 15) continue;
      keys[i] = wide::key_of(p + start, size, text_end);
      places[i] = place_of(keys[i]);
      __builtin_prefetch(&lines_[places[i]]);
    }
    for (size_t i = 0, start = 0; i < count; start = ends[i++]) {
      const size_t size = ends[i] - start;
      if (size > 15) {
        rest_.add({reinterpret_cast<const char*>(p + start), size}, 1);
        continue;
      }
      Slot* slots = lines_[places[i]];
      const bool first = slots[0].is(keys[i]), second = slots[1].is(keys[i]);
      slots[second].count += first | second;
      if (first | second) continue;
      put_out(slots[1]);
      slots[1] = slots[0];
      slots[0] = {keys[i], 1, 0};
    }
  }
  static constexpr size_t batch = 256 + piece_slack;

 private:
  static int bits_for(size_t bytes) {
    int bits = 6;
    while (bits < 17 && size_t(64) << bits < bytes) bits++;  // at most 8 MiB
    return bits;
  }
  struct Slot {
    wide::Key key;
    int64_t count, unused;
    bool is(wide::Key other) const { return (key.low == other.low) & (key.high == other.high); }
  };
  using Line = Slot[2];
  uint32_t place_of(wide::Key key) const {
    uint64_t hash = (key.low ^ key.high >> 29) * 0x9E3779B97F4A7C15u + key.high * 0xD6E8FEB86659FD93u;
    hash = (hash ^ hash >> 32) * 0xA0761D6478BD642Fu;
    return uint32_t(hash >> (64 - bits_));
  }
  void put_out(const Slot& slot) {
    if (slot.count > 0) rest_.add({reinterpret_cast<const char*>(&slot.key), slot.key.high >> 56}, slot.count);
  }
  WordCounts& rest_;
  const int bits_;
  Zeroed<Line> lines_;
};

}  // namespace

void count_words(const std::vector<std::string_view>& texts, const Pattern& pattern, int threads,
                 WordCounts& into) {
  std::atomic<size_t> taken{0};
  std::vector<WordCounts> others(std::max(0, threads - 1));
  size_t bytes = 0;
  for (std::string_view text : texts) bytes += text.size();
  on_threads(threads, [&](int t) {
    ShortCounts counts(t == 0 ? into : others[t - 1], bytes);
    uint32_t ends[ShortCounts::batch];
    for (size_t i; (i = taken++) < texts.size();) {
      const uint8_t* p = reinterpret_cast<const uint8_t*>(texts[i].data());
      for (const uint8_t* const end = p + texts[i].size(); p < end;) {
        const size_t count = split(pattern, p, end, ends, ShortCounts::batch - piece_slack);
        counts.add(p, end, ends, count);
        p += ends[count - 1];
      }
    }
    counts.finish();
  });
  for (auto& counts : others) into.add(counts);
}

namespace {

constexpr uint32_t no_word = 0xFFFFFFFF;

struct Pair {
  uint64_t key;  // left << 32 | right
  int64_t count = 0;
  uint32_t fresh = 0;            // words in which the pair arose since it was last pushed
  uint32_t last_word = no_word;  // the last of them
  uint64_t place = 0;            // where the next of them goes, while they are gathered
};

// Pairs by number, found by key: open addressing, at most half full.
class Pairs {
 public:
  Pairs() : slots_(1 << 16) {}
  uint32_t number(uint64_t key) {
    for (size_t s = home(key);; s = (s + 1) & (slots_.size() - 1)) {
      if (slots_[s] == 0) break;
      if (pairs_[slots_[s] - 1].key == key) return slots_[s] - 1;
    }
    if (pairs_.size() * 2 >= slots_.size()) grow();
    pairs_.push_back({key});
    insert(uint32_t(pairs_.size() - 1));
    return uint32_t(pairs_.size() - 1);
  }
  Pair& operator[](uint32_t number) { return pairs_[number]; }
  void prefetch_slot(uint64_t key) const { __builtin_prefetch(&slots_[home(key)]); }
  void prefetch_pair(uint64_t key) const { prefetch(slots_[home(key)] - 1); }
  void prefetch(uint32_t number) const { __builtin_prefetch(pairs_.data() + number); }

 private:
  size_t home(uint64_t key) const {
    return (key ^ key >> 32) * 0x9E3779B97F4A7C15u >> (64 - __builtin_ctzll(slots_.size()));
  }
  void insert(uint32_t number) {
    size_t s = home(pairs_[number].key);
    while (slots_[s]) s = (s + 1) & (slots_.size() - 1);
    slots_[s] = number + 1;
  }
  void grow() {
    slots_.assign(slots_.size() * 2, 0);
    for (uint32_t i = 0; i < pairs_.size(); i++) insert(i);
  }
  std::vector<Pair> pairs_;
  std::vector<uint32_t> slots_;  // 1 + number; 0: empty
};

struct Candidate {
  int64_t count;
  uint64_t key;
  uint64_t words;  // where its words begin
  uint32_t size, pair;
  bool operator<(const Candidate& other) const {
    return count != other.count ? count < other.count : key > other.key;
  }
};

class Trainer {
 public:
  Trainer(const WordCounts& words, const uint8_t byte_ids[256]) {
    tokens_.resize(256);
    for (int byte = 0; byte < 256; byte++) tokens_[byte_ids[byte]] = std::string(1, char(byte));
    for (size_t i = 0; i < words.size(); i++) {
      words_.push_back({symbols_.size(), words.count(i), uint32_t(words.word(i).size())});
      for (char c : words.word(i)) symbols_.push_back(byte_ids[uint8_t(c)]);
    }
    for (uint32_t w = 0; w < words_.size(); w++) {
      const uint32_t* s = &symbols_[words_[w].start];
      for (uint32_t i = 1; i < words_[w].size; i++) change(s[i - 1], s[i], words_[w].count, w);
      if (changes_.size() > 4096) make_changes();
    }
    push_touched();
  }

  std::vector<Merge> run(size_t vocab_size, int64_t min_frequency) {
    std::unordered_map<std::string, uint32_t> known;
    for (uint32_t id = 0; id < 256; id++) known.emplace(tokens_[id], id);
    std::vector<Merge> merges;
    while (known.size() < vocab_size && !heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end());
      Candidate top = heap_.back();
      heap_.pop_back();
      const int64_t now = pairs_[top.pair].count;
      if (top.count != now) {
        top.count = now;
        push(top);
        continue;
      }
      if (top.count < std::max<int64_t>(1, min_frequency)) break;
      const uint32_t left = uint32_t(top.key >> 32), right = uint32_t(top.key);
      // Two different pairs can spell the same token: the later merge then leads to the earlier id.
      auto [it, fresh] = known.emplace(tokens_[left] + tokens_[right], uint32_t(tokens_.size()));
      if (fresh) tokens_.push_back(it->first);
      merges.push_back({left, right, uint32_t(merges.size()), it->second});
      for (uint32_t i = 0; i < top.size; i++) {
        if (i + 16 < top.size) __builtin_prefetch(&words_[holders_[top.words + i + 16]]);
        if (i + 8 < top.size) __builtin_prefetch(&symbols_[words_[holders_[top.words + i + 8]].start]);
        merge(holders_[top.words + i], left, right, it->second);
      }
      push_touched();
    }
    return last_of_equal_pairs(std::move(merges));
  }

 private:
  // Adds `by` to a pair's count; a gain notes that word w now holds the pair. Changes are made a while later,
  // when what they touch is at hand.
  void change(uint32_t left, uint32_t right, int64_t by, uint32_t w) {
    changes_.push_back({uint64_t(left) << 32 | right, by, w});
  }

  void make_changes() {
    constexpr size_t early = 16, soon = 8;
    for (size_t i = 0; i < std::min(early, changes_.size()); i++) pairs_.prefetch_slot(changes_[i].key);
    for (size_t i = 0; i < changes_.size(); i++) {
      if (i + early < changes_.size()) pairs_.prefetch_slot(changes_[i + early].key);
      if (i + soon < changes_.size()) pairs_.prefetch_pair(changes_[i + soon].key);
      make(changes_[i].key, changes_[i].by, changes_[i].word);
    }
    changes_.clear();
  }

  void make(uint64_t key, int64_t by, uint32_t w) {
    const uint32_t number = pairs_.number(key);
    Pair& pair = pairs_[number];
    pair.count += by;
    if (by < 0 || pair.last_word == w) return;
    if (pair.fresh++ == 0) touched_.push_back(number);
    pair.last_word = w;
    gains_.push_back({number, w});
  }

  void merge(uint32_t w, uint32_t left, uint32_t right, uint32_t id) {
    Word& word = words_[w];
    uint32_t* s = &symbols_[word.start];
    uint32_t kept = 0;
    for (uint32_t i = 0; i < word.size; i++) {
      if (s[i] != left || i + 1 >= word.size || s[i + 1] != right) {
        s[kept++] = s[i];
        continue;
      }
      if (kept > 0) {
        change(s[kept - 1], left, -word.count, w);
        change(s[kept - 1], id, word.count, w);
      }
      if (i + 2 < word.size) {
        change(right, s[i + 2], -word.count, w);
        change(id, s[i + 2], word.count, w);
      }
      s[kept++] = id;
      i++;
    }
    word.size = kept;
  }

  void push(const Candidate& candidate) {
    heap_.push_back(candidate);
    std::push_heap(heap_.begin(), heap_.end());
  }

  // Gathers the words of each touched pair side by side in holders_, in order, and pushes the pairs.
  void push_touched() {
    make_changes();
    for (uint32_t number : touched_) {
      Pair& pair = pairs_[number];
      pair.place = holders_.size();
      holders_.resize(holders_.size() + pair.fresh);
    }
    for (size_t i = 0; i < gains_.size(); i++) {
      if (i + 16 < gains_.size()) pairs_.prefetch(gains_[i + 16].pair);
      holders_[pairs_[gains_[i].pair].place++] = gains_[i].word;
    }
    for (uint32_t number : touched_) {
      Pair& pair = pairs_[number];
      if (pair.count > 0) push({pair.count, pair.key, pair.place - pair.fresh, pair.fresh, number});
      pair.fresh = 0;
      pair.last_word = no_word;
    }
    touched_.clear();
    gains_.clear();
  }

  // A pair that arose anew after it was merged is merged twice; like its peer, the later rank counts.
  static std::vector<Merge> last_of_equal_pairs(std::vector<Merge> merges) {
    std::unordered_map<uint64_t, uint32_t> last;
    for (const Merge& m : merges) last[uint64_t(m.left) << 32 | m.right] = m.rank;
    std::vector<Merge> kept;
    for (const Merge& m : merges) {
      if (last[uint64_t(m.left) << 32 | m.right] == m.rank)
        kept.push_back({m.left, m.right, uint32_t(kept.size()), m.id});
    }
    return kept;
  }

  struct Word {
    uint64_t start;  // in symbols_
    int64_t count;
    uint32_t size;
  };
  struct Gain {
    uint32_t pair, word;
  };
  struct Change {
    uint64_t key;
    int64_t by;
    uint32_t word;
  };
  std::vector<std::string> tokens_;
  std::vector<uint32_t> symbols_, holders_, touched_;
  std::vector<Word> words_;
  std::vector<Gain> gains_;
  std::vector<Change> changes_;
  Pairs pairs_;
  std::vector<Candidate> heap_;
};

}  // namespace

std::vector<Merge> train(const WordCounts& words, const uint8_t byte_ids[256], size_t vocab_size,
                         int64_t min_frequency) {
  return Trainer(words, byte_ids).run(vocab_size, min_frequency);
}

}  // namespace text
