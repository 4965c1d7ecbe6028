// The pybind11 file of the CUDA module, as csrc/cpu/bindings.cpp is of the CPU modules. Built with nvcc's
// objects into pyengine.kernels._cuda, and by the tests, with the host shim in CUDA's place, into a module that
// runs here.
#include "../bind.h"
#include "ops.h"

struct bf16 {
  uint16_t bits;
};

PYBIND11_MODULE(PYENGINE_MODULE, m) {
  m.attr("RMSNORM_BLOCK") = kNormBlock;
  bind::def(m, "rmsnorm_forward_f32_f32", &rmsnorm_forward<float, float>);
  bind::def(m, "rmsnorm_forward_bf16_bf16", &rmsnorm_forward<bf16, bf16>);
  bind::def(m, "rmsnorm_forward_bf16_f32", &rmsnorm_forward<bf16, float>);
  bind::def(m, "rmsnorm_backward_f32_f32_f32", &rmsnorm_backward<float, float, float>);
  bind::def(m, "rmsnorm_backward_bf16_bf16_bf16", &rmsnorm_backward<bf16, bf16, bf16>);
  bind::def(m, "rmsnorm_backward_bf16_f32_bf16", &rmsnorm_backward<bf16, float, bf16>);
  bind::def(m, "rmsnorm_backward_bf16_f32_f32", &rmsnorm_backward<bf16, float, float>);
  bind::def(m, "attention_rows_f32", &attention_rows<float>);
  bind::def(m, "attention_rows_bf16", &attention_rows<bf16>);
  bind::def(m, "attention_forward_f32", &attention_forward<float>);
  bind::def(m, "attention_forward_bf16", &attention_forward<bf16>);
  bind::def(m, "attention_backward_f32", &attention_backward<float>);
  bind::def(m, "attention_backward_bf16", &attention_backward<bf16>);
  bind::def(m, "attention_hopper_rows", &attention_hopper_rows);
  bind::def(m, "attention_forward_hopper", &attention_forward_hopper);
  bind::def(m, "attention_backward_hopper", &attention_backward_hopper);
  bind::def(m, "attention_paged_f32_f32", &attention_paged<float, float>);
  bind::def(m, "attention_paged_f32_u8", &attention_paged<float, uint8_t>);
  bind::def(m, "attention_paged_bf16_bf16", &attention_paged<bf16, bf16>);
  bind::def(m, "attention_paged_bf16_u8", &attention_paged<bf16, uint8_t>);
  bind::def(m, "write_pages_f32_f32", &write_pages<float, float>);
  bind::def(m, "write_pages_f32_u8", &write_pages<float, uint8_t>);
  bind::def(m, "write_pages_bf16_bf16", &write_pages<bf16, bf16>);
  bind::def(m, "write_pages_bf16_u8", &write_pages<bf16, uint8_t>);
  bind::def(m, "linear_forward_hopper_f32", &linear_forward_hopper<float>);
  bind::def(m, "linear_forward_hopper_bf16", &linear_forward_hopper<bf16>);
  bind::def(m, "linear_dx_hopper", &linear_dx_hopper);
  bind::def(m, "linear_dweight_hopper", &linear_dweight_hopper);
  bind::def(m, "linear_dweight_added_hopper", &linear_dweight_added_hopper);
  bind::def(m, "cross_entropy_hopper_tiles", &cross_entropy_hopper_tiles);
  bind::def(m, "cross_entropy_forward_hopper", &cross_entropy_forward_hopper);
  bind::def(m, "cross_entropy_dlogits_hopper", &cross_entropy_dlogits_hopper);
  m.attr("DECODER_LAYERS") = kDecoderLayers;
  m.attr("DECODER_DIM") = kDecoderDim;
  bind::def(m, "decoder_shared_bytes", &decoder_shared_bytes);
  bind::def(m, "decoder_step_f32", &decoder_step<float>);
  bind::def(m, "decoder_step_bf16", &decoder_step<bf16>);
  bind::def(m, "sample", &sample);
  bind::def(m, "top_logprobs", &top_logprobs);
  bind::def(m, "adjust_logits", &adjust_logits);
  bind::def(m, "uniform", &uniform);
  m.attr("BPE_LONGEST") = kBpeLongest;
  m.attr("BPE_WALK") = kBpeWalk;
  m.attr("BPE_CONTEXT") = kBpeContext;
  m.attr("BPE_HANDED") = kBpeHanded;
  m.attr("BPE_SLOT") = kBpeSlot;
  m.attr("BPE_STATUS") = kBpeStatus;
  bind::def(m, "bpe_work", &bpe_work);
  bind::def(m, "bpe_zeros", &bpe_zeros);
  bind::def(m, "bpe_count", &bpe_count);
  bind::def(m, "bpe_hand_over", &bpe_hand_over);
  bind::def(m, "bpe_gather", &bpe_gather);
}
