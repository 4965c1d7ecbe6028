// Encoding: see encode.h.
#include "encode.h"

#include <algorithm>
#include <atomic>
#include <iterator>
#include <stdexcept>

#include "threads.h"

namespace text {

constexpr size_t most_pieces = 256 + piece_slack;  // in one batch
constexpr size_t least_part = 6;                   // bytes of a piece that is cut, but for its last part
// After a batch, so many places that wait are enough to learn what belongs there. A piece of 15 bytes is up to
// 5 characters, so cutting makes at most 5 of it; their ids have room for 35 more.
constexpr size_t enough_places = 108, most_places = enough_places + most_pieces, most_unknown = 6 * most_places,
                 most_unknown_ids = most_places * (Merger::most_in_windows + 4 + 35);

Unknowns::Unknowns() : ids(new uint32_t[most_unknown_ids]) {
  pieces.reserve(most_unknown);
  gaps.reserve(most_places);
  blanks.reserve(most_places);
}

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

// Neither waits for its lock, which another thread may have held when this process was forked.
void SpareIds::keep(IdMemory memory, size_t capacity) {
  constexpr size_t least = 1 << 20, most = 32 << 20;  // ids: less is quickly had, more is too much to hold
  if (capacity < least || capacity > most) return;
  std::unique_lock<std::mutex> lock(lock_, std::try_to_lock);
  if (!lock || capacity <= capacity_) return;
  memory_.swap(memory);
  capacity_ = capacity;
}

std::pair<IdMemory, size_t> SpareIds::take() {
  std::unique_lock<std::mutex> lock(lock_, std::try_to_lock);
  if (!lock) return {};
  return {std::move(memory_), std::exchange(capacity_, 0)};
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

void Encoder::to_ids(uint32_t* symbols, uint32_t* end) const {
  for (; symbols < end; symbols++) *symbols = vocabulary.id_of(*symbols);
}

// A piece alone, of any size.
uint32_t* Encoder::merge(const uint8_t* p, size_t size, Workspace& w, uint32_t* out) const {
  const std::string_view piece(reinterpret_cast<const char*>(p), size);
  if (uint32_t id = vocabulary.all_merge() ? none : vocabulary.whole(piece); id != none) {
    *out = id;
    return out + 1;
  }
  if (vocabulary.lacks_a_byte_of(p, size)) {
    w.kept.clear();
    std::copy_if(p, p + size, std::back_inserter(w.kept),
                 [&](uint8_t byte) { return vocabulary.byte_ids[byte] != none; });
    p = w.kept.data(), size = w.kept.size();
  }
  uint32_t* const end = vocabulary.merger().merge(p, size, w.scratch, out);
  to_ids(out, end);
  return end;
}

bool Encoder::in_windows(const uint8_t* p, size_t size) const {
  return size > Lanes<62>::bytes && size <= Merger::most_in_windows && vocabulary.all_merge() &&
         !vocabulary.lacks_a_byte_of(p, size);
}

// Notes a piece whose ids are not at hand.
__attribute__((noinline)) static void note(Unknowns& unknown, const uint8_t* p, size_t size,
                                           const wide::Key& key, ShortPieces::Line* line, size_t at) {
  Unknowns::Place& gap = unknown.gaps.emplace_back();
  gap.at = at;
  gap.piece = unknown.note(p, size, key, line, false);
}

// Long pieces are rare; apart, they leave the loops over the others tight.
__attribute__((noinline)) static wide::Key ask_for_long(Workspace& w, const uint8_t* p, size_t size) {
  if (size > LongPieces::most_bytes) return {0, size};
  const wide::Key key{hash_of(p, size), size};
  w.long_pieces.prefetch(LongPieces::name_of(key.low));
  return key;
}

// The ids of all unknown pieces: of those that can be cut by those of their parts, which become unknown pieces
// themselves; of the others by merging them, 16 at a time, the short ones sorted by size, so that few lanes
// wait for others that have more to merge. All are remembered.
void Encoder::learn(Workspace& w) const {
  std::vector<Unknown>& all = w.unknown.pieces;
  uint32_t* const room = w.unknown.ids.get();
  Lanes<62> longs;
  Unknown* long_of[longs.most];
  uint32_t of_size[16] =
      {};  // one more than the number of the last short piece of each size to be merged, or 0
  auto collect = [&](const auto& lanes, Unknown* const* of) {
    for (size_t lane = 0; lane < lanes.count; lane++) {
      Unknown& piece = *of[lane];
      if (piece.size > lanes.bytes) continue;  // windows, joined already
      for (uint64_t starts = lanes.starts(lane); starts; starts &= starts - 1) {
        const uint32_t symbol = lanes.symbols[wide::lowest_bit(starts) + 1][lane];
        room[piece.ids + piece.count++] = vocabulary.id_of(symbol);
      }
      announce(piece, w);
    }
    for (size_t lane = 0; lane < lanes.count; lane++) {
      if (lane == 0 || of[lane] != of[lane - 1]) remember(*of[lane], w);
    }
  };
  const size_t news = all.size();
  for (size_t u = 0; u < all.size();) {
    longs.clear();
    for (; u < all.size() && longs.count < longs.most; u++) {
      Unknown& piece = all[u];
      uint32_t* ids = room + piece.ids;
      const bool is_short = piece.size <= 15;
      if (u >= news) {  // a part
        size_t known = ShortPieces::find(piece.key, piece.line, ids);
        if (known == ShortPieces::absent) known = w.short_pieces.find_moved(piece.key, piece.line, ids);
        piece.met = known == ShortPieces::many;
        if (known <= ShortPieces::most) {
          if (known > ShortPieces::plain) ShortPieces::unpack(ids);
          piece.count = uint32_t(known);
          continue;
        }
        piece.same = w.unknown.enter(uint32_t(u));
        if (piece.same != u) continue;
      }
      if (piece.size > longs.bytes) {
        const size_t lane = longs.count;
        if (!vocabulary.merger().add_windows(piece.p, piece.size, longs)) break;  // the next time
        std::fill(long_of + lane, long_of + longs.count, &piece);
        continue;
      }
      const bool lacking = vocabulary.lacks_a_byte_of(piece.p, piece.size);
      if (is_short && piece.size > 3 && !lacking && !piece.key.is_ascii()) {
        size_t from = 0, cut = vocabulary.junctions.cut(piece.p, piece.size, 3);
        if (cut < piece.size) {
          for (piece.parts = uint32_t(all.size()); from < piece.size; piece.part_count++) {
            const size_t size = cut - from;
            const wide::Key key = wide::key_of(piece.p + from, size, piece.p + piece.size);
            ShortPieces::Line* const line = w.short_pieces.line_of(key);
            __builtin_prefetch(line);
            w.unknown.add(piece.p + from, size, key, line, false);
            from = cut;
            cut = vocabulary.junctions.cut(piece.p, piece.size, from + 3);
          }
          continue;
        }
      }
      const std::string_view view(reinterpret_cast<const char*>(piece.p), piece.size);
      if (!is_short || piece.met) {
        const uint64_t hash = is_short ? hash_of(view.data(), view.size()) : piece.key.low;
        if ((piece.count = uint32_t(w.long_pieces.find(LongPieces::name_of(hash), view, ids)))) continue;
      }
      if (lacking) {
        piece.count = uint32_t(merge(piece.p, piece.size, w, ids) - ids);
        announce(piece, w);
        remember(piece, w);
      } else if (const uint32_t id = vocabulary.all_merge() ? none : vocabulary.whole(view); id != none) {
        ids[piece.count++] = id;
        announce(piece, w);
        remember(piece, w);
      } else if (is_short) {
        piece.like = std::exchange(of_size[piece.size], uint32_t(u) + 1);
      } else {
        long_of[longs.count] = &piece;
        vocabulary.merger().add(piece.p, piece.size, longs);
      }
    }
    if (longs.count) vocabulary.merger().merge(longs);
    for (size_t lane = 0; lane < longs.count;) {
      Unknown& piece = *long_of[lane];
      if (piece.size <= longs.bytes) {
        lane++;
        continue;
      }
      uint32_t* const ids = room + piece.ids;
      uint32_t* const end = vocabulary.merger().join_windows(piece.p, piece.size, longs, lane, w.scratch, ids);
      to_ids(ids, end);
      piece.count = uint32_t(end - ids);
      announce(piece, w);
    }
    collect(longs, long_of);
  }
  Lanes<15> shorts[Merger::groups];
  Unknown* short_of[Merger::groups][shorts[0].most];
  size_t group = 0;
  auto merge_shorts = [&] {
    vocabulary.merger().merge(shorts);
    for (size_t i = 0; i < Merger::groups; i++) {
      collect(shorts[i], short_of[i]);
      shorts[i].clear();
    }
    group = 0;
  };
  for (uint32_t u : of_size) {
    for (; u; u = all[u - 1].like) {
      if (shorts[group].count == shorts[0].most && ++group == Merger::groups) merge_shorts();
      Unknown& piece = all[u - 1];
      short_of[group][shorts[group].count] = &piece;
      vocabulary.merger().add(piece.p, piece.size, shorts[group]);
    }
  }
  merge_shorts();
  for (size_t u = all.size(); u-- > 0;) {  // parts stand behind what they are parts of
    Unknown& piece = all[u];
    for (uint32_t part = piece.parts; part < piece.parts + piece.part_count; part++) {
      const Unknown& of = all[all[part].same];
      std::copy_n(room + of.ids, of.count, room + piece.ids + piece.count);
      piece.count += of.count;
    }
    if (piece.part_count && !piece.met) announce(piece, w);
  }
  for (const Unknown& piece : all) {
    if (piece.part_count && !piece.met) remember(piece, w);
  }
}

// Asks for what remembering a piece will write to.
void Encoder::announce(Unknown& piece, Workspace& w) const {
  if (piece.size > LongPieces::most_bytes || piece.count == 0) return;
  const bool is_short = piece.size <= 15;
  if (is_short) w.short_pieces.prefetch_full(piece.key, piece.line);
  piece.fits = is_short && ShortPieces::fits(w.unknown.ids.get() + piece.ids, piece.count);
  if (piece.fits) return;
  piece.name = LongPieces::name_of(is_short ? hash_of(piece.p, piece.size) : piece.key.low);
  w.long_pieces.prefetch(piece.name);
}

void Encoder::remember(const Unknown& piece, Workspace& w) const {
  if (piece.size > LongPieces::most_bytes || piece.count == 0) return;
  const uint32_t* ids = w.unknown.ids.get() + piece.ids;
  const bool is_short = piece.size <= 15;
  if (piece.fits) return w.short_pieces.add(piece.key, piece.line, ids, piece.count);
  const uint32_t where[ShortPieces::plain] = {piece.count, piece.name};
  if (is_short && !piece.met) w.short_pieces.add(piece.key, piece.line, where, ShortPieces::many);
  w.long_pieces.add(piece.name, {reinterpret_cast<const char*>(piece.p), piece.size}, ids, piece.count);
}

// First all keys, so that their cache lines are on the way; then the ids of all pieces that are known. The
// others wait until there are enough of them, or the text ends.
void Encoder::encode_pieces(const uint8_t* p, const uint8_t* text_end, uint32_t* ends, size_t count,
                            Workspace& w, Ids& ids) const {
  alignas(64) ShortPieces::Line* lines[most_pieces + 16];
  alignas(64) wide::Key keys[most_pieces + 16];
  uint32_t longer[most_pieces];
  const size_t longs = w.short_pieces.ask(p, text_end, ends, count, keys, lines, longer);
  for (size_t j = 0; j < longs; j++) {
    const size_t i = longer[j];
    keys[i] = ask_for_long(w, p + ends[i - 1], ends[i] - ends[i - 1]);
  }
  struct {
    size_t piece;
    uint32_t place, name;
  } placed[most_pieces];  // pieces of which only the number of ids is known so far
  const size_t noted = w.unknown.gaps.size(), start = ids.size();
  size_t most_placed = 0, inert = 0, new_bytes = 0;
  uint32_t *const begin = ids.room(ends[count - 1] + 4), *out = begin;
  // What the ids of the next batch will be written to is asked for, some five bytes a piece.
  for (size_t byte = 0; byte < 5 * count; byte += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(begin) + 1408 + byte), 1);
  for (size_t i = 0; i < count; i++) {
    size_t known = ShortPieces::find(keys[i], lines[i], out);
    if (__builtin_expect(known <= ShortPieces::plain, 1)) {
      out += known;
      continue;
    }
    const uint8_t* const piece = p + ends[i - 1];
    const size_t size = ends[i] - ends[i - 1];
    if (size > LongPieces::most_bytes) {
      known = 0;
    } else if (size > 15) {
      const uint32_t name = LongPieces::name_of(keys[i].low);
      known = w.long_pieces.find(name, {reinterpret_cast<const char*>(piece), size}, out);
    } else if (known == ShortPieces::absent) {
      known = w.short_pieces.find_moved(keys[i], lines[i], out);
      if (known == ShortPieces::absent) known = 0;
    }
    if (size <= 15 && known > ShortPieces::plain && known <= ShortPieces::most) {
      ShortPieces::unpack(out);
    } else if (known == 0 && size > Lanes<62>::bytes && !in_windows(piece, size)) {
      out = merge(piece, size, w, out);
    } else if (known == 0 && size > 2 && vocabulary.inert(piece, size)) {  // as fast as remembered
      out = vocabulary.bytes(piece, size, out);
      inert++;
      new_bytes += size;
    } else if (known == 0) {
      note(w.unknown, piece, size, keys[i], lines[i], start + size_t(out - begin));
      new_bytes += size;
    } else if (known == ShortPieces::many && size <= 15) {
      w.long_pieces.prefetch(out[1]);
      placed[most_placed++] = {i, uint32_t(out - begin), out[1]};
      known = out[0];
    }
    out += known;
  }
  for (size_t j = 0; j < most_placed; j++) {
    const auto& [piece, place, name] = placed[j];
    const uint8_t* const at = p + ends[piece - 1];
    const size_t size = ends[piece] - ends[piece - 1];
    if (!w.long_pieces.find(name, {reinterpret_cast<const char*>(at), size}, begin + place))
      w.unknown.blanks.push_back({start + place, w.unknown.note(at, size, keys[piece], lines[piece], true)});
  }
  ids.end_at(out);
  w.novelty.count(ends[count - 1], w.unknown.gaps.size() - noted + inert, new_bytes);
  if (w.unknown.gaps.size() + w.unknown.blanks.size() >= enough_places) settle(w, ids);
}

// The ids are moved apart from the last one on, each of them once.
void Encoder::settle(Workspace& w, Ids& ids) const {
  if (w.unknown.pieces.empty()) return;
  learn(w);
  const std::vector<Unknown>& all = w.unknown.pieces;
  const uint32_t* const from = w.unknown.ids.get();
  uint32_t* const out = ids.data();
  for (const auto& [at, piece] : w.unknown.blanks)
    std::copy_n(from + all[piece].ids, all[piece].count, out + at);
  size_t more = 0, gap = 0;
  auto count_to = [&](size_t end) {
    for (; gap < end; gap++) more += all[w.unknown.gaps[gap].piece].count;
  };
  for (const auto& [at, gaps] : w.unknown.ends) {
    count_to(gaps);
    *at += int64_t(more);
  }
  count_to(w.unknown.gaps.size());
  uint32_t* const begin = ids.room(more) - ids.size();
  uint32_t *end = begin + ids.size(), *to = end + more;
  ids.end_at(to);
  while (gap-- > 0) {
    const auto& [at, number] = w.unknown.gaps[gap];
    const Unknown& piece = all[number];
    to = std::move_backward(begin + at, end, to) - piece.count;
    std::copy_n(from + piece.ids, piece.count, to);
    end = begin + at;
  }
  w.unknown.clear();  // they name lines, so tables do not grow while some wait
  if (w.short_pieces.crowded()) w.short_pieces.grow();
  if (w.long_pieces.crowded()) w.long_pieces.grow();
}

void Encoder::merge_pieces(const uint8_t* p, const uint32_t* ends, size_t count, Workspace& w, Ids& ids) const {
  const Merger& merger = vocabulary.merger();
  Lanes<62> lanes;
  std::string_view windows[lanes.most];  // the piece whose windows begin with this lane
  uint32_t* out = ids.room(ends[count - 1] + 4);
  auto finish = [&] {
    if (lanes.count) merger.merge(lanes);
    for (size_t lane = 0; lane < lanes.count;) {
      if (const std::string_view piece = std::exchange(windows[lane], {}); !piece.empty()) {
        uint32_t* const from = out;
        out = merger.join_windows(reinterpret_cast<const uint8_t*>(piece.data()), piece.size(), lanes, lane,
                                  w.scratch, out);
        to_ids(from, out);
        continue;
      }
      for (uint64_t starts = lanes.starts(lane); starts; starts &= starts - 1)
        *out++ = vocabulary.id_of(lanes.symbols[wide::lowest_bit(starts) + 1][lane]);
      lane++;
    }
    lanes.clear();
  };
  auto add = [&](const uint8_t* piece, size_t size) {
    if (size <= lanes.bytes) return merger.pack(piece, size, lanes);
    const size_t lane = lanes.count;
    if (!merger.add_windows(piece, size, lanes)) return false;
    windows[lane] = {reinterpret_cast<const char*>(piece), size};
    return true;
  };
  for (size_t i = 0; i < count; i++) {
    const uint8_t* const piece = p + ends[i - 1];
    const size_t size = ends[i] - ends[i - 1];
    if (size > Merger::most_in_windows || vocabulary.lacks_a_byte_of(piece, size)) {
      finish();
      out = merge(piece, size, w, out);
    } else if (!add(piece, size)) {
      finish();
      add(piece, size);
    }
  }
  finish();
  ids.end_at(out);
}

// The same of pieces of which some have places to cut.
void Encoder::encode_parts(const uint8_t* p, const uint8_t* text_end, const uint32_t* ends, size_t count,
                           Workspace& w, Ids& ids) const {
  constexpr size_t most_cuts = 64 / least_part + 1;  // of one look at a piece
  uint32_t with_begin[1 + most_pieces + 32], *const parts = with_begin + 1;
  with_begin[0] = 0;
  size_t done = 0, filled = 0, next = 0;  // bytes encoded, parts behind them, pieces among them so far
  auto flush = [&] {
    encode_pieces(p + done, text_end, parts, filled, w, ids);
    done += parts[filled - 1];
    filled = 0;
  };
  auto take_whole = [&](size_t end) {  // the pieces before this one
    if (filled + end - next > most_pieces) flush();
    wide::copy_less(ends + next, end - next, uint32_t(done), parts + filled);
    filled += end - next;
    next = end;
  };
  for (size_t base = 0; base < count; base += 16) {
    for (uint32_t longs = wide::longer_than_15(ends + base); longs; longs &= longs - 1) {
      const size_t i = base + size_t(wide::lowest_bit(longs)), start = ends[ptrdiff_t(i) - 1];
      const size_t size = ends[i] - start;
      if (vocabulary.lacks_a_byte_of(p + start, size)) continue;
      take_whole(i);
      for (size_t from = least_part; from + 3 <= size;) {
        const uint64_t cuts = vocabulary.junctions.cuts(p + start, size, from);
        // Once 15 bytes or less are left, they stay together.
        const uint64_t far = wide::below(ptrdiff_t(size) - 14 - ptrdiff_t(from)), last = cuts & ~far;
        const uint64_t places = (cuts & far) | (last & -last);
        if (filled + most_cuts > most_pieces) flush();
        filled += wide::write_places(places, uint32_t(start + from - 1 - done), parts + filled);
        from = last ? size : cuts ? from - 1 + size_t(wide::highest_bit(cuts)) + least_part : from + 63;
      }
    }
  }
  take_whole(count);
  flush();
}

// The processor asks for text ahead by itself, but not beyond a page of 4 KiB. So the beginning of the next
// page is asked for while the last half of this one is read.
static void ask_for_next_page(const uint8_t* p) {
  constexpr uintptr_t page = 4096, ahead = 2048;
  const uintptr_t next = (reinterpret_cast<uintptr_t>(p) + ahead + page - 1) & ~(page - 1);
  for (uintptr_t byte = 0; byte < 256; byte += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(next + byte));
}

// A few hundred pieces at a time. Long ones are cut further where that is certain to change nothing.
void Encoder::encode_known(std::string_view text, Workspace& w, Ids& ids, size_t most) const {
  uint32_t with_begin[1 + most_pieces + 16], *const ends = with_begin + 1;
  with_begin[0] = 0;
  const uint8_t* p = reinterpret_cast<const uint8_t*>(text.data());
  const uint8_t* const text_end = p + text.size();
  while (p < text_end && ids.size() + w.unknown.gaps.size() < most) {
    ask_for_next_page(p);
    const size_t count = split(pattern, p, text_end, ends, most_pieces - piece_slack);
    if (vocabulary.all_merge() && w.novelty.holds(p, ends[count - 1])) {
      merge_pieces(p, ends, count, w, ids);
      p += ends[count - 1];
      continue;
    }
    std::fill_n(ends + count, 16, ends[count - 1]);
    const bool leads = wide::any_lead(p, ends[count - 1]);  // else nothing can be cut
    bool cuts = false;
    for (size_t base = 0; leads && base < count && !cuts; base += 16) {
      for (uint32_t longs = wide::longer_than_15(ends + base); longs && !cuts; longs &= longs - 1) {
        const size_t i = base + size_t(wide::lowest_bit(longs)), size = ends[i] - with_begin[i];
        cuts = vocabulary.junctions.cuts(p + with_begin[i], size, least_part);
      }
    }
    if (cuts)
      encode_parts(p, text_end, ends, count, w, ids);
    else
      encode_pieces(p, text_end, ends, count, w, ids);
    p += ends[count - 1];
  }
}

void Encoder::encode(std::string_view text, Workspace& w, Ids& ids, size_t most) const {
  encode_known(text, w, ids, most);
  settle(w, ids);
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
    if (piece.size() >= none) throw std::length_error("a piece of 4 GiB or more cannot be encoded");
    uint32_t ends[2 + 16] = {0, uint32_t(piece.size())};
    if (ends[1] > 0) encode_pieces(p, p + ends[1], ends + 1, 1, *workspace, ids);
  }
  settle(*workspace, ids);
  give(std::move(workspace));
}

namespace {

// Where the ids of each run of texts belong. Threads count them in any order; a run has a place when all before
// it are counted.
class Places {
 public:
  explicit Places(size_t runs) : counts_(runs, uncounted), starts_(runs + 1) {}
  // Returns how many runs, from the first on, have places now.
  size_t count(size_t run, size_t ids) {
    std::lock_guard<std::mutex> hold(lock_);
    counts_[run] = ids;
    for (; placed_ < counts_.size() && counts_[placed_] != uncounted; placed_++)
      starts_[placed_ + 1] = starts_[placed_] + counts_[placed_];
    return placed_;
  }
  size_t start(size_t run) const { return starts_[run]; }
  size_t end(size_t run) const { return starts_[run + 1]; }
  size_t total() const { return starts_.back(); }

 private:
  static constexpr size_t uncounted = SIZE_MAX;
  std::mutex lock_;
  std::vector<size_t> counts_, starts_;
  size_t placed_ = 0;
};

// What a thread has encoded of a batch and not yet moved to its place; in cache lines that no other writes to.
struct alignas(64) Waiting {
  struct Part {
    size_t run, start;  // start: in `ids`
  };
  std::unique_ptr<Workspace> workspace;
  Ids ids;
  std::vector<Part> parts;
  // Moves the ids of runs before `placed`, where they end within `room`.
  void move(const Places& places, size_t placed, uint32_t* out, size_t room) {
    size_t left = 0;
    for (const Part& part : parts) {
      if (part.run < placed && places.end(part.run) <= room) {
        const size_t start = places.start(part.run);
        std::copy_n(ids.data() + part.start, places.end(part.run) - start, out + start);
      } else {
        parts[left++] = part;
      }
    }
    parts.resize(left);
    if (left == 0) ids.clear();
  }
};

}  // namespace

void Encoder::encode_batch(const std::vector<std::string_view>& texts, int threads, Ids& ids,
                           std::vector<int64_t>& offsets) const {
  // Runs of texts of about 32 KiB are the unit of work. A thread encodes one into memory of its own, which
  // stays in its cache, and moves the ids once they have a place, mostly at once or after its next run, since
  // the threads go through the texts side by side. One thread alone writes them where they belong.
  constexpr size_t enough = 1 << 15;
  offsets.assign(texts.size() + 1, 0);
  std::vector<size_t> firsts;  // text of each run, and the end
  size_t bytes = 0;
  for (size_t i = 0, size = enough; i < texts.size(); i++) {
    if (size >= enough) {
      firsts.push_back(i);
      size = 0;
    }
    size += texts[i].size();
    bytes += texts[i].size();
  }
  const size_t runs = firsts.size(), likely = bytes / 2 + 64;
  firsts.push_back(texts.size());
  ids = fresh_ids();
  uint32_t* out = ids.room(likely);  // what is not written is not paid for
  auto encode_run = [&](size_t run, Workspace& workspace, Ids& to) {
    const int64_t begin = int64_t(to.size());
    for (size_t i = firsts[run]; i < firsts[run + 1]; i++) {
      encode_known(texts[i], workspace, to, SIZE_MAX);
      offsets[i + 1] = int64_t(to.size());
      if (const size_t gaps = workspace.unknown.gaps.size())
        workspace.unknown.ends.push_back({&offsets[i + 1], gaps});
    }
    settle(workspace, to);
    for (size_t i = firsts[run + 1]; i-- > firsts[run];) offsets[i + 1] -= i > firsts[run] ? offsets[i] : begin;
  };
  threads = int(std::min<size_t>(std::max(threads, 1), std::max<size_t>(runs, 1)));
  std::vector<Waiting> waiting(static_cast<size_t>(threads));
  for (Waiting& mine : waiting) mine.workspace = take();
  Places places(runs);
  std::atomic<size_t> taken{0};
  on_threads(threads, [&](int t) {
    Waiting& mine = waiting[size_t(t)];
    for (size_t run; (run = taken++) < runs;) {
      if (threads == 1) {
        encode_run(run, *mine.workspace, ids);
        continue;
      }
      const size_t start = mine.ids.size();
      mine.parts.push_back({run, start});
      encode_run(run, *mine.workspace, mine.ids);
      mine.move(places, places.count(run, mine.ids.size() - start), out, likely);
    }
  });
  for (size_t i = 0; i < texts.size(); i++) offsets[i + 1] += offsets[i];
  if (threads > 1) {
    ids.end_at(out + std::min(places.total(), likely));
    out = ids.room(places.total() - ids.size()) - ids.size();
    ids.end_at(out + places.total());
  }
  for (Waiting& mine : waiting) {
    mine.move(places, runs, out, places.total());
    give(std::move(mine.workspace));
  }
}

}  // namespace text
