// Decode steps one after the other without Python: what a captured step sampled is written to where it reads
// its inputs, one token further for each request.
//
// A step is one program that all threads run as a team, which shares out each call's loop (or whose loops
// threads claim, where others want the cores too), or several programs that run at once, each on one thread for
// rows of its own: no row depends on another, so that nothing is shared but the weights, and nobody waits
// before the end of the step.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "attention.h"
#include "crowd.h"
#include "parallel.h"
#include "replay.h"

namespace decode {

// Program and Loop are described by kernels/_capture.py, in 64-bit words: an integer or an address each.

// One captured step: rows [first, first + rows) of the batch, and what it gives for each of them.
struct Program {
  const replay::Word* words;
  int64_t count;
  int64_t first, rows;     // dummies behind them are computed and left as they are
  const int64_t* sampled;  // (rows,)
  const float* logprobs;   // (rows,) or null
  int64_t in_team;         // whether each of its calls may be a team's
};
static_assert(sizeof(Program) == 7 * sizeof(replay::Word));

// What steps of the whole batch read and write.
struct Loop {
  int64_t* ids;                          // (rows,) the tokens computed
  int32_t *positions, *slots, *lengths;  // (rows,) of these, and of the requests with them
  int64_t* sample_positions;             // (rows,)
  const int32_t* block_table;            // (rows, width): has the pages of all these steps
  int64_t width;
  const int64_t* stops;  // (stop_count,) ids that end a request
  int64_t stop_count;
  int64_t* sampled;  // (rows, most) what all steps gave
  float* logprobs;   // (rows, most)

  // Row r goes on with what was sampled.
  void advance(int64_t r, int64_t sample) const {
    ids[r] = sample;
    const int64_t at = ++positions[r];
    ++lengths[r], ++sample_positions[r];
    if (at % attention::kPage != 0) {
      ++slots[r];
    } else if (const int64_t page = at / attention::kPage; page < width) {
      slots[r] =
          block_table[r * width + page] * attention::kPage;  // or the caller's to say, before a next step
    }
  }

  // Notes what a program gave in a step and moves its rows on. Whether a row has ended: by an id that ends its
  // request or another's, or by one that is no sample.
  bool follow(const Program& program, int64_t step, int64_t most) const {
    bool ended = false;
    const int64_t* stops_end = stops + stop_count;
    for (int64_t i = 0; i < program.rows; ++i) {
      const int64_t r = program.first + i, sample = program.sampled[i];
      sampled[r * most + step] = sample;
      ended |= sample < 0 || std::find(stops, stops_end, sample) != stops_end;
      if (program.logprobs) {
        const float score = logprobs[r * most + step] = program.logprobs[i];
        ended |= score != score;
      }
      advance(r, sample);
    }
    return ended;
  }
};
static_assert(sizeof(Loop) == 11 * sizeof(replay::Word));

struct Result {
  int64_t done;     // steps
  int64_t program;  // that refused its inputs, or -1
  int64_t refused;  // its call that did
};

inline parallel::Crowd crowd;

// Steps of a program by a team of all threads; whether they are over before `most`. They are left to others,
// and are not over, where members keep losing their cores.
inline bool steps_of_team(const Program& program, int threads, int64_t most, const Loop& loop, Result& result) {
  bool over = false;
  int64_t late = 0;
  parallel::team(threads, [&] {
    for (int64_t step = 0; step < most && !over && late <= parallel::Crowd::kMostLate; ++step) {
      const int64_t refused = replay::run(program.words, program.count);  // the same in all members
      const int64_t seen = parallel::late();
      parallel::parallel_for(1, 1, [&](int64_t) {
        if (refused >= 0) {
          result.program = 0, result.refused = refused, over = true;
        } else {
          over = loop.follow(program, step, most);
          result.done = step + 1, late = seen;
        }
      });
    }
  });
  crowd.note_team(result.done, late);
  return over;
}

// Up to `most` steps of the programs; ends early behind a step in which a row has ended.
inline Result steps(const Program* programs, int64_t count, int threads, int64_t most, const Loop& loop) {
  Result result{0, -1, -1};
  if (count == 1 && programs->in_team && threads > 1 && crowd.team_is_worth_it() &&
      steps_of_team(*programs, threads, most, loop, result))
    return result;
  const int64_t first = result.done;
  parallel::Region region(threads);
  std::vector<int64_t> refused(count, -1);
  for (bool ended = false; result.done < most && !ended;) {
    auto run = [&](int64_t i) { refused[i] = replay::run(programs[i].words, programs[i].count); };
    count == 1 ? run(0) : parallel::parallel_for(count, threads, run);
    const int64_t step = result.done;
    for (int64_t i = 0; i < count; ++i) {
      if (refused[i] >= 0) return {step, i, refused[i]};
      ended |= loop.follow(programs[i], step, most);
    }
    ++result.done;
  }
  crowd.note_claimed(result.done - first);
  return result;
}

}  // namespace decode
