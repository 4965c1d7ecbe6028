// The only pybind11 file of the CPU modules: one line an op, for every type it exists in. Pointers cross the
// boundary as integers; Python has checked device, dtype, layout and size (kernels/_native.py). The GIL is
// released for the length of a call.
#include <pybind11/stl.h>

#include <cstdint>
#include <cstring>

#include "../bind.h"
#include "decode.h"
#include "ops.h"
#include "parallel.h"
#include "replay.h"

namespace py = pybind11;
using simd::bf16;

namespace {

template <class R, class... A>
void def(py::module_& m, const char* name, R (*function)(A...), bool in_team = false) {
  replay::add(name, function, in_team);
  bind::def(m, name, function);
}

constexpr bool kInTeam = true;  // of what decode steps consist of

// Does this processor, under this operating system, run what the module was compiled for?
bool supported(const char* isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!std::strcmp(isa, "avx512"))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16") &&
           __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("fma");
  if (!std::strcmp(isa, "avx2"))
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
#endif
  return !std::strcmp(isa, "base");
}

}  // namespace

#define BOTH(op, ...)                                        \
  def(m, #op "_f32", &op<float> __VA_OPT__(, ) __VA_ARGS__); \
  def(m, #op "_bf16", &op<bf16> __VA_OPT__(, ) __VA_ARGS__)

// Of the stream's numbers: the type of weights and results, or float32.
#define NORMED(op)                                    \
  def(m, #op "_f32_f32", &op<float, float>, kInTeam); \
  def(m, #op "_bf16_bf16", &op<bf16, bf16>, kInTeam); \
  def(m, #op "_bf16_f32", &op<bf16, float>, kInTeam)

// Of numbers and of what pages hold.
#define PAGED(op)                                      \
  def(m, #op "_f32_f32", &op<float, float>, kInTeam);  \
  def(m, #op "_f32_u8", &op<float, uint8_t>, kInTeam); \
  def(m, #op "_bf16_bf16", &op<bf16, bf16>, kInTeam);  \
  def(m, #op "_bf16_u8", &op<bf16, uint8_t>, kInTeam)

PYBIND11_MODULE(PYENGINE_MODULE, m) {
  m.def("supported", &supported);
  m.def("entry", [](const std::string& name) {
    const auto& [function, in_team] = replay::entries().at(name);
    return std::make_tuple((std::uintptr_t)function.caller, (std::uintptr_t)function.address, function.kinds,
                           in_team);
  });
  m.def("replay", [](std::uintptr_t words, int64_t count, int threads) {
    py::gil_scoped_release release;
    parallel::Region region(threads);
    return replay::run(reinterpret_cast<const replay::Word*>(words), count);
  });
  // programs, loop: decode::Program and decode::Loop, as words. Returns (steps done, program that refused, its
  // call), the latter -1 where none did.
  m.def("decode", [](std::uintptr_t programs, int64_t count, int threads, int64_t most, std::uintptr_t loop) {
    py::gil_scoped_release release;
    const auto result = decode::steps(reinterpret_cast<const decode::Program*>(programs), count, threads, most,
                                      *reinterpret_cast<const decode::Loop*>(loop));
    return std::make_tuple(result.done, result.program, result.refused);
  });
  m.attr("RMSNORM_BLOCK") = kNormBlock;
  NORMED(rmsnorm_forward);
  def(m, "rmsnorm_backward_f32_f32_f32", &rmsnorm_backward<float, float, float>);
  def(m, "rmsnorm_backward_bf16_bf16_bf16", &rmsnorm_backward<bf16, bf16, bf16>);
  def(m, "rmsnorm_backward_bf16_f32_bf16", &rmsnorm_backward<bf16, float, bf16>);
  def(m, "rmsnorm_backward_bf16_f32_f32", &rmsnorm_backward<bf16, float, float>);
  BOTH(embedding_forward, kInTeam);
  BOTH(embedding_backward);
  BOTH(attention_forward);
  BOTH(attention_backward);
  PAGED(attention_paged);
  PAGED(attention_append);
  PAGED(rope_append);
  PAGED(write_pages);
  BOTH(rope_forward, kInTeam);
  BOTH(rope_backward);
  def(m, "sample", &sample, kInTeam);
  def(m, "sampled_logprob", &sampled_logprob);
  def(m, "top_logprobs", &top_logprobs);
  def(m, "adjust_logits", &adjust_logits);
  def(m, "uniform", &uniform, kInTeam);
  def(m, "gather_rows", &gather_rows);
  def(m, "copy_blocks", &copy_blocks);
  BOTH(add);
  BOTH(linear_pack);
  BOTH(linear_forward, kInTeam);
  BOTH(linear_backward);
  BOTH(linear_quantized, kInTeam);
  NORMED(norm_linear);
  NORMED(norm_linear_quantized);
  def(m, "quantized_rows", &quantized_rows, kInTeam);
  BOTH(swiglu_forward, kInTeam);
  BOTH(swiglu_backward);
  BOTH(cross_entropy_forward);
  BOTH(cross_entropy_backward);
  BOTH(adamw_step);
  BOTH(sum_of_squares);
  BOTH(muon_step);
  def(m, "ceiling_fma_f32", &ceiling_fma_f32);
  def(m, "ceiling_dot_bf16", &ceiling_dot_bf16);
  def(m, "ceiling_read", &ceiling_read);
  def(m, "ceiling_copy", &ceiling_copy);
}
