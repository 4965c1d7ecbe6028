// What hopper.cuh needs on the host: descriptions of tensors for the copy engine, and the device's size.
#include <vector>

#include "hopper.cuh"

namespace {

// All that a description is made of.
struct Tensor {
  const void* data;
  int64_t rows, heads, columns;
  int panel_rows, number;  // bytes

  bool operator==(const Tensor& other) const {
    return data == other.data && rows == other.rows && heads == other.heads && columns == other.columns &&
           panel_rows == other.panel_rows && number == other.number;
  }
  uint64_t hash() const {
    uint64_t mixed = 0;
    for (uint64_t part : {(uint64_t)(uintptr_t)data, (uint64_t)rows, (uint64_t)heads, (uint64_t)columns,
                          (uint64_t)panel_rows, (uint64_t)number})
      mixed = (mixed ^ part) * 0x9e3779b97f4a7c15u, mixed ^= mixed >> 32;
    return mixed;
  }
};

int encode(TensorMap* map, const Tensor& tensor);

}  // namespace

// A step of training describes the same tensors again, so descriptions are kept, each until another takes its
// place.
template <class T>
int describe(TensorMap* map, const T* data, int64_t rows, int64_t heads, int64_t columns, int panel_rows) {
  struct Known {
    Tensor tensor{};
    TensorMap map{};
  };
  constexpr size_t kKept = 1024;
  static thread_local std::vector<Known> kept(kKept);
  const Tensor tensor{data, rows, heads, columns, panel_rows, (int)sizeof(T)};
  Known& known = kept[tensor.hash() % kKept];
  if (!(known.tensor == tensor)) {
    if (int error = encode(&known.map, tensor)) return known.tensor = {}, error;
    known.tensor = tensor;
  }
  *map = known.map;
  return 0;
}
template int describe(TensorMap*, const bf16*, int64_t, int64_t, int64_t, int);
template int describe(TensorMap*, const float*, int64_t, int64_t, int64_t, int);

#ifdef PYENGINE_HOST_SHIM

namespace {

int encode(TensorMap* map, const Tensor& tensor) {
  *map = {(char*)tensor.data,
          {tensor.columns, tensor.heads, tensor.rows},
          tensor.panel_rows,
          (unsigned)tensor.number};
  return 0;
}

}  // namespace

// Few, so that each has several pieces of work.
int hopper_blocks(int64_t* blocks) {
  *blocks = 2;
  return 0;
}

#else

namespace {

// The driver's function, found at run time: this module is not linked with the driver, and loads without one.
decltype(&cuTensorMapEncodeTiled) encoder() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
  cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
#else
  cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
  bool there = error == cudaSuccess && result == cudaDriverEntryPointSuccess;
  return there ? reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found) : nullptr;
}

int encode(TensorMap* map, const Tensor& tensor) {
  static const auto encode_tiled = encoder();
  if (!encode_tiled) return (int)cudaErrorInsufficientDriver;
  const auto type = tensor.number == 2 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  const cuuint64_t sizes[] = {(cuuint64_t)tensor.columns, (cuuint64_t)tensor.heads, (cuuint64_t)tensor.rows};
  const cuuint64_t head = tensor.number * sizes[0], strides[] = {head, head * sizes[1]};  // bytes
  const cuuint32_t box[] = {(cuuint32_t)(kRowOfPanel / tensor.number), 1, (cuuint32_t)tensor.panel_rows};
  const cuuint32_t steps[] = {1, 1, 1};
  CUresult result = encode_tiled(map, type, 3, const_cast<void*>(tensor.data), sizes, strides, box, steps,
                                 CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? 0 : (int)cudaErrorInvalidValue;
}

}  // namespace

int hopper_blocks(int64_t* blocks) {
  int device = 0, major = 0, count = 0;
  if (cudaError_t error = cudaGetDevice(&device)) return (int)error;
  if (cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device))
    return (int)error;
  if (major != 9) return (int)cudaErrorNoKernelImageForDevice;
  if (cudaError_t error = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device))
    return (int)error;
  *blocks = count;
  return 0;
}

#endif
