// Encoding: see encode.h.
#include "encode.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "threads.h"

namespace text {

constexpr size_t most_pieces = 256 + piece_slack;  // in one batch

void Ids::grow(size_t least) {
  constexpr size_t large = 2 << 20;  // bytes; so big an array is written faster into large pages
  const size_t wanted = std::max(least, capacity_ + capacity_ / 2), bytes = wanted * sizeof(uint32_t);
  void* moved;
  if (bytes >= 2 * large) {
    moved = std::aligned_alloc(large, (bytes + large - 1) / large * large);
    if (!moved) throw std::bad_alloc();
    madvise(moved, bytes, MADV_HUGEPAGE);
    if (size_ > 0) std::memcpy(moved, data_.get(), size_ * sizeof(uint32_t));
  } else {
    moved = std::realloc(data_.get(), bytes);
    if (!moved) throw std::bad_alloc();
    data_.release();
  }
  data_.reset(static_cast<uint32_t*>(moved));
  capacity_ = wanted;
}

Encoder::Encoder(Vocabulary vocabulary_, Pattern pattern_)
    : vocabulary(std::move(vocabulary_)), pattern(pattern_) {}

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
  if (workspace->scratch.region.capacity() > (1 << 20)) workspace->scratch = {};  // a giant piece went by
  std::unique_lock<std::mutex> lock(idle_lock_, std::try_to_lock);
  if (lock && idle_.size() < 64) idle_.push_back(std::move(workspace));
}

uint32_t* Encoder::merge(const uint8_t* p, size_t size, Workspace& w, uint32_t* out) const {
  if (uint32_t id = vocabulary.whole({reinterpret_cast<const char*>(p), size}); id != none) {
    *out = id;
    return out + 1;
  }
  if (size >= none) throw std::length_error("a piece of 4 GiB or more cannot be encoded");
  if (size <= 64) {
    uint32_t symbols[64];
    for (uint64_t starts = vocabulary.merger().window(p, size, symbols); starts; starts &= starts - 1) {
      *out = vocabulary.id_of(symbols[wide::lowest_bit(starts)]);
      out += *out != none;  // a byte that is no token is dropped
    }
    return out;
  }
  const uint32_t *symbol = out, *const end = vocabulary.merger().merge(p, size, w.scratch, out);
  while (symbol < end) {
    *out = vocabulary.id_of(*symbol++);
    out += *out != none;
  }
  return out;
}

// A piece of up to 15 bytes whose ids are not at hand: in parts, where it can be cut. `known`: met before, so
// that it may be among the long ones.
uint32_t* Encoder::in_parts(const uint8_t* p, size_t size, bool known, Workspace& w, uint32_t* out) const {
  const size_t cut = size > 3 ? vocabulary.junctions.cut(p, size, 3) : size;
  if (cut == size) return known ? long_piece(p, size, w, out) : merge(p, size, w, out);
  for (const uint8_t* part = p; part < p + size; part += part == p ? cut : size - cut) {
    const size_t part_size = part == p ? cut : size - cut;
    const wide::Key key = wide::key_of(part, part_size, p + size);
    out = short_piece(key, ShortPieces::line_of(key), part, part_size, w, out);
  }
  return out;
}

uint32_t* Encoder::long_piece(const uint8_t* p, size_t size, Workspace& w, uint32_t* out) const {
  if (size > sizeof LongPieces::Slot::bytes) return merge(p, size, w, out);
  const std::string_view piece(reinterpret_cast<const char*>(p), size);
  const uint64_t hash = hash_of(piece.data(), piece.size());
  if (const LongPieces::Slot* slot = w.long_pieces.find(hash, piece))
    return std::copy_n(slot->ids, slot->count, out);
  uint32_t* end = merge(p, size, w, out);
  w.long_pieces.add(hash, piece, out, end - out);
  return end;
}

inline uint32_t* Encoder::short_piece(wide::Key key, uint32_t line, const uint8_t* p, size_t size, Workspace& w,
                                      uint32_t* out) const {
  size_t known = w.short_pieces.find(key, line, out);
  if (!known) known = w.short_pieces.find_moved(key, line, out);
  if (known == ShortPieces::many) return in_parts(p, size, true, w, out);
  if (known) return out + known;
  uint32_t* end = in_parts(p, size, false, w, out);
  w.short_pieces.add(key, line, out, end - out);
  return end;
}

// A piece of a batch whose ids are not at hand, and where these belong among the others'.
struct Encoder::Unknown {
  const uint8_t* p;
  uint32_t size, line;
  wide::Key key;
  size_t place;
  const Unknown* same;  // the piece that holds its ids: itself, or an equal one
  uint32_t count, ids[Lanes<15>::bytes + 4];
};

// Merges unknown pieces, 16 at a time, and remembers them.
void Encoder::learn(Unknown* unknown, size_t count, Workspace& w) const {
  Lanes<15> lanes;
  Unknown* of[lanes.most];  // lanes
  for (size_t u = 0; u < count;) {
    const size_t first = u;
    lanes.clear();
    for (; u < count && lanes.count < lanes.most; u++) {
      Unknown& piece = unknown[u];
      if (first > 0) {  // it may have been met a few pieces earlier
        size_t known = w.short_pieces.find(piece.key, piece.line, piece.ids);
        if (known == ShortPieces::many) known = in_parts(piece.p, piece.size, true, w, piece.ids) - piece.ids;
        if ((piece.count = uint32_t(known))) continue;
      }
      for (size_t lane = 0; lane < lanes.count; lane++) {
        if (of[lane]->key.low == piece.key.low && of[lane]->key.high == piece.key.high) piece.same = of[lane];
      }
      if (piece.same != &piece) continue;
      const std::string_view view(reinterpret_cast<const char*>(piece.p), piece.size);
      if (const uint32_t id = vocabulary.all_merge() ? none : vocabulary.whole(view); id != none) {
        piece.ids[0] = id;
        remember(piece, 1, w);
      } else if (piece.size > 3 && vocabulary.junctions.cut(piece.p, piece.size, 3) < piece.size) {
        remember(piece, in_parts(piece.p, piece.size, false, w, piece.ids) - piece.ids, w);
      } else {
        of[lanes.count] = &piece;
        vocabulary.merger().add(piece.p, piece.size, lanes);
      }
    }
    vocabulary.merger().merge(lanes);
    for (size_t lane = 0; lane < lanes.count; lane++) {
      size_t made = 0;
      for (uint64_t starts = lanes.starts(lane); starts; starts &= starts - 1) {
        const uint32_t id = vocabulary.id_of(lanes.symbols[wide::lowest_bit(starts) + 1][lane]);
        of[lane]->ids[made] = id;
        made += id != none;
      }
      remember(*of[lane], made, w);
    }
  }
}

void Encoder::remember(Unknown& piece, size_t count, Workspace& w) const {
  piece.count = uint32_t(count);
  w.short_pieces.add(piece.key, piece.line, piece.ids, count);
  if (count > 4) {
    const std::string_view view(reinterpret_cast<const char*>(piece.p), piece.size);
    w.long_pieces.add(hash_of(view.data(), view.size()), view, piece.ids, count);
  }
}

// First all keys, so that their cache lines are on the way; then the ids of all pieces that are known; then the
// others are merged together, and their ids put between.
void Encoder::encode_pieces(const uint8_t* p, const uint8_t* text_end, const uint32_t* ends, size_t count,
                            Workspace& w, Ids& ids) const {
  uint32_t lines[most_pieces];
  wide::Key keys[most_pieces];
  for (size_t i = 0, start = 0; i < count; start = ends[i++]) {
    const size_t size = ends[i] - start;
    if (size > 15) continue;
    keys[i] = wide::key_of(p + start, size, text_end);
    lines[i] = ShortPieces::line_of(keys[i]);
    w.short_pieces.prefetch(lines[i]);
  }
  Unknown unknown[most_pieces];
  size_t news = 0;
  uint32_t *const begin = ids.room(ends[count - 1] + 4), *out = begin;
  for (size_t i = 0, start = 0; i < count; start = ends[i++]) {
    const size_t size = ends[i] - start;
    if (size > 15) {
      out = long_piece(p + start, size, w, out);
      continue;
    }
    size_t known = w.short_pieces.find(keys[i], lines[i], out);
    if (known == 0) known = w.short_pieces.find_moved(keys[i], lines[i], out);
    if (known == ShortPieces::many) {
      out = in_parts(p + start, size, true, w, out);
    } else {
      if (known == 0) {
        Unknown& piece = unknown[news++];
        piece.p = p + start, piece.size = uint32_t(size), piece.key = keys[i], piece.line = lines[i];
        piece.place = size_t(out - begin), piece.same = &piece, piece.count = 0;
      }
      out += known;
    }
  }
  if (news) {
    learn(unknown, news, w);
    uint32_t* end = out;
    for (size_t u = 0; u < news; u++) out += unknown[u].same->count;
    for (uint32_t* to = out; news-- > 0; end = begin + unknown[news].place) {
      const Unknown& piece = *unknown[news].same;
      to = std::move_backward(begin + unknown[news].place, end, to) - piece.count;
      std::copy_n(piece.ids, piece.count, to);
    }
  }
  ids.end_at(out);
}

// A few hundred pieces at a time. Long ones are cut further where that is certain to change nothing.
void Encoder::encode(std::string_view text, Workspace& w, Ids& ids, size_t most) const {
  uint32_t ends[most_pieces], parts[most_pieces];
  const uint8_t* p = reinterpret_cast<const uint8_t*>(text.data());
  const uint8_t* const text_end = p + text.size();
  while (p < text_end && ids.size() < most) {
    const size_t count = split(pattern, p, text_end, ends, most_pieces - piece_slack);
    uint32_t longest = ends[0];
    for (size_t i = 1; i < count; i++) longest = std::max(longest, ends[i] - ends[i - 1]);
    if (longest <= 15) {
      encode_pieces(p, text_end, ends, count, w, ids);
    } else {
      size_t done = 0, filled = 0;  // offset of what is encoded, number of parts behind it
      for (size_t i = 0, start = 0; i < count; start = ends[i++]) {
        for (size_t size; (size = ends[i] - start) > 0;) {
          const size_t cut = size > 15 ? vocabulary.junctions.cut(p + start, size, 6) : size;
          start += cut;
          parts[filled++] = uint32_t(start - done);
          if (filled == most_pieces) {
            encode_pieces(p + done, text_end, parts, filled, w, ids);
            done = start;
            filled = 0;
          }
        }
      }
      if (filled) encode_pieces(p + done, text_end, parts, filled, w, ids);
    }
    p += ends[count - 1];
  }
}

void Encoder::encode(std::string_view text, Ids& ids, size_t most) const {
  auto workspace = take();
  encode(text, *workspace, ids, most);
  give(std::move(workspace));
}

void Encoder::encode_pieces(const std::vector<std::string_view>& pieces, Ids& ids) const {
  auto workspace = take();
  for (std::string_view piece : pieces) {
    const uint8_t* p = reinterpret_cast<const uint8_t*>(piece.data());
    uint32_t* out = ids.room(piece.size() + 4);
    if (piece.size() > 15) {
      out = long_piece(p, piece.size(), *workspace, out);
    } else if (!piece.empty()) {
      const wide::Key key = wide::key_of(p, piece.size(), p + piece.size());
      out = short_piece(key, ShortPieces::line_of(key), p, piece.size(), *workspace, out);
    }
    ids.end_at(out);
  }
  give(std::move(workspace));
}

void Encoder::encode_batch(const std::vector<std::string_view>& texts, int threads, Ids& ids,
                           std::vector<int64_t>& offsets) const {
  offsets.assign(texts.size() + 1, 0);
  size_t bytes = 0;
  for (std::string_view text : texts) bytes += text.size();
  // Runs of texts of about 64 KiB are the unit of work; each thread keeps the ids of its runs until all are
  // joined.
  struct Run {
    size_t first, last;
    int thread;
    size_t start;  // of its ids, in the thread's
  };
  std::vector<Run> runs;
  for (size_t i = 0, size = 0; i < texts.size(); i++) {
    if (i == 0 || size >= 1 << 16) {
      runs.push_back({i, i, 0, 0});
      size = 0;
    }
    runs.back().last = i + 1;
    size += texts[i].size();
  }
  threads = int(std::max<size_t>(std::min<size_t>(std::max(threads, 1), runs.size()), 1));
  std::vector<Ids> made(threads);
  std::atomic<size_t> taken{0};
  on_threads(threads, [&](int t) {
    auto workspace = take();
    Ids& mine = made[t];
    mine.room(bytes / 2 / size_t(threads) + 64);  // what is not written is not paid for
    for (size_t r; (r = taken++) < runs.size();) {
      Run& run = runs[r];
      run.thread = t;
      run.start = mine.size();
      for (size_t i = run.first; i < run.last; i++) {
        const size_t before = mine.size();
        encode(texts[i], *workspace, mine);
        offsets[i + 1] = int64_t(mine.size() - before);
      }
    }
    give(std::move(workspace));
  });
  for (size_t i = 0; i < texts.size(); i++) offsets[i + 1] += offsets[i];
  if (threads == 1) {
    ids = std::move(made[0]);
    return;
  }
  uint32_t* out = ids.room(size_t(offsets.back()));
  taken = 0;
  on_threads(threads, [&](int) {
    for (size_t r; (r = taken++) < runs.size();) {
      const Run& run = runs[r];
      const int64_t start = offsets[run.first], size = offsets[run.last] - start;
      std::copy_n(made[run.thread].data() + run.start, size, out + start);
    }
  });
  ids.end_at(out + offsets.back());
}

}  // namespace text
