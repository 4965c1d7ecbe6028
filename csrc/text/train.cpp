// Training: count the distinct pieces, then merge the most frequent pair until the vocabulary is full.
//
// The corpus is looked at once, to count words. From then on all work is on distinct words, which lie in one
// array, a place for each byte. A pair knows its count and the places where it arose, so a merge visits only
// these, each in one cache line. What it does to the counts of neighbouring pairs is first added up for each
// neighbour. The queue holds counts as they were when pushed; a stale one is pushed back corrected.
//
// Each merge spells a new token. For suppose that the bytes of a token, made by merge k, stood somewhere as two
// tokens after it. Nothing has ever been merged across their outer borders, so up to merge k all went there as
// it did where the token was made (in a run of equal tokens too, whose pairs are counted from its left end: an
// odd number before the border would cross it), and merge k made the token there. Hence all tokens of one kind
// are made by one merge, all places of a pair arise together, and it is in the queue once.
//
// Most pairs never occur often enough to be merged, and once one has arisen its count only falls. So pairs that
// arise below a bound are not noted at all. The bound is how often the word occurs that as many others precede
// as the vocabulary has room for. Each of them, but for 256 single bytes at most, holds a pair that occurs as
// often until it has become a token of its own; so the vocabulary is full before a pair below the bound is
// best.
#include "train.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>

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

using Key = uint64_t;  // left << 32 | right
constexpr Key no_key = ~Key(0);
Key pair_of(uint32_t left, uint32_t right) { return Key(left) << 32 | right; }

// Pairs and how often they occur: open addressing, at most half full. None is ever taken out.
class PairCounts {
 public:
  struct Slot {
    Key key = no_key;
    int64_t count = 0;
  };
  PairCounts() : slots_(1 << 12) {}
  // Makes room for so many more, which may move all slots.
  void reserve(size_t more) {
    size_t size = slots_.size();
    while (size < (used_ + more) * 2) size *= 2;
    if (size == slots_.size()) return;
    std::vector<Slot> old(size);
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.key != no_key) at(slot.key) = slot;
    }
  }
  // The slot of a pair, or the empty one where it belongs.
  Slot& at(Key key) {
    size_t place = home(key);
    while (slots_[place].key != key && slots_[place].key != no_key) place = (place + 1) & (slots_.size() - 1);
    return slots_[place];
  }
  // A new pair, for which there is room.
  void add(Key key, int64_t count) {
    at(key) = {key, count};
    used_++;
  }
  void prefetch(Key key) const { __builtin_prefetch(&slots_[home(key)]); }

 private:
  size_t home(Key key) const {
    return (key ^ key >> 32) * 0x9E3779B97F4A7C15u >> (64 - __builtin_ctzll(slots_.size()));
  }
  std::vector<Slot> slots_;
  size_t used_ = 0;
};

struct Candidate {
  int64_t count;
  Key key;
  uint64_t first, size;  // of its places
  bool operator<(const Candidate& other) const {
    return count != other.count ? count < other.count : key > other.key;
  }
};

// The best candidate first: a heap for each count (and one for all large ones), made when it comes to the top.
class Queue {
 public:
  void push(const Candidate& candidate) {
    const size_t at = size_t(std::min(candidate.count, large));
    auto& heap = heaps_[at];
    heap.push_back(candidate);
    if (at == top_) std::push_heap(heap.begin(), heap.end());
    if (at > top_) std::make_heap(heaps_[top_ = at].begin(), heap.end());
  }
  // Whether there is one.
  bool pop(Candidate& best) {
    while (heaps_[top_].empty()) {
      if (top_ == 0) return false;
      top_--;
      std::make_heap(heaps_[top_].begin(), heaps_[top_].end());
    }
    auto& heap = heaps_[top_];
    std::pop_heap(heap.begin(), heap.end());
    best = heap.back();
    heap.pop_back();
    return true;
  }

 private:
  static constexpr int64_t large = 4096;
  std::vector<std::vector<Candidate>> heaps_{large + 1};
  size_t top_ = 0;
};

// Place: an unsigned type for places in the array of words. Symbol: one that holds vocab_size.
template <class Place, class Symbol>
class Trainer {
 public:
  // Pairs that arise less often than `bound` are left out.
  Trainer(const WordCounts& words, const uint8_t byte_ids[256], size_t vocab_size, int64_t bound)
      : vocab_size_(vocab_size),
        border_(Symbol(vocab_size)),
        bound_(bound),
        sizes_(256, 1),
        left_(vocab_size + 1),
        right_(vocab_size + 1) {
    lay_out(words, byte_ids);
    note_bytes();
  }

  std::vector<Merge> run() {
    std::vector<Merge> merges;
    for (Candidate best; sizes_.size() < vocab_size_ && queue_.pop(best);) {
      const int64_t now = counts_.at(best.key).count;
      if (now < best.count) {
        best.count = now;
        if (now >= bound_) queue_.push(best);
        continue;
      }
      const uint32_t left = uint32_t(best.key >> 32), right = uint32_t(best.key), id = uint32_t(sizes_.size());
      sizes_.push_back(sizes_[left] + sizes_[right]);
      merges.push_back({left, right, uint32_t(merges.size()), id});
      merge(best, left, right, id);
    }
    return merges;
  }

 private:
  // The words, between borders; those that occur equally often side by side, if that is below 4,096 times.
  void lay_out(const WordCounts& words, const uint8_t byte_ids[256]) {
    constexpr int64_t apart = 4096;
    std::vector<uint32_t> starts(apart + 1), order(words.size());
    auto group = [&](size_t i) { return size_t(apart - std::min(words.count(i), apart)); };
    size_t size = 1;
    for (size_t i = 0; i < words.size(); i++) {
      starts[group(i) + 1]++;
      size += words.word(i).size() + 1;
    }
    for (size_t g = 1; g < starts.size(); g++) starts[g] += starts[g - 1];
    for (size_t i = 0; i < words.size(); i++) order[starts[group(i)]++] = uint32_t(i);
    symbols_.reserve(size);
    places_.reserve(3 * size);  // memory that is never written costs nothing
    symbols_.push_back(border_);
    for (uint32_t i : order) {
      if (words.word(i).size() < 2) continue;
      for (char c : words.word(i)) symbols_.push_back(byte_ids[uint8_t(c)]);
      symbols_.push_back(border_);
      if (runs_.empty() || runs_.back().count != words.count(i)) runs_.push_back({0, words.count(i)});
      runs_.back().end = symbols_.size();
      run_of_.resize((symbols_.size() + block - 1) / block, uint32_t(runs_.size() - 1));
    }
  }
  // How often the word at this place occurs.
  int64_t count_at(uint64_t place) const {
    const Run* run = &runs_[run_of_[place / block]];
    while (run->end <= place) run++;
    return run->count;
  }

  // The pairs of bytes.
  void note_bytes() {
    std::vector<Side> found(1 << 16);
    auto for_each = [&](auto visit) {
      for (uint64_t p = 1; p + 1 < symbols_.size(); p++) {
        if (symbols_[p + 1] == border_)
          p++;
        else
          visit(p, found[symbols_[p] << 8 | symbols_[p + 1]]);
      }
    };
    for_each([&](uint64_t place, Side& pair) {
      pair.count += count_at(place);
      pair.size++;
    });
    for (uint32_t i = 0; i < found.size(); i++) {
      counts_.reserve(1);
      bear(pair_of(i >> 8, i & 255), found[i]);
    }
    give_room();
    for_each([&](uint64_t place, const Side& pair) { note(place, pair); });
    queue_births();
  }

  // What stands on one side of a new token: how often, at how many places.
  static constexpr uint32_t no_birth = 0xFFFFFFFF;
  struct Side {
    int64_t count = 0;
    Place size = 0;
    uint32_t birth = no_birth;
  };
  // A pair that has just arisen often enough, and where its places end that are noted already.
  struct Birth {
    Key key;
    uint64_t size, end;
  };
  void bear(Key key, Side& side) {
    if (side.count < bound_) return;
    counts_.add(key, side.count);
    side.birth = uint32_t(births_.size());
    births_.push_back({key, side.size, 0});
  }
  void give_room() {
    uint64_t end = places_.size();
    for (Birth& birth : births_) {
      birth.end = end;
      end += birth.size;
    }
    places_.resize(end);
  }
  void note(uint64_t place, const Side& side) {
    if (side.birth != no_birth) places_[births_[side.birth].end++] = Place(place);
  }
  void queue_births() {
    for (const Birth& birth : births_) {
      const int64_t count = counts_.at(birth.key).count;
      if (count >= bound_) queue_.push({count, birth.key, birth.end - birth.size, birth.size});
    }
    births_.clear();
  }

  void merge(const Candidate& pair, uint32_t left, uint32_t right, uint32_t id) {
    const Place left_size = sizes_[left], right_size = sizes_[right], *const places = &places_[pair.first];
    const size_t size = pair.size;
    Symbol* const s = symbols_.data();
    made_.resize(size);
    lefts_.resize(size + 1);
    rights_.resize(size + 1);
    size_t made = 0, lefts = 0, rights = 0;
    constexpr size_t ahead = 12;
    for (size_t i = 0; i < std::min(ahead, size); i++) __builtin_prefetch(&s[places[i]], 1);
    for (size_t i = 0; i < size; i++) {
      if (i + ahead < size) __builtin_prefetch(&s[places[i + ahead]], 1);
      const Place place = places[i], next = place + left_size, end = next + right_size;
      if (s[place] != left || s[next] != right) continue;  // another merge has taken one of them
      const Symbol before = s[place - 1], behind = s[end];
      s[next] = border_;  // no token begins here
      s[end - 1] = s[place] = Symbol(id);
      const int64_t count = count_at(place);
      Side &at_left = left_[before], &at_right = right_[behind];
      lefts_[lefts] = before;
      lefts += at_left.size == 0;
      rights_[rights] = behind;
      rights += at_right.size == 0;
      at_left.count += count;
      at_left.size++;
      at_right.count += count;
      at_right.size++;
      made_[made++] = {place, before, behind};
    }
    left_[border_] = right_[border_] = {};
    counts_.reserve(lefts + rights);
    for (size_t i = 0; i < lefts; i++) {
      counts_.prefetch(pair_of(lefts_[i], left));
      if (left_[lefts_[i]].count >= bound_) counts_.prefetch(pair_of(lefts_[i], id));
    }
    for (size_t i = 0; i < rights; i++) {
      counts_.prefetch(pair_of(right, rights_[i]));
      if (right_[rights_[i]].count >= bound_) counts_.prefetch(pair_of(id, rights_[i]));
    }
    for (size_t i = 0; i < lefts; i++) bear(pair_of(lefts_[i], id), left_[lefts_[i]]);
    for (size_t i = 0; i < rights; i++) bear(pair_of(id, rights_[i]), right_[rights_[i]]);
    give_room();
    for (size_t i = 0; i < made; i++) {
      note(made_[i].place - sizes_[made_[i].before], left_[made_[i].before]);
      note(made_[i].place, right_[made_[i].behind]);
    }
    for (size_t i = 0; i < lefts; i++) lose(pair_of(lefts_[i], left), left_[lefts_[i]]);
    for (size_t i = 0; i < rights; i++) lose(pair_of(right, rights_[i]), right_[rights_[i]]);
    queue_births();
  }
  // The pair that the new token has taken a part of.
  void lose(Key key, Side& side) {
    if (auto& slot = counts_.at(key); slot.key == key) slot.count -= side.count;
    side = {};
  }

  struct Run {  // of words that occur equally often
    uint64_t end;
    int64_t count;
  };
  struct Made {  // a new token, and what stands around it
    Place place;
    Symbol before, behind;
  };
  static constexpr size_t block = 64;
  const size_t vocab_size_;
  const Symbol border_;
  const int64_t bound_;
  std::vector<uint32_t> sizes_;  // of tokens, in bytes
  std::vector<Symbol> symbols_;  // a token stands in its first and its last place
  std::vector<Run> runs_;
  std::vector<uint32_t> run_of_;  // of the first place of each block
  std::vector<Place> places_;
  PairCounts counts_;
  Queue queue_;
  // While a pair is merged:
  std::vector<Side> left_, right_;  // of each symbol
  std::vector<Symbol> lefts_, rights_;
  std::vector<Made> made_;
  std::vector<Birth> births_;
};

// How often the word occurs that `rank` others precede; 1 if there are not so many.
int64_t count_at_rank(const WordCounts& words, size_t rank) {
  if (words.size() <= rank) return 1;
  std::vector<int64_t> counts(words.size());
  for (size_t i = 0; i < counts.size(); i++) counts[i] = words.count(i);
  std::nth_element(counts.begin(), counts.begin() + rank, counts.end(), std::greater<int64_t>());
  return counts[rank];
}

}  // namespace

std::vector<Merge> train(const WordCounts& words, const uint8_t byte_ids[256], size_t vocab_size,
                         int64_t min_frequency) {
  size_t places = 1;
  for (size_t i = 0; i < words.size(); i++) places += words.word(i).size() + 1;
  vocab_size = std::min(vocab_size, 256 + places);  // each merge leaves a token less
  if (vocab_size <= 256) return {};
  const int64_t bound = std::max({int64_t(1), min_frequency, count_at_rank(words, vocab_size)});
  if (places > 0xFFFFFFFF) return Trainer<uint64_t, uint32_t>(words, byte_ids, vocab_size, bound).run();
  if (vocab_size > 0xFFFF) return Trainer<uint32_t, uint32_t>(words, byte_ids, vocab_size, bound).run();
  return Trainer<uint32_t, uint16_t>(words, byte_ids, vocab_size, bound).run();
}

}  // namespace text
