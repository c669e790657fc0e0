// The matmuls of convolutions in f32.  See conv.cu.
#pragma once

// The taps of the classes before this one.
__device__ __forceinline__ int taps_before(const ConvShape& s, int of) {
  int taps = 0;
  for (int i = 0; i < of; i++)
    taps += Axis::backward(i / s.stride, 0, s.kernel, s.stride, s.padding).taps *
            Axis::backward(i % s.stride, 0, s.kernel, s.stride, s.padding).taps;
  return taps;
}

// y (pixels, n) = the windows of x times the filter (n, taps, channels), one group of maps; with `backward` y is dx, x is dy, and class
// blockIdx.z is written, else blockIdx.z is 0. With `accumulate`, += instead of =.
extern "C" __global__ void __launch_bounds__(256) conv_f32(float* __restrict__ y, const float* __restrict__ x, const float* __restrict__ filter,
    int n, int channels, int maps, int height, int width, int kernel, int stride, int padding, int backward, int accumulate) {
  ConvShape s = {maps, height, width, kernel, stride, padding};
  Windows w = backward ? Windows::backward(s, channels, blockIdx.z) : Windows::forward(s, channels);
  long long row = (long long)kernel * kernel * channels;
  if (backward) filter += (long long)taps_before(s, blockIdx.z) * channels;
  multiply_f32(maps * w.map(), n, 0, w.taps() * channels, true, true,
    [=](int m, int k) { return w.element(x, w.at(m), k); },
    [=](int k, int col) { return filter[col * row + k]; },
    [=](int m, int col, float sum) {
      float* to = y + (long long)w.written(m) * n + col;
      *to = accumulate ? *to + sum : sum;
    });
}
REGISTER(conv_f32);

// Part z of the filter's gradient (out, taps, channels), over output pixels [z pixels, (z + 1) pixels) of one group of maps.
extern "C" __global__ void __launch_bounds__(256) conv_weight_f32(float* __restrict__ parts, const float* __restrict__ dy,
    const float* __restrict__ x, int out, int channels, int maps, int height, int width, int kernel, int stride, int padding, int pixels) {
  ConvShape s = {maps, height, width, kernel, stride, padding};
  Windows w = Windows::forward(s, channels);
  int n = w.taps() * channels, all = maps * w.map();
  long long first = (long long)blockIdx.z * pixels, last = first + pixels;
  float* part = parts + (long long)blockIdx.z * out * n;
  multiply_f32(out, n, (int)(first < all ? first : all), (int)(last < all ? last : all), false, false,
    [=](int o, int p) { return dy[(long long)p * out + o]; },
    [=](int p, int k) { return w.element(x, w.at(p), k); },
    [=](int o, int k, float sum) { part[(long long)o * n + k] = sum; });
}
REGISTER(conv_weight_f32);
