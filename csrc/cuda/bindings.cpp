// The pybind11 file of the CUDA module, as csrc/cpu/bindings.cpp is of the CPU modules. Built with nvcc's
// objects into pyengine.kernels._cuda, and by the tests, with the host shim in CUDA's place, into a module that
// runs here.
#include "../bind.h"
#include "ops.h"

struct bf16 {
  uint16_t bits;
};

#define BOTH(op)                        \
  bind::def(m, #op "_f32", &op<float>); \
  bind::def(m, #op "_bf16", &op<bf16>)

PYBIND11_MODULE(PYENGINE_MODULE, m) {
  BOTH(rmsnorm_forward);
  BOTH(rmsnorm_backward);
  bind::def(m, "sample", &sample);
  bind::def(m, "top_logprobs", &top_logprobs);
  bind::def(m, "adjust_logits", &adjust_logits);
  bind::def(m, "uniform", &uniform);
}
