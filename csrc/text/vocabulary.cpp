// Vocabularies: see vocabulary.h.
#include "vocabulary.h"

#include <algorithm>
#include <stdexcept>
#include <unordered_map>

namespace text {

void Tokens::set(size_t id, std::string_view bytes) {
  if (id >= spans_.size()) spans_.resize(id + 1);
  spans_[id] = {uint32_t(bytes_.size()), uint32_t(bytes.size())};
  bytes_ += bytes;
}

namespace {

struct Base64 {
  uint8_t value[256];
  Base64() {
    std::fill(value, value + 256, 255);
    const char* digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (int i = 0; i < 64; i++) value[uint8_t(digits[i])] = uint8_t(i);
  }
  // Appends the decoded text to out; false if it is no base64.
  bool decode(std::string_view text, std::string& out) const {
    if (text.empty() || text.size() % 4) return false;
    size_t size = text.size();
    while (size > text.size() - 2 && text[size - 1] == '=') size--;
    uint32_t bits = 0;
    int count = 0;
    for (size_t i = 0; i < size; i++) {
      const uint8_t v = value[uint8_t(text[i])];
      if (v == 255) return false;
      bits = bits << 6 | v;
      if ((count += 6) >= 8) out += char(bits >> (count -= 8));
    }
    return (bits & ((1u << count) - 1)) == 0;
  }
};

}  // namespace

Tokens parse_ranks(std::string_view file) {
  static const Base64 base64;
  Tokens tokens;
  std::string token;
  for (size_t start = 0, line = 1; start < file.size(); line++) {
    size_t end = std::min(file.find('\n', start), file.size());
    std::string_view row = file.substr(start, end - start);
    start = end + 1;
    while (!row.empty() && (row.back() == '\r' || row.back() == ' ' || row.back() == '\t'))
      row.remove_suffix(1);
    if (row.empty()) continue;
    const size_t space = row.find(' ');
    bool good = space != row.npos && space + 1 < row.size();
    token.clear();
    good = good && base64.decode(row.substr(0, space), token);
    uint64_t rank = 0;
    for (size_t i = space + 1; good && i < row.size(); i++) {
      good = row[i] >= '0' && row[i] <= '9';
      rank = rank * 10 + uint64_t(row[i] - '0');
      good = good && rank < most_symbols;
    }
    if (!good || (rank < tokens.size() && !tokens[rank].empty())) {
      std::string shown(row.substr(0, 60));
      throw std::invalid_argument(std::to_string(line) +
                                  ": expected a token in base64 and a rank of its own, got '" + shown + "'");
    }
    tokens.set(rank, token);
  }
  return tokens;
}

WholeTable::WholeTable(size_t tokens) {
  int bits = 4;
  while ((size_t(1) << bits) < tokens * 2) bits++;
  shift_ = 64 - bits;
  entries_.resize(size_t(1) << bits);
}

void WholeTable::add(std::string_view bytes, uint32_t id) {
  const uint64_t hash = hash_of(bytes.data(), bytes.size());
  size_t i = hash >> shift_;
  while (entries_[i].id != none) i = (i + 1) & (entries_.size() - 1);
  entries_[i] = {uint32_t(hash), id};
}

Junctions::Junctions(const Tokens& tokens)
    : narrow_(JunctionTable::narrow_bits / 64), broad_(JunctionTable::broad_bits / 64) {
  auto add = [](std::vector<uint64_t>& set, uint32_t place) { set[place >> 6] |= uint64_t(1) << (place & 63); };
  for (size_t id = 0; id < tokens.size(); id++) {
    const auto* token = reinterpret_cast<const uint8_t*>(tokens[id].data());
    const size_t size = tokens[id].size();
    for (size_t k = 1; k < size; k++) {
      if (token[k] < 0xE0 || (token[k - 1] & 0xC0) != 0x80) continue;
      // Whatever stands at the places around k that the token does not reach.
      const size_t before = std::min<size_t>(k, 2), behind = std::min<size_t>(size - k, 3);
      const bool narrow = behind == 1 || (before == 1 && behind == 2);
      uint8_t around[5] = {};
      std::copy_n(token + k - before, before + behind, around + 2 - before);
      auto each = [&](bool any, uint8_t& byte, auto visit) {
        for (int i = 0; i < (any ? 64 : 1); i++) {
          if (any) byte = uint8_t(i);
          visit();
        }
      };
      each(narrow && behind == 1, around[3], [&] {
        if (narrow) return add(narrow_, JunctionTable::narrow_place(JunctionTable::key(around + 2)));
        each(before == 1, around[0], [&] {
          each(behind == 2, around[4],
               [&] { add(broad_, JunctionTable::broad_place(JunctionTable::key(around + 2))); });
        });
      });
    }
  }
}

void Junctions::close() { std::fill(narrow_.begin(), narrow_.end(), ~uint64_t(0)); }

namespace {

constexpr uint32_t ahead = 16;  // tokens, whose places in a table are asked for

// The id of each byte; none where no token is that byte, which may be refused.
std::array<uint32_t, 256> find_bytes(const Tokens& tokens, bool all) {
  std::array<uint32_t, 256> ids;
  ids.fill(none);
  for (uint32_t id = 0; id < tokens.size(); id++) {
    if (tokens[id].size() == 1) ids[uint8_t(tokens[id][0])] = id;
  }
  for (int byte = 0; byte < 256; byte++) {
    if (all && ids[byte] == none) throw std::invalid_argument(" no token for byte " + std::to_string(byte));
  }
  return ids;
}

const uint32_t* identity256() {
  static const auto numbers = [] {
    std::array<uint32_t, 256> all;
    for (int i = 0; i < 256; i++) all[i] = uint32_t(i);
    return all;
  }();
  return numbers.data();
}

}  // namespace

// Symbols here: a byte is its value, merge i is 256 + i.
Vocabulary::Vocabulary(Tokens tokens_, const std::vector<Merge>& given, bool whole_pieces)
    : tokens(std::move(tokens_)),
      byte_ids(find_bytes(tokens, false)),
      junctions(tokens),
      symbols_(tokens.size(), none),
      merger_(identity256(), given.size()),
      whole_(tokens.size()) {
  if (given.size() + 256 >= most_symbols) throw std::invalid_argument("more than two million merges");
  std::vector<Merge> made = given;
  std::stable_sort(made.begin(), made.end(), [](const Merge& a, const Merge& b) { return a.rank < b.rank; });
  ids_.assign(byte_ids.begin(), byte_ids.end());
  for (uint32_t byte = 0; byte < 256; byte++) {
    if (byte_ids[byte] == none)
      lacks_bytes_ = true;
    else
      symbols_[byte_ids[byte]] = byte;
  }
  for (uint32_t i = 0; i < made.size(); i++) {
    Merge& merge = made[i];
    if (std::max({merge.left, merge.right, merge.id}) >= tokens.size())
      throw std::invalid_argument("a merge names an id outside of the vocabulary");
    merge.rank = 256 + i;
    ids_.push_back(merge.id);
  }
  renamed_ = count_renamed();
  if (!settle_in_order(made)) {
    std::unordered_map<uint64_t, Merge> pairs;
    for (const Merge& merge : made) pairs.emplace(uint64_t(merge.left) << 32 | merge.right, merge);
    settle_naively(made, [&](uint32_t left, uint32_t right) {
      auto found = pairs.find(uint64_t(left) << 32 | right);
      return found == pairs.end() ? Merge{left, right, none, none} : found->second;
    });
  }
  for (uint32_t id = 0; id < tokens.size(); id++) {
    if (id + ahead < tokens.size()) whole_.prefetch(tokens[id + ahead]);
    if (tokens[id].empty() || (symbols_[id] == none && !whole_pieces)) continue;
    whole_.add(tokens[id], id);
    all_merge_ = all_merge_ && symbols_[id] != none;
  }
  if (!all_merge_) junctions.close();
}

// Symbols here are ids, which are ranks.
Vocabulary::Vocabulary(Tokens tokens_)
    : tokens(std::move(tokens_)),
      byte_ids(find_bytes(tokens, true)),
      junctions(tokens),
      symbols_(tokens.size(), none),
      merger_(byte_ids.data(), tokens.size()),
      whole_(tokens.size()) {
  std::vector<Merge> made;
  for (uint32_t id = 0; id < tokens.size(); id++) {
    ids_.push_back(id);
    if (id + ahead < tokens.size()) whole_.prefetch(tokens[id + ahead]);
    if (tokens[id].empty()) continue;
    whole_.add(tokens[id], id);
    if (tokens[id].size() == 1)
      symbols_[id] = id;
    else
      made.push_back({none, none, id, id});
  }
  renamed_ = count_renamed();
  if (!settle_in_order(made)) {
    settle_naively(made, [&](uint32_t left, uint32_t right) {
      std::string joined(tokens[left]);
      const uint32_t id = whole(joined += tokens[right]);
      return Merge{left, right, id, id};
    });
  }
  for (uint32_t id = 0; id < tokens.size(); id++)
    all_merge_ = all_merge_ && (tokens[id].empty() || symbols_[id] != none);
  if (!all_merge_) junctions.close();
}

uint32_t Vocabulary::count_renamed() const {
  uint32_t count = uint32_t(ids_.size());
  while (count > 0 && ids_[count - 1] == count - 1) count--;
  return count;
}

void Vocabulary::add(const Merge& merge) {
  symbols_[merge.id] = merge.rank;
  const uint32_t left = symbols_[merge.left], right = symbols_[merge.right];
  merger_.add(left, right, merge.rank);
  merger_.monotone = merger_.monotone && std::max(left, right) < merge.rank;
  merges_.push_back({merge.left, merge.right, uint32_t(merges_.size()), merge.id});
}

// The usual case, fast: merging the bytes of each new token with the earlier merges alone leaves two parts.
// Gives up, having settled nothing, where it does not.
//
// 16 tokens are merged in step, before any of them is made. Where that leaves two parts, the merges of the
// others would have come later and found nothing; else the token is merged again when it is its turn.
bool Vocabulary::settle_in_order(const std::vector<Merge>& made) {
  const Merger fresh = merger_;
  const auto symbols = symbols_;
  MergeScratch scratch;
  Lanes<15> lanes;
  for (size_t first = 0; first < made.size(); first += lanes.most) {
    const size_t last = std::min(first + lanes.most, made.size());
    Parts parts[lanes.most];
    size_t in_lane[lanes.most];
    lanes.clear();
    for (size_t i = first; i < last; i++) {
      const std::string_view bytes = tokens[made[i].id];
      if (bytes.size() < 2 || bytes.size() > lanes.bytes) continue;
      in_lane[lanes.count] = i - first;
      merger_.add(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), lanes);
    }
    if (lanes.count) merger_.merge(lanes);
    for (size_t lane = 0; lane < lanes.count; lane++) {
      const uint64_t starts = lanes.starts(lane);
      if (__builtin_popcountll(starts) != 2) continue;
      const Parts two{lanes.symbols[1][lane], lanes.symbols[wide::highest_bit(starts) + 1][lane]};
      parts[in_lane[lane]] = two;
      merger_.prefetch(two.left, two.right);
    }
    for (size_t i = first; i < last; i++) {
      const Merge& merge = made[i];
      const Parts two = parts[i - first].left == none ? parts_of(tokens[merge.id], scratch) : parts[i - first];
      const Merge found{two.left == none ? none : ids_[two.left], two.right == none ? none : ids_[two.right],
                        merge.rank, merge.id};
      if (two.left == none || merger_.has(two.left, two.right) || symbols_[merge.id] != none ||
          (merge.left != none && merge.left != found.left) ||
          (merge.right != none && merge.right != found.right)) {
        merger_ = fresh;
        symbols_ = symbols;
        merges_.clear();
        return false;
      }
      add(found);
    }
  }
  return true;
}

// The two symbols that merging these bytes leaves, or none where it leaves more or fewer.
Vocabulary::Parts Vocabulary::parts_of(std::string_view bytes, MergeScratch& scratch) const {
  std::vector<uint32_t> symbols(bytes.size());
  const auto* p = reinterpret_cast<const uint8_t*>(bytes.data());
  if (merger_.merge(p, bytes.size(), scratch, symbols.data()) - symbols.data() != 2) return {};
  return {symbols[0], symbols[1]};
}

// Any other vocabulary, by the definition: merge the bytes of each token that some merge makes, one pair at a
// time, and see whether and how they become one.
void Vocabulary::settle_naively(const std::vector<Merge>& made, const Naive& pair) {
  std::vector<Merge> settled;
  std::vector<bool> seen(tokens.size());
  for (const Merge& merge : made) {
    if (seen[merge.id]) continue;
    seen[merge.id] = true;
    std::vector<uint32_t> ids;
    for (char byte : tokens[merge.id]) ids.push_back(byte_ids[uint8_t(byte)]);
    Merge last{none, none, none, none};
    while (ids.size() > 1) {
      Merge best{none, none, none, none};
      size_t place = 0;
      for (size_t i = 0; i + 1 < ids.size(); i++) {
        const Merge here = pair(ids[i], ids[i + 1]);
        if (here.id != none && here.rank < best.rank) best = here, place = i;
      }
      if (best.id == none) break;
      ids[place] = best.id;
      ids.erase(ids.begin() + place + 1);
      last = best;
    }
    if (ids.size() == 1 && last.id == merge.id) settled.push_back(last);
  }
  std::sort(settled.begin(), settled.end(), [](const Merge& a, const Merge& b) { return a.rank < b.rank; });
  for (const Merge& merge : settled) symbols_[merge.id] = merge.rank;
  for (const Merge& merge : settled) add(merge);
}

}  // namespace text
