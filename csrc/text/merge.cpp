// Merging: see merge.h.
#include "merge.h"

#include <algorithm>
#include <functional>
#include <iterator>

namespace text {

constexpr uint32_t no_symbol = most_symbols;  // in no pair

PairTable::PairTable(size_t pairs) {
  int bits = 1;
  while ((size_t(8) << bits) < pairs * 2) bits++;  // at most half full
  shift_ = 64 - bits;
  mask_ = (size_t(1) << bits) - 1;
  entries_.assign((mask_ + 1) * 8, no_pair);
  set_shift_ = shift_ - 5;  // 32 bits for each bucket, of which 2 to 4 are set when all pairs are there
  set_.assign((mask_ + 1) * 32 / 64, 0);
}

void PairTable::add(uint32_t left, uint32_t right, uint32_t merged) {
  const uint64_t key = pair_key(left, right), bit = pair_bucket(key, set_shift_);
  set_[bit >> 6] |= uint64_t(1) << (bit & 63);
  for (size_t bucket = pair_bucket(key, shift_);; bucket = (bucket + 1) & mask_) {
    uint64_t* entries = &entries_[bucket * 8];
    for (int i = 0; i < 8; i++) {
      if (entries[i] >> 22 == key) return;
      if (entries[i] != no_pair) continue;
      entries[i] = key << 22 | merged;
      return;
    }
  }
}

Merger::Merger(const uint32_t byte_symbols[256], size_t pairs)
    : byte_of_(*std::max_element(byte_symbols, byte_symbols + 256) + 1, int16_t(-1)),
      byte_pairs_(1 << 16, none),
      pairs_(pairs) {
  std::copy_n(byte_symbols, 256, byte_symbols_);
  for (int byte = 0; byte < 256; byte++) byte_of_[byte_symbols[byte]] = int16_t(byte);
  sizes_.assign(byte_of_.size(), 1);
}

void Merger::add(uint32_t left, uint32_t right, uint32_t merged) {
  pairs_.add(left, right, merged);
  if (merged >= sizes_.size()) sizes_.resize(merged + 1);
  sizes_[merged] = sizes_[left] + sizes_[right];
  if (left < byte_of_.size() && right < byte_of_.size() && byte_of_[left] >= 0 && byte_of_[right] >= 0) {
    const int first = byte_of_[left], second = byte_of_[right];
    byte_pairs_[first << 8 | second] = pairs_.find(left, right);
    bytes_merge_[first][second >> 6] |= uint64_t(1) << (second & 63);
  }
}

// One round finds the lowest rank and merges the pairs that have it, from the left. A pair's rank stands at its
// left place.
template <class Ranks>
inline uint64_t Merger::rounds(size_t n, uint32_t* symbols, const uint32_t* first) const {
  Ranks ranks(first);
  uint64_t alive = n == 64 ? ~uint64_t(0) : (uint64_t(1) << n) - 1;
  for (uint32_t low; (low = ranks.lowest()) != none;) {
    uint64_t places = ranks.where(low);
    if (!monotone) places &= -places;
    for (; places; places &= places - 1) {
      const int left = wide::lowest_bit(places);
      const uint64_t after = alive & (~uint64_t(1) << left);
      const int right = wide::lowest_bit(after);
      const uint64_t before = alive & ((uint64_t(1) << left) - 1), behind = after & (after - 1);
      alive &= ~(uint64_t(1) << right);
      symbols[left] = low;
      places &= ~(uint64_t(1) << right);  // in a run of one token the next pair has lost its left part
      ranks.set(right, none);
      ranks.set(left, behind ? pairs_.find(low, symbols[wide::lowest_bit(behind)]) : none);
      if (before) {
        const int previous = wide::highest_bit(before);
        ranks.set(previous, pairs_.find(symbols[previous], low));
      }
    }
  }
  return alive;
}

uint64_t Merger::window(const uint8_t* p, size_t n, uint32_t symbols[64]) const {
  alignas(64) uint32_t first[64];
  const size_t vectors = (n + 15) / 16;
  for (size_t i = 0; i + 1 < n; i++) {
    symbols[i] = byte_symbols_[p[i]];
    first[i] = byte_pairs_[p[i] << 8 | p[i + 1]];
  }
  symbols[n - 1] = byte_symbols_[p[n - 1]];
  std::fill(first + n - 1, first + 16 * (vectors == 3 ? 4 : vectors), none);
  if (vectors == 1) return rounds<wide::Ranks<1>>(n, symbols, first);
  if (vectors == 2) return rounds<wide::Ranks<2>>(n, symbols, first);
  return rounds<wide::Ranks<4>>(n, symbols, first);
}

// A piece from place `first` on, as the last of its lane.
template <size_t bytes>
inline void Merger::fill(const uint8_t* p, size_t n, size_t first, size_t lane, Lanes<bytes>& lanes) const {
  const size_t end = first + n;
  for (size_t i = first; i + 1 < end; i++, p++) {
    lanes.symbols[i][lane] = byte_symbols_[p[0]];
    lanes.ranks[i][lane] = byte_pairs_[p[0] << 8 | p[1]] * 64 | uint32_t(i);
  }
  lanes.symbols[end - 1][lane] = byte_symbols_[*p];
  lanes.symbols[end][lane] = no_symbol;
  lanes.alive[lane] = ~uint64_t(0) >> (63 - end);
  lanes.used[lane] = int(end - 1);
  lanes.longest = std::max(lanes.longest, int(end - 1));
}

template <size_t bytes>
void Merger::add(const uint8_t* p, size_t n, Lanes<bytes>& lanes) const {
  const size_t lane = lanes.count++;
  lanes.symbols[0][lane] = no_symbol;
  lanes.gaps[lane] = 0;
  fill(p, n, 1, lane, lanes);
  for (size_t i = n; i <= bytes; i++) lanes.ranks[i][lane] = none;
}

bool Merger::pack(const uint8_t* p, size_t n, Lanes<62>& lanes) const {
  if (lanes.count > 0) {
    const size_t lane = lanes.count - 1, gap = size_t(lanes.used[lane]) + 1;
    if (gap + n <= lanes.bytes) {
      lanes.gaps[lane] |= uint64_t(1) << gap;
      fill(p, n, gap + 1, lane, lanes);
      return true;
    }
    if (lanes.count == lanes.most) return false;
  }
  add(p, n, lanes);
  return true;
}

// A round merges one pair of each piece, the leftmost of its lowest rank, and asks for the new neighbours'
// ranks before it reads the first of them. Half of the new pairs are at an end or refused by the set; only the
// others are looked up.
template <size_t bytes>
void Merger::merge(Lanes<bytes>& lanes) const {
  constexpr size_t most = Lanes<bytes>::most;
  alignas(64) uint32_t lowest[most];
  uint64_t keys[2 * most];
  uint32_t* ranks[2 * most];  // where the rank of each of these pairs belongs
  const uint32_t filled = (1u << lanes.count) - 1;
  while (uint32_t merging = wide::lowest_of_columns(lanes.ranks, lanes.longest - 1, lowest) & filled) {
    size_t count = 0;
    for (; merging; merging &= merging - 1) {
      const int l = wide::lowest_bit(merging);
      const uint32_t left = lowest[l] % 64, low = lowest[l] / 64;
      const uint64_t before = lanes.alive[l] & ((uint64_t(1) << left) - 1), after = lanes.alive[l] - before;
      const uint64_t behind_left = after & (after - 1), behind = behind_left & (behind_left - 1);
      const int previous = wide::highest_bit(before);
      const uint32_t next = lanes.symbols[wide::lowest_bit(behind)][l];
      lanes.alive[l] = before | uint64_t(1) << left | behind;
      lanes.symbols[left][l] = low;
      lanes.ranks[wide::lowest_bit(behind_left)][l] = none;
      keys[count] = pair_key(lanes.symbols[previous][l], low);
      ranks[count++] = &lanes.ranks[previous][l];
      keys[count] = pair_key(low, next);
      ranks[count++] = &lanes.ranks[left][l];
    }
    size_t found = 0;
    for (size_t i = 0; i < count; i++) {  // apart, so that more of these loads are under way
      const uint64_t key = keys[i];
      uint32_t* const rank = ranks[i];
      *rank = none;
      keys[found] = key;
      ranks[found] = rank;
      found += pairs_.may_have(key);
    }
    for (size_t i = 0; i < found; i++) pairs_.prefetch(keys[i]);
    for (size_t i = 0; i < found; i++) {
      const uint32_t place = uint32_t(ranks[i] - &lanes.ranks[0][0]) / most;
      *ranks[i] = pairs_.find(keys[i]) * 64 | place;
    }
  }
}

// In columns, a round costs the same for one piece as for 16.
void Merger::merge(Lanes<15> (&several)[groups]) const {
#ifdef TEXT_AVX512
  constexpr size_t few = 6;
#else
  constexpr size_t few = Lanes<15>::most + 1;
#endif
  for (Lanes<15>& lanes : several) {
    if (lanes.count > 0 && lanes.count < few) merge(lanes);
  }
#ifdef TEXT_AVX512
  auto columns_of = [](Lanes<15>& lanes) {
    const size_t count = lanes.count < few ? 0 : lanes.count;
    return wide::Columns(lanes.symbols, lanes.ranks, lanes.alive, count, lanes.longest);
  };
  wide::Columns columns[] = {columns_of(several[0]), columns_of(several[1]), columns_of(several[2]),
                             columns_of(several[3])};
  static_assert(std::size(columns) == groups);
  for (bool merging = true; merging;) {
    uint32_t wanted[groups];
    for (size_t i = 0; i < groups; i++) {
      wanted[i] = columns[i].merging() ? pairs_.merge_lowest(columns[i], no_symbol) : 0;
      pairs_.prefetch(columns[i], wanted[i]);
    }
    for (size_t i = 0; i < groups; i++) pairs_.find_ranks(columns[i], wanted[i]);
    merging = false;
    for (size_t i = 0; i < groups; i++) {
      if (columns[i].merging()) columns[i].set_ranks();
      merging |= columns[i].merging();
    }
  }
  for (size_t i = 0; i < groups; i++) columns[i].get_alive(several[i].alive);
#endif
}

// Place i takes its right neighbour in and becomes `token`; returns the place behind them, n or more at the
// end.
static uint32_t join(uint32_t i, uint32_t token, uint32_t n, MergeScratch& s) {
  const uint32_t right = s.next[i], behind = s.next[right];
  s.region[i] = token;
  s.region[right] = s.ranks[right] = none;
  s.next[i] = behind;
  if (behind < n) s.previous[behind] = i;
  return behind;
}

// The same in memory, for regions of any size: next[i] and previous[i] link the places that are alive.
// Returns whether all is merged after so many rounds: runs of one character are, in a few.
bool Merger::region_by_rounds(int most, uint32_t n, MergeScratch& s) const {
  uint32_t *symbols = s.region.data(), *ranks = s.ranks.data(), *next = s.next.data(),
           *previous = s.previous.data();
  while (most-- > 0) {
    uint32_t low = none;
    for (uint32_t i = 0; i < n; i++) low = std::min(low, ranks[i]);
    if (low == none) return true;
    for (uint32_t i = 0; i < n; i = next[i]) {
      if (ranks[i] != low) continue;
      const uint32_t behind = join(i, low, n, s);
      ranks[i] = behind < n ? pairs_.find(low, symbols[behind]) : none;
      if (i > 0) ranks[previous[i]] = pairs_.find(symbols[previous[i]], low);
      if (!monotone) break;
    }
  }
  return false;
}

// What is left of it, with a heap of (rank, place). An entry is stale if its place now has another rank.
void Merger::region_by_heap(uint32_t n, MergeScratch& s) const {
  uint32_t *symbols = s.region.data(), *ranks = s.ranks.data(), *previous = s.previous.data();
  auto& heap = s.heap;
  const auto later = std::greater<uint64_t>();
  heap.clear();
  for (uint32_t i = 0; i < n; i++) {
    if (ranks[i] != none) heap.push_back(uint64_t(ranks[i]) << 32 | i);
  }
  std::make_heap(heap.begin(), heap.end(), later);
  auto set = [&](uint32_t i, uint32_t rank) {
    ranks[i] = rank;
    if (rank == none) return;
    heap.push_back(uint64_t(rank) << 32 | i);
    std::push_heap(heap.begin(), heap.end(), later);
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const uint32_t i = uint32_t(heap.back()), low = uint32_t(heap.back() >> 32);
    heap.pop_back();
    if (ranks[i] != low) continue;
    const uint32_t behind = join(i, low, n, s);
    set(i, behind < n ? pairs_.find(low, symbols[behind]) : none);
    if (i > 0) set(previous[i], pairs_.find(symbols[previous[i]], low));
  }
}

// The tokens of p[start, end), to scratch.symbols.
void Merger::region(const uint8_t* p, uint32_t start, uint32_t end, MergeScratch& s) const {
  const uint32_t n = end - start;
  s.symbols.clear();
  if (n <= 64) {
    uint32_t symbols[64];
    for (uint64_t alive = window(p + start, n, symbols); alive; alive &= alive - 1)
      s.symbols.push_back(symbols[wide::lowest_bit(alive)]);
    return;
  }
  for (auto* v : {&s.region, &s.ranks, &s.next, &s.previous}) {
    if (v->size() < n) v->resize(n);
  }
  for (uint32_t i = 0; i < n; i++) {
    const uint8_t* q = p + start + i;
    s.region[i] = byte_symbols_[*q];
    s.ranks[i] = i + 1 < n ? byte_pairs_[q[0] << 8 | q[1]] : none;
    s.next[i] = i + 1;
    s.previous[i] = i - 1;
  }
  if (!region_by_rounds(64, n, s)) region_by_heap(n, s);
  for (uint32_t i = 0; i < n; i = s.next[i]) s.symbols.push_back(s.region[i]);
}

// The tokens of a piece's first `size` bytes.
struct Merger::Known {
  uint32_t* tokens;
  size_t count = 0, size = 0;
  // Two tokens back, and on until `reach` bytes: the number of tokens before, and of bytes.
  std::pair<size_t, size_t> back(const std::vector<uint32_t>& sizes, size_t reach) const {
    size_t keep = count, start = size;
    while (keep > 0 && (count - keep < 2 || size - start < reach)) start -= sizes[tokens[--keep]];
    return {keep, start};
  }
  // Bit i: a token begins at byte `from` + i. 64 bytes at most lie there.
  uint64_t starts(const std::vector<uint32_t>& sizes, size_t from) const {
    uint64_t bits = 0;
    for (size_t i = count, start = size; i > 0; i--) {
      const size_t part = sizes[tokens[i - 1]];
      if (start < from + part) break;
      start -= part;
      bits |= uint64_t(1) << (start - from);
    }
    return bits;
  }
};

// The window behind what is known, begun further and further back until it can be joined.
void Merger::grow(const uint8_t* p, size_t n, MergeScratch& s, Known& known) const {
  for (size_t reach = 0;;) {
    const auto [keep, start] = known.back(sizes_, reach);
    const size_t again = known.size - start;
    const size_t end = std::min(n, start + (again <= 32 ? 64 : 2 * again + 64));
    region(p, uint32_t(start), uint32_t(end), s);
    if (keep > 0 && s.symbols[0] != known.tokens[keep]) {  // what follows changes tokens further back
      reach = 2 * again;
      continue;
    }
    std::copy(s.symbols.begin(), s.symbols.end(), known.tokens + keep);
    known.count = keep + s.symbols.size();
    known.size = end;
    return;
  }
}

// A token is shared where one begins on both sides, and on both sides the next begins too or all ends. The
// place of the first one, or 64. `ahead`: how far "theirs" goes.
static int shared_token(uint64_t theirs, uint64_t ours, size_t ahead) {
  const uint64_t within = (uint64_t(2) << ahead) - 1;
  theirs |= uint64_t(1) << ahead;
  const uint64_t any = (theirs | ours) & within, both = theirs & ours & within;
  for (uint64_t places = both; places; places &= places - 1) {
    const uint64_t behind = any & (~uint64_t(1) << wide::lowest_bit(places));
    if (behind & -behind & both) return wide::lowest_bit(places);
  }
  return 64;
}

// Windows of one piece: in lanes from `lane` on, of `size` bytes each (the last may be shorter), from byte
// `start` on.
struct Merger::Windows {
  size_t lane, count, size, start;
  size_t step() const { return size - overlap; }
  // Of a whole piece: as few as possible, of like sizes.
  static Windows of(size_t n, size_t lane) {
    const size_t count = (n - overlap + stride - 1) / stride;
    return {lane, count, (n - overlap + count - 1) / count + overlap, 0};
  }
};

// Joins windows to what is known. Returns whether that went well enough to do it again; if it did not, some may
// be left out.
bool Merger::attach(const uint8_t* p, size_t n, const Lanes<62>& lanes, const Windows& windows, MergeScratch& s,
                    Known& known) const {
  uint64_t theirs = 0;
  size_t joined = 0, failed = 0;
  bool changed = true;  // what is known, since `theirs` was made of it
  for (size_t i = 0, at = windows.start; i < windows.count; i++, at += windows.step()) {
    const size_t lane = windows.lane + i, end = std::min(at + windows.size, n);
    const uint64_t ours = lanes.starts(lane);
    while (known.size < end) {
      if (changed) theirs = known.starts(sizes_, at);
      const int join = known.count ? shared_token(theirs, ours, known.size - at) : 0;
      if ((changed = join == 64)) {
        if (++failed > windows.count / 4) return false;
        grow(p, n, s, known);
        continue;
      }
      known.count -= size_t(__builtin_popcountll(theirs >> join));
      const uint64_t taken = ours >> join << join;
      for (uint64_t todo = taken; todo; todo &= todo - 1)
        known.tokens[known.count++] = lanes.symbols[wide::lowest_bit(todo) + 1][lane];
      known.size = end;
      theirs = (theirs & ~(~uint64_t(0) << join)) | taken;
      joined++;
    }
    theirs >>= windows.step();
  }
  return joined * 2 > windows.count;
}

// As many windows as there are lanes, merged in step. Returns whether that went well enough to do it again.
bool Merger::grow_in_step(const uint8_t* p, size_t n, MergeScratch& s, Known& known) const {
  Lanes<62> lanes;
  const size_t start = known.back(sizes_, overlap).second;
  for (size_t at = start; at + lanes.bytes <= n && lanes.count < lanes.most; at += stride)
    add(p + at, lanes.bytes, lanes);
  merge(lanes);
  return attach(p, n, lanes, {0, lanes.count, lanes.bytes, start}, s, known);
}

bool Merger::add_windows(const uint8_t* p, size_t n, Lanes<62>& lanes) const {
  const Windows windows = Windows::of(n, lanes.count);
  if (windows.lane + windows.count > lanes.most) return false;
  for (size_t i = 0, at = 0; i < windows.count; i++, at += windows.step()) {
    add(p + at, std::min(windows.size, n - at), lanes);
    lanes.used[lanes.count - 1] = lanes.bytes;  // nothing is packed behind a window
  }
  return true;
}

uint32_t* Merger::join_windows(const uint8_t* p, size_t n, const Lanes<62>& lanes, size_t& lane,
                               MergeScratch& s, uint32_t* out) const {
  const Windows windows = Windows::of(n, lane);
  lane += windows.count;
  Known known{out};
  attach(p, n, lanes, windows, s, known);
  while (known.size < n) grow(p, n, s, known);
  return out + known.count;
}

uint32_t* Merger::merge(const uint8_t* p, size_t n, MergeScratch& s, uint32_t* out) const {
  constexpr size_t enough = 256, patience = 32768;  // bytes: for windows in step; until they are tried again
  Known known{out};
  for (size_t alone = 0; known.size < n;) {
    if (known.size < alone || n - known.size < enough)
      grow(p, n, s, known);
    else if (!grow_in_step(p, n, s, known))
      alone = known.size + patience;
  }
  return out + known.count;
}

template void Merger::add(const uint8_t*, size_t, Lanes<15>&) const;
template void Merger::merge(Lanes<15>&) const;
template void Merger::add(const uint8_t*, size_t, Lanes<62>&) const;
template void Merger::merge(Lanes<62>&) const;

}  // namespace text
