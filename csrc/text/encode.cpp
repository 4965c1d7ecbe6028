// Encoding: see bpe.h.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>

#include "bpe.h"
#include "threads.h"

namespace text {

PairTable::PairTable(const std::vector<Merge>& merges) {
  int bits = 4;
  while ((size_t(1) << bits) < merges.size() * 2) bits++;
  shift_ = 64 - bits;
  mask_ = (size_t(1) << bits) - 1;
  entries_.assign(mask_ + 1, {~uint64_t(0), none, none});
  for (const Merge& m : merges) {
    Entry& entry = const_cast<Entry&>(find(m.left, m.right));
    if (m.rank < entry.rank) entry = {uint64_t(m.left) << 32 | m.right, m.rank, m.id};
  }
}

Encoder::Encoder(std::vector<std::string> tokens, const std::vector<Merge>& merges, Pattern pattern_,
                 bool whole_pieces)
    : pattern(pattern_), tokens_(std::move(tokens)), pairs_(merges) {
  std::fill(byte_ids_, byte_ids_ + 256, PairTable::none);
  for (uint32_t id = 0; id < tokens_.size(); id++) {
    if (tokens_[id].size() == 1) byte_ids_[uint8_t(tokens_[id][0])] = id;
    if (whole_pieces && tokens_[id].size() > 1) whole_.emplace(tokens_[id], id);
  }
  complete_ = std::find(byte_ids_, byte_ids_ + 256, PairTable::none) == byte_ids_ + 256;
  for (const Merge& m : merges) {
    if (std::max({m.left, m.right, m.id}) >= tokens_.size() || m.rank == PairTable::none)
      throw std::invalid_argument("a merge names an id outside of the vocabulary");
  }
}

std::unique_ptr<Workspace> Encoder::take() const {
  // A lock that cannot be had at once (or was held by another thread when this process was forked) is not
  // waited for: a fresh workspace does as well.
  std::unique_lock<std::mutex> lock(idle_lock_, std::try_to_lock);
  if (lock && !idle_.empty()) {
    auto workspace = std::move(idle_.back());
    idle_.pop_back();
    return workspace;
  }
  return std::make_unique<Workspace>();
}

void Encoder::give(std::unique_ptr<Workspace> workspace) const {
  if (workspace->ids.capacity() > (1 << 20)) {  // a giant piece went by: keep the cache, drop the scratch
    for (auto* scratch : {&workspace->ids, &workspace->next, &workspace->previous})
      std::vector<uint32_t>().swap(*scratch);
    std::vector<uint64_t>().swap(workspace->heap);
  }
  std::unique_lock<std::mutex> lock(idle_lock_, std::try_to_lock);
  if (lock && idle_.size() < 64) idle_.push_back(std::move(workspace));
}

// Merges w.ids[0, size): the ranks of adjacent pairs stand in w.next, the lowest is found by a scan.
uint32_t* Encoder::merge_short(size_t size, Workspace& w, uint32_t* out) const {
  uint32_t *ids = w.ids.data(), *ranks = w.next.data();
  size_t pairs = size - 1;
  for (size_t i = 0; i < pairs; i++) ranks[i] = pairs_.find(ids[i], ids[i + 1]).rank;
  while (pairs > 0) {
    size_t best = 0;
    for (size_t i = 1; i < pairs; i++) best = ranks[i] < ranks[best] ? i : best;
    if (ranks[best] == PairTable::none) break;
    ids[best] = pairs_.find(ids[best], ids[best + 1]).id;
    std::memmove(ids + best + 1, ids + best + 2, (pairs - best - 1) * sizeof(*ids));
    std::memmove(ranks + best, ranks + best + 1, (pairs - best - 1) * sizeof(*ranks));
    pairs--;
    if (best > 0) ranks[best - 1] = pairs_.find(ids[best - 1], ids[best]).rank;
    if (best < pairs) ranks[best] = pairs_.find(ids[best], ids[best + 1]).rank;
  }
  return std::copy_n(ids, pairs + 1, out);
}

// The same with a linked list and a heap of (rank, position). An entry is stale if its position's pair now has
// another rank. A position lost to a merge holds id `none`, which is in no pair.
uint32_t* Encoder::merge_long(size_t size, Workspace& w, uint32_t* out) const {
  constexpr uint32_t none = PairTable::none;
  auto &ids = w.ids, &next = w.next, &previous = w.previous;
  auto& heap = w.heap;
  const auto later = std::greater<uint64_t>();
  heap.clear();
  auto rank_at = [&](uint32_t i) { return next[i] < size ? pairs_.find(ids[i], ids[next[i]]).rank : none; };
  for (uint32_t i = 0; i < size; i++) {
    next[i] = i + 1;
    previous[i] = i - 1;
  }
  for (uint32_t i = 0; i + 1 < size; i++) {
    if (uint32_t rank = rank_at(i); rank != none) heap.push_back(uint64_t(rank) << 32 | i);
  }
  std::make_heap(heap.begin(), heap.end(), later);
  auto push = [&](uint32_t i) {
    if (uint32_t rank = rank_at(i); rank != none) {
      heap.push_back(uint64_t(rank) << 32 | i);
      std::push_heap(heap.begin(), heap.end(), later);
    }
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const uint32_t i = uint32_t(heap.back()), rank = uint32_t(heap.back() >> 32);
    heap.pop_back();
    if (ids[i] == none || rank_at(i) != rank) continue;
    const uint32_t gone = next[i];
    ids[i] = pairs_.find(ids[i], ids[gone]).id;
    ids[gone] = none;
    next[i] = next[gone];
    if (next[i] < size) previous[next[i]] = i;
    if (i > 0) push(previous[i]);
    push(i);
  }
  for (uint32_t i = 0; i < size; i = next[i]) *out++ = ids[i];
  return out;
}

uint32_t* Encoder::merge(const uint8_t* p, size_t size, Workspace& w, uint32_t* out) const {
  if (!whole_.empty()) {
    auto found = whole_.find({reinterpret_cast<const char*>(p), size});
    if (found != whole_.end()) {
      *out = found->second;
      return out + 1;
    }
  }
  if (size >= PairTable::none) throw std::length_error("a piece of 4 GiB or more cannot be encoded");
  if (w.ids.size() < size) {
    w.ids.resize(size);
    w.next.resize(size);
    w.previous.resize(size);
  }
  for (size_t i = 0; i < size; i++) w.ids[i] = byte_ids_[p[i]];
  uint32_t* end = size <= 64 ? merge_short(size, w, out) : merge_long(size, w, out);
  return complete_ ? end : std::remove(out, end, PairTable::none);
}

// One piece through the cache, where it fits. The text is readable up to text_end.
inline uint32_t* Encoder::piece(const uint8_t* p, size_t size, const uint8_t* text_end, Workspace& w,
                                uint32_t* out) const {
  if (size == 1) {
    *out = byte_ids_[*p];
    return out + (*out != PairTable::none);
  }
  if (size > 15) return merge(p, size, w, out);
  uint64_t key[2] = {0, 0};
  if (text_end - p >= 16) {
    std::memcpy(key, p, 16);
    const int unused = 8 * (16 - int(size));  // bits; 8 at least, so that the top byte is free
    const uint64_t low_mask = unused > 64 ? ~uint64_t(0) >> (unused - 64) : ~uint64_t(0);
    const uint64_t high_mask = unused < 64 ? ~uint64_t(0) >> unused : 0;
    key[0] &= low_mask;
    key[1] &= high_mask;
  } else {
    std::memcpy(key, p, size);
  }
  key[1] |= uint64_t(size) << 56;
  uint64_t mixed = (key[0] ^ (key[1] * 0x9E3779B97F4A7C15u)) * 0xD6E8FEB86659FD93u;
  mixed = (mixed ^ mixed >> 32) * 0x9E3779B97F4A7C15u;
  Workspace::Slot* first = &w.slots[mixed >> (64 - Workspace::slot_bits)];
  Workspace::Slot* second = &w.slots[(first - w.slots.data()) ^ 1];  // in the same cache line
  constexpr uint64_t no_count = ~(uint64_t(0xF0) << 56);
  for (const Workspace::Slot* slot : {first, second}) {
    if (slot->low == key[0] && (slot->high & no_count) == key[1]) {
      std::memcpy(out, slot->ids, sizeof(slot->ids));
      return out + (slot->high >> 60);
    }
  }
  uint32_t* end = merge(p, size, w, out);
  if (end - out <= 4) {
    *second = *first;  // the newest comes first, the one before it second
    first->low = key[0];
    first->high = key[1] | uint64_t(end - out) << 60;
    std::copy(out, end, first->ids);
  }
  return end;
}

void Ids::grow(size_t least) {
  const size_t wanted = std::max(least, capacity_ + capacity_ / 2);
  void* moved = std::realloc(data_.get(), wanted * sizeof(uint32_t));
  if (!moved) throw std::bad_alloc();
  data_.release();
  data_.reset(static_cast<uint32_t*>(moved));
  capacity_ = wanted;
}

void Encoder::encode(std::string_view text, Ids& ids) const {
  auto workspace = take();
  const uint8_t* const text_end = reinterpret_cast<const uint8_t*>(text.data()) + text.size();
  for_each_piece(pattern, text, [&](const uint8_t* p, const uint8_t* end) {
    ids.end_at(piece(p, end - p, text_end, *workspace, ids.room(end - p + 4)));
  });
  give(std::move(workspace));
}

void Encoder::encode_pieces(const std::vector<std::string_view>& pieces, Ids& ids) const {
  auto workspace = take();
  for (std::string_view text : pieces) {
    const uint8_t* p = reinterpret_cast<const uint8_t*>(text.data());
    if (!text.empty())
      ids.end_at(piece(p, text.size(), p + text.size(), *workspace, ids.room(text.size() + 4)));
  }
  give(std::move(workspace));
}

void Encoder::encode_batch(const std::vector<std::string_view>& texts, int threads, Ids& ids,
                           std::vector<int64_t>& offsets) const {
  // Runs of texts of about 64 KiB are the unit of work; each keeps its own ids until all are joined in order.
  struct Run {
    size_t first, last;
    Ids ids;
  };
  std::vector<Run> runs;
  size_t bytes = 1 << 16;
  for (size_t i = 0; i < texts.size(); i++) {
    if (bytes >= (1 << 16)) {
      runs.push_back({i, i, {}});
      bytes = 0;
    }
    runs.back().last = i + 1;
    bytes += texts[i].size();
  }
  offsets.assign(texts.size() + 1, 0);
  std::atomic<size_t> taken{0};
  on_threads(int(std::min<size_t>(std::max(threads, 1), runs.size())), [&](int) {
    for (size_t r; (r = taken++) < runs.size();) {
      Run& run = runs[r];
      for (size_t i = run.first; i < run.last; i++) {
        const size_t before = run.ids.size();
        encode(texts[i], run.ids);
        offsets[i + 1] = int64_t(run.ids.size() - before);
      }
    }
  });
  for (size_t i = 0; i < texts.size(); i++) offsets[i + 1] += offsets[i];
  ids.room(offsets.back());
  for (Run& run : runs) {
    ids.append(run.ids);
    run.ids = {};
  }
}

}  // namespace text
