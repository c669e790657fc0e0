// The matmuls of convolutions on the tensor cores: those of gemm_bf16.cuh, an operand of which is gathered as it is read.  See conv.cu.
#pragma once

namespace conv_bf16 {
using namespace gemm_bf16;

__device__ __forceinline__ bool aligned(const bf16* x, int channels) { return aligned16(x, channels); }

// Windows with k along the rows: eight channels of a tap are 16 bytes where channels are a multiple of eight.
template <int TILE, int THREADS> struct Rows {
  static constexpr int ACROSS = STEP / 8, EACH = TILE * ACROSS / THREADS;
  const bf16* x;
  Windows w;
  int rows, depth;
  bool packed;
  Windows::At at[EACH];
  __device__ __forceinline__ Rows(const bf16* x, const Windows& w, int rows)
      : x(x), w(w), rows(rows), depth(w.taps() * w.channels), packed(aligned(x, w.channels)) {}
  __device__ __forceinline__ void start(int first) {
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      int m = first + (threadIdx.x + i * THREADS) / ACROSS;
      at[i] = w.at(m < rows ? m : 0);
      if (m >= rows) at[i].row = -(1 << 30);  // outside the map under every tap
    }
  }
  __device__ __forceinline__ void load(bf16* smem, int k) const {
    int c = threadIdx.x % ACROSS * 8;
    k += c;
    int tap = w.by_channels.of(k), channel = k - tap * w.channels;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      bf16* to = smem + (threadIdx.x + i * THREADS) / ACROSS * (STEP + PAD) + c;
      if (packed) {
        const bf16* from = k < depth ? w.pixel(x, at[i], tap) : nullptr;
        cp_async16_bytes(to, from ? from + channel : x, from ? 16 : 0);
      } else {
        for (int j = 0; j < 8; j++) to[j] = k + j < depth ? w.element(x, at[i], k + j) : __float2bfloat16(0.f);
      }
    }
  }
};

// Windows with k, the pixels, down the columns: a thread's eight columns stay the same.
template <int TILE, int THREADS> struct Columns {
  static constexpr int ACROSS = TILE / 8, EACH = STEP * ACROSS / THREADS;
  const bf16* x;
  Windows w;
  int end, depth, col, tap;
  bool packed;
  __device__ __forceinline__ Columns(const bf16* x, const Windows& w, int end)
      : x(x), w(w), end(end), depth(w.taps() * w.channels), col(0), tap(0), packed(aligned(x, w.channels)) {}
  __device__ __forceinline__ void start(int first) {
    col = first + threadIdx.x % ACROSS * 8;
    tap = w.by_channels.of(col);
  }
  __device__ __forceinline__ void load(bf16* smem, int k) const {
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      int row = (threadIdx.x + i * THREADS) / ACROSS, m = k + row;
      bf16* to = smem + row * (TILE + PAD) + threadIdx.x % ACROSS * 8;
      Windows::At at = w.at(m < end ? m : 0);
      if (packed) {
        const bf16* from = m < end && col < depth ? w.pixel(x, at, tap) : nullptr;
        cp_async16_bytes(to, from ? from + (col - tap * w.channels) : x, from ? 16 : 0);
      } else {
        for (int j = 0; j < 8; j++) to[j] = m < end && col + j < depth ? w.element(x, at, col + j) : __float2bfloat16(0.f);
      }
    }
  }
};

template <int TILE, int WARPS_M, int WARPS_N>
__device__ __forceinline__ void conv(bf16* y, const bf16* x, const bf16* filter, int n, int channels, const ConvShape& s, int backward,
                                     int accumulate) {
  constexpr int THREADS = threads(TILE);
  Windows w = backward ? Windows::backward(s, channels, blockIdx.z) : Windows::forward(s, channels);
  int m = s.maps * w.map(), k = w.taps() * channels, all = s.maps * w.written_map;
  if (accumulate && k == 0) return;  // pixels that no window covers
  if (backward) filter += (size_t)taps_before(s, blockIdx.z) * channels;
  Rows<TILE, THREADS> left(x, w, m);
  Stored<TILE, THREADS, false> right(filter, s.kernel * s.kernel * channels, n, k);
  multiply<TILE, TILE, WARPS_M, WARPS_N, false, false>(left, right, m, 0, k, [=](int row, int col, float2 (&v)[gemm_bf16::GROUPS]) {
    store_bf16(y, n, all, n, row < m ? w.written(row) : all, col, v, accumulate);
  });
}

template <int TILE, int WARPS_M, int WARPS_N>
__device__ __forceinline__ void weight(float* parts, const bf16* dy, const bf16* x, int out, int channels, const ConvShape& s, int pixels) {
  constexpr int THREADS = threads(TILE);
  Windows w = Windows::forward(s, channels);
  int n = w.taps() * channels, all = s.maps * w.map();
  long long first = (long long)blockIdx.z * pixels, last = first + pixels;
  int k0 = (int)(first < all ? first : all), k1 = (int)(last < all ? last : all);
  float* part = parts + (size_t)blockIdx.z * out * n;
  Stored<TILE, THREADS, true> left(dy, out, out, k1);
  Columns<TILE, THREADS> right(x, w, k1);
  multiply<TILE, TILE, WARPS_M, WARPS_N, true, true>(left, right, out, k0, k1, [=](int row, int col, float2 (&v)[gemm_bf16::GROUPS]) {
    store_f32(part, n, out, n, row, col, v, false);
  });
}

}  // namespace conv_bf16

// As conv_f32: y (pixels, n) = the windows of x times the filter (n, taps, channels). Grid, block and shared memory are those of gemm_nt.
extern "C" __global__ void __launch_bounds__(128) conv_bf16_64(bf16* __restrict__ y, const bf16* __restrict__ x,
    const bf16* __restrict__ filter, int n, int channels, int maps, int height, int width, int kernel, int stride, int padding,
    int backward, int accumulate) {
  conv_bf16::conv<64, 2, 2>(y, x, filter, n, channels, {maps, height, width, kernel, stride, padding}, backward, accumulate);
}
CPU_KERNEL(conv_bf16_64);
extern "C" __global__ void __launch_bounds__(256, 2) conv_bf16_128(bf16* __restrict__ y, const bf16* __restrict__ x,
    const bf16* __restrict__ filter, int n, int channels, int maps, int height, int width, int kernel, int stride, int padding,
    int backward, int accumulate) {
  conv_bf16::conv<128, 2, 4>(y, x, filter, n, channels, {maps, height, width, kernel, stride, padding}, backward, accumulate);
}
CPU_KERNEL(conv_bf16_128);

// As conv_weight_f32: parts (splits, out, taps, channels). `pixels` is a multiple of 32. Shared memory is that of gemm_tn.
extern "C" __global__ void __launch_bounds__(128) conv_weight_bf16_64(float* __restrict__ parts, const bf16* __restrict__ dy,
    const bf16* __restrict__ x, int out, int channels, int maps, int height, int width, int kernel, int stride, int padding, int pixels) {
  conv_bf16::weight<64, 2, 2>(parts, dy, x, out, channels, {maps, height, width, kernel, stride, padding}, pixels);
}
CPU_KERNEL(conv_weight_bf16_64);
extern "C" __global__ void __launch_bounds__(256, 2) conv_weight_bf16_128(float* __restrict__ parts, const bf16* __restrict__ dy,
    const bf16* __restrict__ x, int out, int channels, int maps, int height, int width, int kernel, int stride, int padding, int pixels) {
  conv_bf16::weight<128, 2, 4>(parts, dy, x, out, channels, {maps, height, width, kernel, stride, padding}, pixels);
}
CPU_KERNEL(conv_weight_bf16_128);
