// Decode steps one after the other without Python: what a captured step sampled is written to where it reads
// its inputs, one token further for each request.
#pragma once

#include <algorithm>
#include <cstdint>

#include "attention.h"
#include "replay.h"

namespace decode {

// Where a step of `rows` requests, one token each, reads and writes.
struct Loop {
  int64_t rows;                          // dummies behind them stay as they are
  int64_t* ids;                          // (rows,) the tokens computed
  int32_t *positions, *slots, *lengths;  // (rows,) of these, and of the requests with them
  int64_t* sample_positions;             // (rows,)
  const int32_t* block_table;            // (rows, width): has the pages of all these steps
  int64_t width;
  const int64_t* sampled;            // (rows,) what a step gives
  const float* logprobs;             // (rows,) or null
  const int64_t *stops, *stops_end;  // ids that end a request
  int64_t* all_sampled;              // (rows, most) what all steps gave
  float* all_logprobs;               // (rows, most)

  // Whether row r has ended: by an id that ends its request or another's, or by one that is no sample.
  bool ends(int64_t r) const {
    const bool lost = logprobs && logprobs[r] != logprobs[r];
    return lost || sampled[r] < 0 || std::find(stops, stops_end, sampled[r]) != stops_end;
  }

  void advance(int64_t r) const {
    ids[r] = sampled[r];
    const int64_t at = ++positions[r];
    ++lengths[r], ++sample_positions[r];
    if (at % attention::kPage != 0) {
      ++slots[r];
    } else if (const int64_t page = at / attention::kPage; page < width) {
      slots[r] =
          block_table[r * width + page] * attention::kPage;  // or the caller's to say, before a next step
    }
  }
};

struct Result {
  int64_t done;     // steps
  int64_t refused;  // the call that refused its inputs, or -1
};

// Up to `most` steps of the program in words[0, count); ends early behind a step in which a row has ended.
inline Result steps(const replay::Word* words, int64_t count, int64_t most, const Loop& loop) {
  for (int64_t step = 0; step < most; ++step) {
    if (const int64_t refused = replay::run(words, count); refused >= 0) return {step, refused};
    bool ended = false;
    for (int64_t r = 0; r < loop.rows; ++r) {
      loop.all_sampled[r * most + step] = loop.sampled[r];
      if (loop.logprobs) loop.all_logprobs[r * most + step] = loop.logprobs[r];
      ended |= loop.ends(r);
      loop.advance(r);
    }
    if (ended) return {step + 1, -1};
  }
  return {most, -1};
}

}  // namespace decode
