// Every CUDA op's entry points.
//
// What holds for all of them: pointers are of the device, unless it says otherwise; tensors are row-major and
// contiguous where no stride is given; the caller owns all memory, workspaces included, and has checked shapes
// (kernels/<op>/__init__.py). A call queues its kernels on `stream` and returns without waiting. What it
// returns is a cudaError_t as an integer, 0 where all was queued; functions without a stream compute sizes on
// the host.
#pragma once

#include <cstdint>

struct bf16;

template <class T, class X>
int rmsnorm_forward(const X* x, const float* residual, const T* weight, T* y, float* summed, float* rstd,
                    int64_t rows, int64_t channels, float eps, void* stream);
// `partial` holds ceil(rows / kNormBlock) * channels floats; Python, which allocates it, reads the number from
// the module (RMSNORM_BLOCK).
constexpr int64_t kNormBlock = 64;
template <class T, class S, class X>
int rmsnorm_backward(const T* dy, const float* dsummed, const S* s, const T* weight, const float* rstd, X* dx,
                     float* dresidual, T* dweight, float* partial, int64_t rows, int64_t channels,
                     void* stream);

// kernels/attention: packed documents. q, out (T, H, D), k, v (T, K, D), lse (T, H); every row of D numbers
// starts at a multiple of 16 bytes. tiles (tile_count, 3): the first row of a tile, its document's first row
// and end; a tile has attention_rows(dim, backward) rows. delta (T, H) is a workspace.
template <class T>
int64_t attention_rows(int64_t dim, bool backward);
template <class T>
int attention_forward(const T* q, const T* k, const T* v, T* out, float* lse, const int32_t* tiles,
                      int64_t tile_count, int64_t heads, int64_t kv_heads, int64_t dim, float scale,
                      void* stream);
template <class T>
int attention_backward(const T* dout, const T* q, const T* k, const T* v, const T* out, const float* lse,
                       float* delta, T* dq, T* dk, T* dv, const int32_t* by_query, const int32_t* by_key,
                       int64_t tile_count, int64_t heads, int64_t kv_heads, int64_t dim, float scale,
                       void* stream);
// The same on Hopper alone (attention_hopper.cu, attention_backward_hopper.cu): D is 64 or 128, tiles have
// attention_hopper_rows() rows, the forward's scale is above 0. tokens: T.
int64_t attention_hopper_rows();
int attention_forward_hopper(const bf16* q, const bf16* k, const bf16* v, bf16* out, float* lse,
                             const int32_t* tiles, int64_t tokens, int64_t tile_count, int64_t heads,
                             int64_t kv_heads, int64_t dim, float scale, void* stream);
int attention_backward_hopper(const bf16* dout, const bf16* q, const bf16* k, const bf16* v, const bf16* out,
                              const float* lse, float* delta, bf16* dq, bf16* dk, bf16* dv,
                              const int32_t* by_query, const int32_t* by_key, int64_t tokens,
                              int64_t tile_count, int64_t heads, int64_t kv_heads, int64_t dim, float scale,
                              void* stream);
// kernels/attention: pages of P, which is T, or uint8_t for codes. q and out have rows of dim numbers, those
// from page_dim on zeros; pages have heads of page_dim.
template <class T, class P>
int attention_paged(const T* q, const P* k_pages, const P* v_pages, T* out, const int32_t* table,
                    const int32_t* q_start, const int32_t* contexts, int64_t tokens, int64_t requests,
                    int64_t table_width, int64_t heads, int64_t kv_heads, int64_t dim, int64_t page_dim,
                    float scale, void* stream);
template <class T, class P>
int write_pages(const T* k, const T* v, P* k_pages, P* v_pages, const int32_t* slots, int64_t k_row,
                int64_t v_row, int64_t tokens, int64_t kv_heads, int64_t dim, void* stream);

// kernels/linear on Hopper alone (linear_hopper.cu): x (m, k), weight (n, k), y and dy (m, n), bias (n) or
// null. Rows start at multiples of 16 bytes, so they are k (or n) rounded up to a multiple of 8 numbers long.
// What lies behind their k or n numbers must be zeros, in y it may be anything.
template <class O>
int linear_forward_hopper(const bf16* x, const bf16* weight, const bf16* bias, O* y, int64_t m, int64_t n,
                          int64_t k, void* stream);
int linear_dx_hopper(const bf16* dy, const bf16* weight, bf16* dx, int64_t m, int64_t n, int64_t k,
                     void* stream);
int linear_dweight_hopper(const bf16* dy, const bf16* x, bf16* dweight, int64_t m, int64_t n, int64_t k,
                          void* stream);
// The same, added to what dweight holds.
int linear_dweight_added_hopper(const bf16* dy, const bf16* x, float* dweight, int64_t m, int64_t n, int64_t k,
                                void* stream);

// kernels/cross_entropy on Hopper alone (cross_entropy_hopper.cu): x (tokens, channels), weight (vocabulary,
// channels), dlogits (tokens, vocabulary), with rows as for linear. Workspaces: peaks and sums (tokens,
// cross_entropy_hopper_tiles(vocabulary)), chosen (tokens).
int64_t cross_entropy_hopper_tiles(int64_t vocabulary);
int cross_entropy_forward_hopper(const bf16* x, const bf16* weight, const int64_t* targets, float* peaks,
                                 float* sums, float* chosen, float* nll, double* lse, int64_t tokens,
                                 int64_t vocabulary, int64_t channels, int64_t ignored, void* stream);
int cross_entropy_dlogits_hopper(const bf16* x, const bf16* weight, const int64_t* targets, const double* lse,
                                 const float* dnll, bf16* dlogits, int64_t tokens, int64_t vocabulary,
                                 int64_t channels, int64_t ignored, void* stream);

// kernels/decoder: a whole decode step of at most 8 rows. layers lies on the host: 11 addresses for each layer,
// in the order of `Layer` in decoder.cu. angles (2, angle_positions, dim / 2): cosines, then sines. Workspaces:
// work, rows * (channels + heads * spans * (dim + 2)) floats; narrow, rows * ((heads + 2 kv_heads) * dim +
// width) numbers; barrier, two zeros before the first step, afterwards as the step before left them. channels,
// heads * dim and width are multiples of 8, dim of 2, and matrices start at multiples of 16 bytes.
constexpr int64_t kDecoderLayers = 40;  // they travel in the kernel's arguments
constexpr int64_t kDecoderDim = 128;    // the largest head
int64_t decoder_shared_bytes(int64_t rows, int64_t longest, int64_t dim, int64_t threads, int64_t bytes);
template <class T>
int decoder_step(const int64_t* layers, const T* embedding, const T* norm, const T* head, const int64_t* ids,
                 const int32_t* positions, const int32_t* slots, const int32_t* table, const float* angles,
                 float* work, T* narrow, float* logits, uint32_t* barrier, int64_t layer_count, int64_t rows,
                 int64_t channels, int64_t heads, int64_t kv_heads, int64_t dim, int64_t width,
                 int64_t vocabulary, int64_t table_width, int64_t spans, int64_t angle_positions, float eps,
                 float scale, int64_t blocks, int64_t threads, void* stream);

// kernels/sample. Where ids_given is null, ids are drawn with u; otherwise those are scored. logprobs and
// scratch may be null where only ids are wanted. scratch: 32 floats for each row and tile of 1,024 logits.
int sample(const float* logits, const float* u, const float* temperature, const int32_t* top_k,
           const float* top_p, const float* min_p, const int64_t* ids_given, int64_t* ids, float* logprobs,
           float* scratch, int64_t rows, int64_t vocabulary, void* stream);
int top_logprobs(const float* logits, int64_t* ids, float* logprobs, float* scratch, int64_t rows,
                 int64_t vocabulary, int64_t n, void* stream);
// allowed may be null: all.
int adjust_logits(const float* logits, const int32_t* ids, const int32_t* starts, const float* repetition,
                  const float* added, const int32_t* allowed, float* out, int64_t rows, int64_t vocabulary,
                  void* stream);
int uniform(const int64_t* seeds, const int64_t* positions, float* u, int64_t rows, void* stream);

// kernels/bpe, in three calls: bpe_count, bpe_hand_over if anything has to be encoded on the host, bpe_gather.
//
// - image: the vocabulary (csrc/text/image.h); its ids are below 2^30.
// - text: the documents, one after the other; offsets (documents + 1) says where each begins.
// - workspace: bpe_work(bytes) bytes for a text of `bytes`, of which the first bpe_zeros(bytes) are zeros.
// - memory: remembered pieces, `slots` (a power of 2) of kBpeSlot bytes, zeros at first, kept between calls.
// - call: which encoding this is, counted from 1 to 2^30 - 1.
constexpr int64_t kBpeLongest = 256;  // bytes of a piece that are merged here; longer ones are handed over
constexpr int64_t kBpeWalk = 4096;    // bytes that are cut by one thread; a longer stretch is handed over whole
constexpr int64_t kBpeContext = 8;  // bytes behind what is handed over: the patterns look two characters ahead
constexpr int64_t kBpeHanded = 12;
constexpr int64_t kBpeSlot = 80;
constexpr int64_t kBpeStatus = 64;
int64_t bpe_work(int64_t bytes);
int64_t bpe_zeros(int64_t bytes);
// Finds everything but the ids themselves. Afterwards the first kBpeStatus bytes of the workspace hold these
// 32-bit numbers: how many ids there are, without those of pieces that are handed over to the host; whether the
// offsets are bad (then nothing was done); how many bytes the pieces to be handed over take when packed, and
// their number.
int bpe_count(const uint8_t* image, const uint8_t* text, const int64_t* offsets, uint8_t* memory,
              uint8_t* workspace, int64_t slots, int64_t call, int64_t bytes, int64_t documents,
              int64_t multiprocessors, void* stream);
// Packs the pieces that the host has to encode. packed: three 32-bit numbers for each (where it begins in the
// text; where its bytes begin behind these numbers; how many of the kBpeContext bytes after it belong to its
// document), then the bytes of each piece with its context.
int bpe_hand_over(const uint8_t* text, const int64_t* offsets, uint8_t* workspace, uint8_t* packed,
                  int64_t bytes, int64_t documents, int64_t pieces, int64_t packed_bytes, void* stream);
// given: of the pieces handed over, in the text's order, where they begin, where the ids of each begin (one
// more than pieces), all ids; places: room for as many numbers as pieces. ends: `documents` + 1.
int bpe_gather(const int64_t* offsets, uint8_t* memory, uint8_t* workspace, const int32_t* given,
               int32_t* places, int32_t* ids, int64_t* ends, int64_t bytes, int64_t documents, int64_t pieces,
               int64_t piece_ids, void* stream);
