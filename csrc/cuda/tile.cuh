// Products of tiles by one warp: what kernels with matrix products are written on.
//
// Layout. A warp multiplies 16 rows at a time, and its results lie as the accumulators of mma.sync do: a thread
// holds, of rows lane / 4 and lane / 4 + 8, columns 2 (lane % 4) and the next one in every 8 columns.
//
// Order. Steps of K are 16 wide and are added in order, whatever else the tile holds. So a row's bits do not
// depend on the rows beside it.
//
// Types. bf16 runs on the tensor cores and sums in float32. float32 stays float32: the same accumulators take
// plain fused multiply-adds, whose factors come from shared memory or from the three neighbouring threads that
// hold the rest of the row. (Three tf32 products would be faster, and would miss our bound on errors.) Each
// step is summed by itself and then added. One chain would miss the bound too, since a key's gradient sums over
// every query of every head of its group.
//
// Memory. Tiles lie in shared memory and are moved 16 bytes at a time. Their places are swizzled: eight rows
// read at one column touch each of the 32 banks once. Copies from global memory bypass the registers
// (cp.async).
#pragma once

#include "common.cuh"

constexpr int kWarps = 4, kThreads = kWarps * kWarp;  // of a block
constexpr int kStep = 16;                             // of K in one product, and rows of a warp's smallest tile

constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// ---- instructions; the host shim runs each as it is documented

// Starts a copy of BYTES (4 or 16) bytes to shared memory; zeros are written where not `inside`.
template <int BYTES>
__device__ inline void copy_async(void* shared, const void* global, bool inside) {
#ifdef PYENGINE_HOST_SHIM
  shim::copy_async(shared, global, BYTES, inside);
#else
  unsigned to = (unsigned)__cvta_generic_to_shared(shared);
  int from_global = inside ? BYTES : 0;
  if constexpr (BYTES == 16)  // past L1, too
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(from_global)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(BYTES),
                 "r"(from_global)
                 : "memory");
#endif
}

// Waits for all copies that this thread started. The block sees them after its next barrier.
__device__ inline void wait_for_copies() {
#ifdef PYENGINE_HOST_SHIM
  shim::wait_for_copies();
#else
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Loads four 8 x 8 matrices. Lane l gives the address of row l % 8 of matrix l / 8, and gets, of each matrix
// (or of its transpose), columns 2 (l % 4) and the next one of row l / 4.
template <bool TRANSPOSED>
__device__ inline void load_matrices(uint32_t (&out)[4], const bf16* row) {
#ifdef PYENGINE_HOST_SHIM
  shim::load_matrices(out, row, TRANSPOSED);
#else
  unsigned from = (unsigned)__cvta_generic_to_shared(row);
  if constexpr (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(from)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(from)
                 : "memory");
#endif
}

// d (16, 8) += a (16, 16) b (16, 8).
__device__ inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef PYENGINE_HOST_SHIM
  shim::multiply_add(d, a, b0, b1);
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// 2^x by the special function unit: about 2 units in the last place off, 0 where the result is below 2^-126.
__device__ inline float exp2_fast(float x) {
#ifdef PYENGINE_HOST_SHIM
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// Two numbers rounded to bf16, the first in the lower half.
__device__ inline uint32_t pack_bf16(float low, float high) {
#ifdef PYENGINE_HOST_SHIM
  return from_float<bf16>(low).bits | (uint32_t)from_float<bf16>(high).bits << 16;
#else
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
#endif
}

__device__ inline int lane() { return threadIdx.x % kWarp; }

// The sum (maximum) over the four threads that hold a row, in each of them.
__device__ inline float row_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
__device__ inline float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// ---- tiles in shared memory

template <class T, int WIDTH>
struct Tile {
  static constexpr int kNumbers = 16 / sizeof(T);   // in a chunk of 16 bytes
  static constexpr int kChunks = WIDTH / kNumbers;  // in a row
  static_assert(kChunks >= 4 && (kChunks & (kChunks - 1)) == 0, "rows of 64 bytes or more, by powers of two");
  T* data;

  // Where chunk c of a row lies.
  __device__ T* chunk(int row, int c) const {
    int place = kChunks >= 8 ? c ^ (row & 7) : c ^ (row / 2 & 3);
    return data + row * WIDTH + place * kNumbers;
  }
  __device__ T* at(int row, int column) const { return chunk(row, column / kNumbers) + column % kNumbers; }
};

// Starts to copy ROWS rows into a tile; all threads of the block take part. from(row) is a row's address. Rows
// from `rows` on, and columns from `columns` on (a multiple of a chunk), become zeros.
template <int ROWS, class T, int WIDTH, class From>
__device__ inline void load_tile(Tile<T, WIDTH> tile, int rows, int columns, From from) {
  constexpr int kNumbers = tile.kNumbers, kChunks = tile.kChunks;
  const int c = threadIdx.x % kChunks;
  constexpr int kAtOnce = sizeof(T) == 2 ? 4 : 1;  // more spills where factors of float32 fill the registers
#pragma unroll(kAtOnce)
  for (int row = threadIdx.x / kChunks; row < ROWS; row += kThreads / kChunks) {
    bool inside = row < rows && c * kNumbers < columns;
    copy_async<16>(tile.chunk(row, c), inside ? from(row) + c * kNumbers : from(0), inside);
  }
}

// ---- left factors: 16 rows, one step of K

template <class T>
struct Left;
template <>
struct Left<bf16> {
  uint32_t word[4];
};
// All of a step of rows lane / 4 and lane / 4 + 8; the four threads of a row hold the same.
template <>
struct Left<float> {
  float value[2][kStep];
};

// From rows `row` to row + 15 of a tile (row, K).
template <int WIDTH>
__device__ inline void load_left(Left<bf16>& left, Tile<bf16, WIDTH> tile, int row, int step) {
  load_matrices<false>(left.word, tile.chunk(row + lane() % 16, step * 2 + lane() / 16));
}
template <int WIDTH>
__device__ inline void load_left(Left<float>& left, Tile<float, WIDTH> tile, int row, int step) {
  for (int half = 0; half < 2; ++half)
    for (int c = 0; c < kStep / 4; ++c) {
      auto four = load_pack<float, 4>(tile.chunk(row + lane() / 4 + 8 * half, step * 4 + c));
      for (int i = 0; i < 4; ++i) left.value[half][4 * c + i] = four.value[i];
    }
}

// The results of a product, 16 rows by 8 N columns, kept in registers to become the left factor of the next
// product; in bf16 that takes half the registers.
template <class T, int N>
struct Kept;
template <int N>
struct Kept<bf16, N> {
  Left<bf16> steps[N / 2];
  __device__ void keep(const float (&sums)[N][4]) {
#pragma unroll
    for (int step = 0; step < N / 2; ++step)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float (&from)[4] = sums[2 * step + i / 2];
        steps[step].word[i] = pack_bf16(from[i % 2 * 2], from[i % 2 * 2 + 1]);
      }
  }
};
template <int N>
struct Kept<float, N> {
  float sums[N][4];
  __device__ void keep(const float (&results)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] = results[n][i];
  }
};
template <int N>
__device__ inline void load_left(Left<bf16>& left, const Kept<bf16, N>& kept, int step) {
  left = kept.steps[step];
}
template <int N>
__device__ inline void load_left(Left<float>& left, const Kept<float, N>& kept, int step) {
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int k = 0; k < kStep; ++k)
      left.value[half][k] =
          __shfl_sync(0xffffffffu, kept.sums[2 * step + k / 8][2 * half + k % 2], lane() / 4 * 4 + k % 8 / 2);
}

// ---- right factors in shared memory

// As rows (N, K): the product with the transpose of a tile.
template <class T, int WIDTH>
struct ByColumn {
  Tile<T, WIDTH> tile;
};
// As rows (K, N): the product with the tile itself.
template <class T, int WIDTH>
struct ByRow {
  Tile<T, WIDTH> tile;
};
// As pages of a KV cache hold bf16: rows (K / 2, N, 2), the two numbers that a product pairs side by side. Rows
// are 8 words longer than N, so that the 4 x 8 words which a warp reads at once lie in different banks.
template <int N>
struct Paired {
  static constexpr int kStride = N + 8, kChunks = N / 4;
  uint32_t* words;
};
// As pages of a KV cache hold codes, bytes of a number plus 128: rows (K / 4, N, 4). A code is a whole number
// that both types hold exactly, so a factor is made of bytes on its way to the registers.
template <int N>
struct Coded {
  static constexpr int kStride = N + 8, kChunks = N / 4;
  uint32_t* words;
};
// Starts copies of ROWS rows of words that lie `stride` of them apart, as load_tile does.
template <int ROWS, class Words>
__device__ inline void load_words(Words to, int rows, int columns, const void* from, int stride) {
  constexpr int kChunks = to.kChunks;
  const int c = threadIdx.x % kChunks;
#pragma unroll 4
  for (int row = threadIdx.x / kChunks; row < ROWS; row += kThreads / kChunks) {
    bool inside = row < rows && c * 4 < columns;
    copy_async<16>(to.words + row * to.kStride + 4 * c,
                   static_cast<const uint32_t*>(from) + (inside ? row * stride + 4 * c : 0), inside);
  }
}
// Sets the second number of each pair in a row to zero. Each thread does so in what it copied itself, so this
// belongs after wait_for_copies() and before the barrier.
template <int N>
__device__ inline void drop_second(Paired<N> in, int row) {
  constexpr int kChunks = in.kChunks;
  if (row % (kThreads / kChunks) != threadIdx.x / kChunks) return;
  for (int word = 0; word < 4; ++word) in.words[row * in.kStride + threadIdx.x % kChunks * 4 + word] &= 0xffff;
}

// The number that byte `i` of a word stands for, byte - 128. As the low bits of 2^23 the byte is a float
// without a conversion.
__device__ inline float coded(uint32_t word, int i) {
  union {
    uint32_t bits;
    float value;
  } u{0x4b000000u | (word >> 8 * i & 0xff)};
  return u.value - 8388736.0f;
}

// The 16 x 16 numbers at step `step` of K and columns 16 n to 16 n + 15, as two right factors of multiply_add.
template <int WIDTH>
__device__ inline void load_right(uint32_t (&out)[4], ByColumn<bf16, WIDTH> from, int step, int n) {
  load_matrices<false>(out, from.tile.chunk(16 * n + lane() % 8 + lane() / 16 * 8, 2 * step + lane() / 8 % 2));
}
template <int WIDTH>
__device__ inline void load_right(uint32_t (&out)[4], ByRow<bf16, WIDTH> from, int step, int n) {
  load_matrices<true>(out, from.tile.chunk(16 * step + lane() % 16, 2 * n + lane() / 16));
}
template <int N>
__device__ inline void load_right(uint32_t (&out)[4], Paired<N> from, int step, int n) {
  const uint32_t* corner = from.words + (8 * step + lane() % 4) * from.kStride + 16 * n + lane() / 4;
  for (int i = 0; i < 4; ++i) out[i] = corner[i % 2 * 4 * from.kStride + i / 2 * 8];
}
template <int N>
__device__ inline void load_right(uint32_t (&out)[4], Coded<N> from, int step, int n) {
  const uint32_t* corner = from.words + (4 * step + lane() % 4 / 2) * from.kStride + 16 * n + lane() / 4;
  int half = lane() % 2 * 16;  // of a word: a pair
  for (int i = 0; i < 4; ++i) {
    uint32_t pair = corner[i % 2 * 2 * from.kStride + i / 2 * 8] >> half;
    out[i] = pack_bf16(coded(pair, 0), coded(pair, 1));
  }
}

// sums[r] (16, 8 N) += left[r] right, of step `step` of K: a right factor is read once for R left ones.
template <int R, int N, class Right>
__device__ inline void multiply(float (&sums)[R][N][4], const Left<bf16> (&left)[R], Right right, int step) {
#pragma unroll
  for (int n = 0; n < N / 2; ++n) {
    uint32_t two[4];
    load_right(two, right, step, n);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      multiply_add(sums[r][2 * n], left[r].word, two[0], two[1]);
      multiply_add(sums[r][2 * n + 1], left[r].word, two[2], two[3]);
    }
  }
}
template <int R, int N, int WIDTH>
__device__ inline void multiply(float (&sums)[R][N][4], const Left<float> (&left)[R],
                                ByColumn<float, WIDTH> right, int step) {
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float part[R][2] = {};
#pragma unroll
      for (int c = 0; c < kStep / 4; ++c) {
        auto four = load_pack<float, 4>(right.tile.chunk(8 * n + lane() % 4 * 2 + i, step * 4 + c));
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
          for (int r = 0; r < R; ++r)
#pragma unroll
            for (int half = 0; half < 2; ++half)
              part[r][half] = fmaf(left[r].value[half][4 * c + k], four.value[k], part[r][half]);
      }
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half) sums[r][n][2 * half + i] += part[r][half];
    }
}
template <int R, int N, int WIDTH>
__device__ inline void multiply(float (&sums)[R][N][4], const Left<float> (&left)[R], ByRow<float, WIDTH> right,
                                int step) {
  // The places of at(row, 8 n + 2 (lane % 4)), written so that all but one bit of the swizzle is known to the
  // compiler: it would keep a pointer for each row and n otherwise.
  int chunk = lane() % 4 / 2, within = lane() % 2 * 2;
  const float* corner = right.tile.data + step * kStep * WIDTH + within;
  const float* even = corner + chunk * 4;
  const float* odd = corner + (chunk ^ 1) * 4;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    float part[R][4] = {};
#pragma unroll
    for (int k = 0; k < kStep; ++k) {
      auto two = load_pack<float, 2>((k % 2 ? odd : even) + k * WIDTH + ((2 * n) ^ (k & 6)) * 4);
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int i = 0; i < 4; ++i) part[r][i] = fmaf(left[r].value[i / 2][k], two.value[i % 2], part[r][i]);
    }
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[r][n][i] += part[r][i];
  }
}

template <int R, int N, int WIDTH>
__device__ inline void multiply(float (&sums)[R][N][4], const Left<float> (&left)[R], Coded<WIDTH> right,
                                int step) {
  const uint32_t* corner = right.words + 4 * step * right.kStride + lane() % 4 * 2;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    float part[R][4] = {};
#pragma unroll
    for (int row = 0; row < kStep / 4; ++row) {
      auto two = load_pack<uint32_t, 2>(corner + row * right.kStride + 8 * n);
#pragma unroll
      for (int k = 0; k < 4; ++k)
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            part[r][i] = fmaf(left[r].value[i / 2][4 * row + k], coded(two.value[i % 2], k), part[r][i]);
    }
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[r][n][i] += part[r][i];
  }
}

// ---- what a warp made, to memory

// Puts 16 rows of results into rows `row` to row + 15 of a tile, the first 8 times scale[0] and the others
// times scale[1] (of each thread's rows). No other warp may use these rows.
template <int N, int WIDTH>
__device__ inline void put(Tile<bf16, WIDTH> tile, int row, const float (&sums)[N][4],
                           const float (&scale)[2]) {
  for (int n = 0; n < N; ++n)
    for (int half = 0; half < 2; ++half)
      *reinterpret_cast<uint32_t*>(tile.at(row + lane() / 4 + 8 * half, 8 * n + lane() % 4 * 2)) =
          pack_bf16(sums[n][2 * half] * scale[half], sums[n][2 * half + 1] * scale[half]);
}
template <int N, int WIDTH>
__device__ inline void put(Tile<float, WIDTH> tile, int row, const float (&sums)[N][4],
                           const float (&scale)[2]) {
  for (int n = 0; n < N; ++n)
    for (int half = 0; half < 2; ++half)
      store_pack<float, 2>(tile.at(row + lane() / 4 + 8 * half, 8 * n + lane() % 4 * 2),
                           {sums[n][2 * half] * scale[half], sums[n][2 * half + 1] * scale[half]});
}
// Writes 16 rows of a warp's own tile to memory, `to(row)` their addresses, 16 bytes a thread; rows from `rows`
// on do not exist.
template <class T, int DIM, class To>
__device__ inline void write_rows(Tile<T, DIM> tile, int first, int rows, int dim, To to) {
  constexpr int kNumbers = tile.kNumbers, kChunks = tile.kChunks;
  __syncwarp();
  for (int i = lane(); i < 16 * kChunks; i += kWarp) {
    int row = first + i / kChunks, c = i % kChunks;
    if (row < rows && c * kNumbers < dim)
      store_pack<T, kNumbers>(to(row) + c * kNumbers, load_pack<T, kNumbers>(tile.chunk(row, c)));
  }
}

// Products of rows with rows, 16 R of them from `top` on, by a warp: sums[row], of whose numbers lane after
// lane takes 16 bytes, chunk c at first(row, c) and second(row, c).
template <int R, class T, int DIM, class First, class Second>
__device__ inline void row_products(int top, int rows, int dim, float* sums, First first, Second second) {
  constexpr int kNumbers = Tile<T, DIM>::kNumbers, kChunks = Tile<T, DIM>::kChunks;
  for (int at = 0; at < 16 * R; at += kWarp / kChunks) {
    int row = top + at + lane() / kChunks, c = lane() % kChunks;
    float sum = 0.0f;
    if (row < rows && c * kNumbers < dim) {
      auto a = load_pack<T, kNumbers>(first(row, c));
      auto b = load_pack<T, kNumbers>(second(row, c));
      for (int i = 0; i < kNumbers; ++i) sum += to_float(a.value[i]) * to_float(b.value[i]);
    }
    for (int offset = kChunks / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (c == 0) sums[row] = sum;
  }
  __syncwarp();
}
