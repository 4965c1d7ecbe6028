// Every CPU op's entry points. T is float or simd::bf16; sums are in float. Each op's file explains itself.
#pragma once

#include <cstdint>

#include "simd.h"

// y = (x + residual) * rstd * weight over rows of `channels`; residual and summed may be null together.
template <class T>
void rmsnorm_forward(const T* x, const T* residual, const T* weight, T* y, T* summed, float* rstd, int64_t rows,
                     int64_t channels, float eps, int threads);

// dx for the summed input (plus dsummed where given) and dweight; `partial` holds ceil(rows / 64) * channels
// floats.
template <class T>
void rmsnorm_backward(const T* dy, const T* dsummed, const T* x, const T* weight, const float* rstd, T* dx,
                      T* dweight, float* partial, int64_t rows, int64_t channels, int threads);

// The machine's ceilings (ceiling.cpp): each returns the work done, in flops or bytes.
int64_t ceiling_fma_f32(int64_t rounds, int threads);
int64_t ceiling_dot_bf16(int64_t rounds, int threads);
int64_t ceiling_read(const float* data, int64_t floats, int threads);
int64_t ceiling_copy(const float* from, float* to, int64_t floats, int threads);

// out[r] = source[index[r]], rows of row_bytes.
void gather_rows(const char* source, const int64_t* index, char* out, int64_t rows, int64_t row_bytes);

// out = blocks of block_bytes that lie stride_bytes apart in source.
void copy_blocks(const char* source, char* out, int64_t blocks, int64_t block_bytes, int64_t stride_bytes);
