// The linear layer on Hopper (sm_90a) in bf16: y = x W^T (+ bias), dx = dy W, dW = dy^T x; see
// product_hopper.cuh.
#include "ops.h"
#include "product_hopper.cuh"

namespace {

// To a matrix of O, with a bias where there is one.
template <class O>
struct Store {
  TensorMap out;
  const bf16* bias;
  int columns;

#if HAS_HOPPER
  __device__ void operator()(Panels& panels, const Sums& sums, int row, int column) const {
    store_sums<O, false>(panels, &out, sums, row, column, [&](float& upper, float& lower, int c) {
      if (!bias || c >= columns) return;
      const float added = to_float(bias[c]);
      upper += added, lower += added;
    });
  }
#endif
};

// Onto a matrix of float.
struct Add {
  TensorMap out;

#if HAS_HOPPER
  __device__ void operator()(Panels& panels, const Sums& sums, int row, int column) const {
    store_sums<float, true>(panels, &out, sums, row, column, [](float&, float&, int) {});
  }
#endif
};

template <bool LEFT_ACROSS, bool RIGHT_ACROSS, class O>
int stored_product(const bf16* left, const bf16* right, const bf16* bias, O* out, int64_t rows, int64_t columns,
                   int64_t depth, void* stream) {
  Store<O> store{{}, bias, (int)columns};
  if (int error = describe_results(&store.out, out, rows, columns)) return error;
  return product<LEFT_ACROSS, RIGHT_ACROSS>(left, right, store, rows, columns, depth, stream);
}

}  // namespace

template <class O>
int linear_forward_hopper(const bf16* x, const bf16* weight, const bf16* bias, O* y, int64_t m, int64_t n,
                          int64_t k, void* stream) {
  return stored_product<false, false>(x, weight, bias, y, m, n, k, stream);
}
template int linear_forward_hopper(const bf16*, const bf16*, const bf16*, float*, int64_t, int64_t, int64_t,
                                   void*);
template int linear_forward_hopper(const bf16*, const bf16*, const bf16*, bf16*, int64_t, int64_t, int64_t,
                                   void*);

int linear_dx_hopper(const bf16* dy, const bf16* weight, bf16* dx, int64_t m, int64_t n, int64_t k,
                     void* stream) {
  return stored_product<false, true>(dy, weight, nullptr, dx, m, k, n, stream);
}

int linear_dweight_hopper(const bf16* dy, const bf16* x, bf16* dweight, int64_t m, int64_t n, int64_t k,
                          void* stream) {
  return stored_product<true, true>(dy, x, nullptr, dweight, n, k, m, stream);
}

int linear_dweight_added_hopper(const bf16* dy, const bf16* x, float* dweight, int64_t m, int64_t n, int64_t k,
                                void* stream) {
  Add add;
  if (int error = describe_results(&add.out, dweight, n, k)) return error;
  return product<true, true>(dy, x, add, n, k, m, stream);
}
