// What hopper.cuh needs on the host: descriptions of tensors for the copy engine, and the device's size.
#include "hopper.cuh"

#ifdef PYENGINE_HOST_SHIM

template <class T>
int describe(TensorMap* map, const T* data, int64_t rows, int64_t heads, int64_t columns, int panel_rows) {
  *map = {(char*)data, {columns, heads, rows}, panel_rows, (unsigned)sizeof(T)};
  return 0;
}

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

}  // namespace

template <class T>
int describe(TensorMap* map, const T* data, int64_t rows, int64_t heads, int64_t columns, int panel_rows) {
  static const auto encode = encoder();
  if (!encode) return (int)cudaErrorInsufficientDriver;
  constexpr auto kType = sizeof(T) == 2 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  const cuuint64_t sizes[] = {(cuuint64_t)columns, (cuuint64_t)heads, (cuuint64_t)rows};
  const cuuint64_t head = sizeof(T) * sizes[0], strides[] = {head, head * sizes[1]};  // bytes
  const cuuint32_t box[] = {kRowOfPanel / sizeof(T), 1, (cuuint32_t)panel_rows}, steps[] = {1, 1, 1};
  CUresult result =
      encode(map, kType, 3, const_cast<T*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? 0 : (int)cudaErrorInvalidValue;
}

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

template int describe(TensorMap*, const bf16*, int64_t, int64_t, int64_t, int);
template int describe(TensorMap*, const float*, int64_t, int64_t, int64_t, int);
