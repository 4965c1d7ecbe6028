// Every CUDA op's entry points: device pointers, sizes, a stream; each returns cudaError_t as an integer.
#pragma once

#include <cstdint>

struct bf16;

template <class T>
int rmsnorm_forward(const T* x, const T* residual, const T* weight, T* y, T* summed, float* rstd, int64_t rows,
                    int64_t channels, float eps, void* stream);
template <class T>
int rmsnorm_backward(const T* dy, const T* dsummed, const T* x, const T* weight, const float* rstd, T* dx,
                     T* dweight, float* partial, int64_t rows, int64_t channels, void* stream);
