// Convolutions as matmuls whose factor of windows is never stored: which pixel an element of it is, the filter as the other factor, and the
// filter's gradient out of its partial sums. The matmuls are in conv_f32.cu and conv_bf16.cu.  dino-kernel/src/ops/conv.rs
//
// y: a row is an output pixel, and the sum is over taps of the filter, channels within a tap. dx: a row is an input pixel, and the sum is over
// the taps that meet it: with a stride those that leave the same remainder. So the input pixels are dealt to stride^2 classes, each of
// which has its own taps and is a matmul of its own. dw: the sum is over output pixels.
#ifndef CONV_ONCE
#define CONV_ONCE
// n / d for n below 2^31, without a division (Granlund and Montgomery 1994, figure 4.1).
struct Divider {
  unsigned d, factor, shift;
  __device__ __forceinline__ explicit Divider(int by) : d(by), shift(0) {
    while ((1ull << shift) < d) shift++;
    factor = (unsigned)(((1ull << 32) * ((1ull << shift) - d)) / (d ? d : 1) + 1);
  }
  __device__ __forceinline__ int of(int n) const { return (int)((__umulhi((unsigned)n, factor) + (unsigned)n) >> shift); }
};

// One axis of the windows: which pixels are written, and which tap at which pixel reads what.
struct Axis {
  int count, first, step;  // pixels written: first, first + step, ...
  int taps, tap;           // taps: tap, tap + step, ...
  int move, from, sign;    // at the i-th pixel written the a-th tap reads i move + from + sign a

  // An output pixel reads the window over it.
  static __device__ __forceinline__ Axis forward(int side, int kernel, int stride, int padding) {
    return {(side + 2 * padding - kernel) / stride + 1, 0, 1, kernel, 0, stride, -padding, 1};
  }
  // An input pixel that leaves this remainder reads the output pixels whose windows cover it.
  static __device__ __forceinline__ Axis backward(int remainder, int side, int kernel, int stride, int padding) {
    int tap = (remainder + padding) % stride;
    return {remainder < side ? (side - remainder + stride - 1) / stride : 0, remainder, stride,
            tap < kernel ? (kernel - tap + stride - 1) / stride : 0, tap, 1, (remainder + padding - tap) / stride, -1};
  }
};

// The shape of one group of maps of a convolution; `height`, `width`: of the input.
struct ConvShape { int maps, height, width, kernel, stride, padding; };

// The factor of windows: row m, element k. Reads maps (height, width, channels).
struct Windows {
  Axis rows, cols;
  int height, width, channels, written_width, written_map;
  Divider by_map, by_cols, by_channels, by_taps;

  __device__ __forceinline__ Windows(Axis rows, Axis cols, int height, int width, int channels, int written_height, int written_width)
      : rows(rows), cols(cols), height(height), width(width), channels(channels), written_width(written_width),
        written_map(written_height * written_width), by_map(rows.count * cols.count), by_cols(cols.count), by_channels(channels),
        by_taps(cols.taps) {}

  // What writes an output pixel.
  static __device__ __forceinline__ Windows forward(const ConvShape& s, int channels) {
    Axis rows = Axis::forward(s.height, s.kernel, s.stride, s.padding), cols = Axis::forward(s.width, s.kernel, s.stride, s.padding);
    return Windows(rows, cols, s.height, s.width, channels, rows.count, cols.count);
  }
  // What writes an input pixel of this class.
  static __device__ __forceinline__ Windows backward(const ConvShape& s, int channels, int of) {
    Axis rows = Axis::backward(of / s.stride, s.height, s.kernel, s.stride, s.padding);
    Axis cols = Axis::backward(of % s.stride, s.width, s.kernel, s.stride, s.padding);
    int height = Axis::forward(s.height, s.kernel, s.stride, s.padding).count;
    int width = Axis::forward(s.width, s.kernel, s.stride, s.padding).count;
    return Windows(rows, cols, height, width, channels, s.height, s.width);
  }

  __device__ __forceinline__ int map() const { return rows.count * cols.count; }
  __device__ __forceinline__ int taps() const { return rows.taps * cols.taps; }

  // Where the windows of a row are: its map, and the pixel of the first tap.
  struct At { int map, row, col; };
  __device__ __forceinline__ At at(int m) const {
    int map_number = by_map.of(m), in_map = m - map_number * map(), i = by_cols.of(in_map), j = in_map - i * cols.count;
    return {map_number, i * rows.move + rows.from, j * cols.move + cols.from};
  }
  // The row of the matrix that is written.
  __device__ __forceinline__ int written(int m) const {
    int map_number = by_map.of(m), in_map = m - map_number * map(), i = by_cols.of(in_map), j = in_map - i * cols.count;
    return map_number * written_map + (rows.first + i * rows.step) * written_width + cols.first + j * cols.step;
  }
  // What tap `tap` reads there; null outside the map.
  template <class T> __device__ __forceinline__ const T* pixel(const T* x, const At& at, int tap) const {
    int a = by_taps.of(tap), b = tap - a * cols.taps;
    int row = at.row + rows.sign * a, col = at.col + cols.sign * b;
    bool inside = (unsigned)row < (unsigned)height && (unsigned)col < (unsigned)width;
    return inside ? x + ((long long)(at.map * height + row) * width + col) * channels : nullptr;
  }
  // Element k of a row; 0 outside the map.
  template <class T> __device__ __forceinline__ T element(const T* x, const At& at, int k) const {
    int tap = by_channels.of(k);
    const T* p = pixel(x, at, tap);
    return p ? p[k - tap * channels] : T(0.f);
  }
};

// dw (n, channels, taps) += the sum of `parts` (n, taps, channels), in their order.
extern "C" __global__ void filter_sum(float* __restrict__ dw, const float* __restrict__ parts, int count, int channels, int taps,
    long long len) {
  long long i = FLAT();
  if (i >= len) return;
  int c = i / taps % channels, tap = i % taps;
  long long n = i / ((long long)taps * channels), from = (n * taps + tap) * channels + c;
  float sum = 0;
  for (int z = 0; z < count; z++) sum += parts[z * len + from];
  dw[i] += sum;
}
REGISTER(filter_sum);
#endif

// The filter w (out, inp, kernel, kernel) as a matmul's factor y (n, taps, channels), an element a thread: n counts what is written and
// channels what is summed over, `n_step` and `channel_step` apart in w. Taps are class by class of `stride` (see above), which is 1 for y.
extern "C" __global__ void KERNEL(pack_filter)(act* __restrict__ y, const act* __restrict__ w, int channels, int n_step, int channel_step,
    int kernel, int stride, int padding, long long len) {
  long long i = FLAT();
  if (i >= len) return;
  int taps = kernel * kernel, c = i % channels, at = i / channels % taps;
  long long n = i / ((long long)channels * taps);
  for (int of = 0; of < stride * stride; of++) {
    Axis rows = Axis::backward(of / stride, 0, kernel, stride, padding), cols = Axis::backward(of % stride, 0, kernel, stride, padding);
    int here = rows.taps * cols.taps;
    if (at < here) {
      int u = rows.tap + at / cols.taps * stride, v = cols.tap + at % cols.taps * stride;
      y[i] = w[n * n_step + (long long)c * channel_step + u * kernel + v];
      return;
    }
    at -= here;
  }
}
REGISTER(KERNEL(pack_filter));
