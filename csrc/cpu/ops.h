// Every CPU op's entry points; each op's file explains how it works.
//
// What holds for all of them:
//
// - T is float or simd::bf16; sums are in float.
// - Tensors are row-major and contiguous where no stride is given, with the shapes in the comments. They need
//   no alignment beyond their type's. Strides and sizes count numbers, not bytes, unless the name says so.
// - The caller owns all memory. Outputs may not overlap inputs where it is not said that they may. Python has
//   checked shapes, types and sizes (kernels/<op>/__init__.py); only what lies in tensors (ids, positions,
//   slots) is checked here, and reported by the value returned.
// - `threads` is how many threads may work, the caller included (parallel.h). Results never depend on it.
//   Several threads may call at once.
#pragma once

#include <cstdint>

#include "simd.h"

// y = (x + residual) * rstd * weight over rows of `channels`; residual and summed may be null together.
template <class T, class X>
void rmsnorm_forward(const X* x, const float* residual, const T* weight, T* y, float* summed, float* rstd,
                     int64_t rows, int64_t channels, float eps, int threads);

// The gradient of s, what was normalised (plus dsummed where given), as dx and, where wanted, as dresidual;
// and dweight. `partial` holds ceil(rows / kNormBlock) * channels floats: the weight's gradient is summed over
// blocks of rows, each alone. Python, which allocates it, reads the number from the module (RMSNORM_BLOCK).
constexpr int64_t kNormBlock = 64;
template <class T, class S, class X>
void rmsnorm_backward(const T* dy, const float* dsummed, const S* s, const T* weight, const float* rstd, X* dx,
                      float* dresidual, T* dweight, float* partial, int64_t rows, int64_t channels,
                      int threads);

// Rows of a table (vocabulary, channels) by ids (tokens), and the gradient of the table (embedding.cpp).
// Forward returns -1, or the index of the first id outside the table.
template <class T>
int64_t embedding_forward(const T* table, const int64_t* ids, float* y, int64_t tokens, int64_t channels,
                          int64_t vocabulary, int threads);
template <class T>
void embedding_backward(const float* dy, const int64_t* ids, T* dtable, int64_t tokens, int64_t channels,
                        int64_t vocabulary, int threads);

// Causal attention of packed documents (attention.cpp). q and out (tokens, heads, dim), k and v (tokens,
// kv_heads, dim); k_pages and v_pages are room for every document's pages, used for those that threads share;
// lse (tokens, heads).
template <class T>
void attention_forward(const T* q, const T* k, const T* v, const int32_t* cu_seqlens, int64_t documents,
                       int64_t heads, int64_t kv_heads, int64_t dim, float scale, T* k_pages, T* v_pages,
                       T* out, float* lse, int threads);

// Its gradients; `pages` is room for every document's pages, three times over, `partial` for dk and dv of every
// query head in float: 2 * heads * pages * 64 rows of dim rounded up to 16.
template <class T>
void attention_backward(const T* dout, const T* q, const T* k, const T* v, const T* out, const float* lse,
                        const int32_t* cu_seqlens, int64_t documents, int64_t heads, int64_t kv_heads,
                        int64_t dim, float scale, T* pages, float* partial, T* dq, T* dk, T* dv, int threads);

// The forward pass over pages already written, of P: T, or uint8_t for codes. Returns -1, or the request whose
// numbers do not fit.
template <class T, class P>
int64_t attention_paged(const T* q, const P* k_pages, const P* v_pages, int64_t page_count,
                        const int32_t* block_table, int64_t table_width, const int32_t* q_start,
                        const int32_t* context_lens, int64_t requests, int64_t tokens, int64_t heads,
                        int64_t kv_heads, int64_t dim, float scale, T* out, int threads);

// Stores token t, rows of k and v `stride` apart, at slots[t] = page * 64 + place. Returns -1, or the token
// whose slot does not exist.
template <class T, class P>
int64_t write_pages(const T* k, int64_t k_stride, const T* v, int64_t v_stride, P* k_pages, P* v_pages,
                    int64_t page_count, const int32_t* slots, int64_t tokens, int64_t kv_heads, int64_t dim,
                    int threads);

// Both. Returns -1, or the request whose numbers do not fit, or `requests` + the token whose slot does not
// exist; then nothing was written.
template <class T, class P>
int64_t attention_append(const T* q, const T* k, int64_t k_stride, const T* v, int64_t v_stride, P* k_pages,
                         P* v_pages, int64_t page_count, const int32_t* slots, const int32_t* block_table,
                         int64_t table_width, const int32_t* q_start, const int32_t* context_lens,
                         int64_t requests, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim,
                         float scale, T* out, int threads);

// rope_forward(), then attention_append(); q and k are room for its queries and keys. Of decoded tokens the
// task that reads a head rotates it. Also returns, past both, the token whose position is outside the table.
template <class T, class P>
int64_t rope_append(const T* qkv, const int32_t* positions, const T* q_weight, const T* k_weight,
                    const float* table, int64_t length, float eps, T* q, T* k, P* k_pages, P* v_pages,
                    int64_t page_count, const int32_t* slots, const int32_t* block_table, int64_t table_width,
                    const int32_t* q_start, const int32_t* context_lens, int64_t requests, int64_t tokens,
                    int64_t heads, int64_t kv_heads, int64_t dim, float scale, T* out, int threads);

// Rotary position embedding after an optional norm of each head (rope.cpp); the weights may be null together.
// qkv is (tokens, heads + 2 kv_heads, dim), `table` (2, length, dim / 2), cosines then sines; v is a copy.
// Returns -1, or the first token whose position is outside the table: its queries and keys are NaN.
template <class T>
int64_t rope_forward(const T* qkv, const int32_t* positions, const T* q_weight, const T* k_weight,
                     const float* table, int64_t length, T* q, T* k, T* v, int64_t tokens, int64_t heads,
                     int64_t kv_heads, int64_t dim, float eps, int threads);

// Its gradients; qkv matters with weights only; `partial` holds ceil(tokens / 16) * 2 * dim floats.
template <class T>
int64_t rope_backward(const T* dq, const T* dk, const T* dv, const int32_t* positions, const T* qkv,
                      const T* q_weight, const T* k_weight, const float* table, int64_t length, T* dqkv,
                      float* partial, T* dq_weight, T* dk_weight, int64_t tokens, int64_t heads,
                      int64_t kv_heads, int64_t dim, float eps, int threads);

// Sampling (sample.cpp): logits (rows, size), one parameter of each kind a row. sample: logprobs may be null.
void sample(const float* logits, const float* u, const float* temperature, const int32_t* top_k,
            const float* top_p, const float* min_p, int64_t* ids, float* logprobs, int64_t rows, int64_t size,
            int threads);
void sampled_logprob(const float* logits, const int64_t* ids, const float* temperature, const int32_t* top_k,
                     const float* top_p, const float* min_p, float* logprobs, int64_t rows, int64_t size,
                     int threads);
// The n largest of each row, and their log-probabilities at temperature 1; ids, logprobs (rows, n).
void top_logprobs(const float* logits, int64_t* ids, float* logprobs, int64_t rows, int64_t size, int64_t n,
                  int threads);
// out = logits with entries [starts[row], starts[row + 1]) of ids changed, and -inf where a bit of `allowed`
// (rows, ceil(size / 32); null: all) is 0.
void adjust_logits(const float* logits, const int32_t* ids, const int32_t* starts, const float* repetition,
                   const float* added, const int32_t* allowed, float* out, int64_t rows, int64_t size,
                   int threads);
void uniform(const int64_t* seeds, const int64_t* positions, float* u, int64_t rows);

// The machine's ceilings (ceiling.cpp): each returns the work done, in flops or bytes.
int64_t ceiling_fma_f32(int64_t rounds, int threads);
int64_t ceiling_dot_bf16(int64_t rounds, int threads);
int64_t ceiling_read(const float* data, int64_t floats, int threads);
int64_t ceiling_copy(const float* from, float* to, int64_t floats, int threads);

// out[r] = source[index[r]], rows of row_bytes.
void gather_rows(const char* source, const int64_t* index, char* out, int64_t rows, int64_t row_bytes);

// out = blocks of block_bytes that lie stride_bytes apart in source.
void copy_blocks(const char* source, char* out, int64_t blocks, int64_t block_bytes, int64_t stride_bytes);

// out = a + b, which out may be, in float32 and rounded once.
template <class T>
void add(const T* a, const T* b, T* out, int64_t count, int threads);

// weight (n, k) into the panels of gemm.h; packed holds gemm::packed_size<T>(n, k) numbers.
template <class T>
void linear_pack(const T* weight, T* packed, int64_t n, int64_t k, int threads);

// y (m, n) = x (m, k) weight (n, k)^T + bias (n), in T or unrounded; the weight may be packed, the bias null.
template <class T>
void linear_forward(const T* x, const T* weight, bool is_packed, const T* bias, void* y, bool y_is_float,
                    int64_t m, int64_t n, int64_t k, int threads);

// y = linear of rmsnorm(x), or of rmsnorm(x + residual), which is written to `summed`; where `gated` swiglu of
// that: y (m, n / 2), n / 2 a multiple of 32. Members of a team normalise all rows each.
template <class T, class X>
void norm_linear(const X* x, const float* residual, const T* norm, float eps, float* summed, const T* packed,
                 const T* bias, T* y, bool gated, int64_t m, int64_t n, int64_t k, int threads);

// The gradients whose pointer is not null: dx (m, k), dweight (n, k), dbias (n) of dy (m, n).
template <class T>
void linear_backward(const T* dy, const T* x, const T* weight, T* dx, T* dweight, T* dbias, int64_t m,
                     int64_t n, int64_t k, int threads);

// y (m, n) = x (m, k) W (n, k)^T + bias (n) with W in a layout of quantized.cpp, named by its bits, scales a
// block, whether these are floats, whether there are minima, and the code of zero; rows of y are `stride`
// apart. Returns -1, or 0 for a layout that is not known.
template <class T>
int64_t linear_quantized(const T* x, const uint8_t* weight, int64_t bits, int64_t groups, bool wide,
                         bool minimum, int64_t zero, const T* bias, void* y, bool y_is_float, int64_t stride,
                         int64_t m, int64_t n, int64_t k, int threads);
// norm_linear() on such a W, with its returns.
template <class T, class X>
int64_t norm_linear_quantized(const X* x, const float* residual, const T* norm, float eps, float* summed,
                              const uint8_t* weight, int64_t bits, int64_t groups, bool wide, bool minimum,
                              int64_t zero, const T* bias, T* y, bool gated, int64_t m, int64_t n, int64_t k,
                              int threads);
// Rows of such a W as floats. Returns -1, or which of the ids is not in [0, n).
int64_t quantized_rows(const uint8_t* weight, int64_t bits, int64_t groups, bool wide, bool minimum,
                       int64_t zero, const int64_t* ids, float* out, int64_t rows, int64_t n, int64_t k,
                       int threads);

// y (rows, features) = silu(gate) * up, with gate_up (rows, 2 features), the gate first; and its gradient.
template <class T>
void swiglu_forward(const T* gate_up, T* y, int64_t rows, int64_t features, int threads);
template <class T>
void swiglu_backward(const T* dy, const T* gate_up, T* dgate_up, int64_t rows, int64_t features, int threads);

// nll and lse (rows) of logits x (rows, channels) weight (vocabulary, channels)^T; nll is 0 at ignore_index.
// `kept`, if not null, is room for all logits, which backward then need not compute again.
// Returns -1, or the index of the first target that is neither ignore_index nor in the vocabulary.
template <class T>
int64_t cross_entropy_forward(const T* x, const T* weight, const int64_t* targets, float* nll, double* lse,
                              float* kept, int64_t rows, int64_t channels, int64_t vocabulary,
                              int64_t ignore_index, int threads);

// dx and dweight, where not null, of dnll (rows); dx_sum holds rows * channels floats where dx is wanted.
template <class T>
void cross_entropy_backward(const float* dnll, const T* x, const T* weight, const int64_t* targets,
                            const double* lse, const float* kept, T* dx, T* dweight, float* dx_sum,
                            int64_t rows, int64_t channels, int64_t vocabulary, int64_t ignore_index,
                            int threads);

// One AdamW step over `tensors` tensors, given by lists of addresses and their sizes: float but for gradients
// and `copies` (null, or addresses that get the new parameters), which are of T.
template <class T>
void adamw_step(const int64_t* params, const int64_t* grads, const int64_t* exp_avgs,
                const int64_t* exp_avg_sqs, const int64_t* copies, const int64_t* sizes, int64_t tensors,
                double lr, double beta1, double beta2, double eps, double weight_decay, int64_t step,
                double grad_scale, int threads);

// The sum of squares of `count` tensors, given by addresses and sizes, into out[0].
template <class T>
void sum_of_squares(const int64_t* tensors, const int64_t* sizes, int64_t count, double* out, int threads);

// One Muon step over `tensors` matrices, given by lists of addresses, their rows and their columns; types and
// copies as in adamw_step.
template <class T>
void muon_step(const int64_t* params, const int64_t* grads, const int64_t* momenta, const int64_t* copies,
               const int64_t* rows, const int64_t* columns, int64_t tensors, double lr, double momentum,
               double weight_decay, double grad_scale, int threads);
