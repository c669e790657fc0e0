// Pixels to patch rows, the class token and positions, class rows out of and into a token matrix. One group of crops a launch.
// dino-kernel/src/ops/embed.rs

// y (count * rows * cols, channels * patch * patch) from x (count, channels, height, width).
extern "C" __global__ void KERNEL(patchify)(act* __restrict__ y, const act* __restrict__ x, long long n, int channels, int height, int width,
    int patch, int rows, int cols) {
  long long i = FLAT();
  if (i >= n) return;
  long long rest = i;
  int px = rest % patch; rest /= patch;
  int py = rest % patch; rest /= patch;
  int channel = rest % channels; rest /= channels;
  int c = rest % cols; rest /= cols;
  int r = rest % rows; rest /= rows;
  y[i] = x[((rest * channels + channel) * height + r * patch + py) * width + c * patch + px];
}
REGISTER(KERNEL(patchify));

// y (crops, 1 + patches, C).
extern "C" __global__ void KERNEL(embed)(act* __restrict__ y, const act* __restrict__ body, const float* __restrict__ cls,
    const float* __restrict__ cls_position, const act* __restrict__ positions, long long n, int patches, int cols) {
  long long i = FLAT();
  if (i >= n) return;
  int c = i % cols, token = i / cols % (1 + patches);
  long long crop = i / cols / (1 + patches);
  if (token == 0) put(y[i], cls[c] + cls_position[c]);
  else put(y[i], get(body[(crop * patches + token - 1) * cols + c]) + get(positions[(long long)(token - 1) * cols + c]));
}
REGISTER(KERNEL(embed));

// One thread a (token, channel), which walks the crops: dpatches is dy's patch rows, dpositions their sum; the class row's sum
// accumulates in two gradients.
extern "C" __global__ void KERNEL(embed_backward)(act* __restrict__ dpatches, act* __restrict__ dpositions, float* __restrict__ dcls,
    float* __restrict__ dcls_position, const act* __restrict__ dy, int crops, int patches, int cols) {
  long long i = FLAT();
  long long row = (long long)(1 + patches) * cols;
  if (i >= row) return;
  float s = 0;
  for (int crop = 0; crop < crops; crop++) {
    act d = dy[crop * row + i];
    s += get(d);
    if (i >= cols) dpatches[crop * (row - cols) + i - cols] = d;
  }
  if (i < cols) dcls[i] += s, dcls_position[i] += s;
  else put(dpositions[i - cols], s);
}
REGISTER(KERNEL(embed_backward));

// y (crops, C) = the first row of every crop of x.
extern "C" __global__ void KERNEL(gather_class)(act* __restrict__ y, const act* __restrict__ x, long long n, int tokens, int cols) {
  long long i = FLAT();
  if (i < n) y[i] = x[i / cols * tokens * cols + i % cols];
}
REGISTER(KERNEL(gather_class));

extern "C" __global__ void KERNEL(scatter_class_acc)(act* __restrict__ dx_acc, const act* __restrict__ dy, long long n, int tokens, int cols) {
  long long i = FLAT();
  if (i >= n) return;
  act& d = dx_acc[i / cols * tokens * cols + i % cols];
  put(d, get(d) + get(dy[i]));
}
REGISTER(KERNEL(scatter_class_acc));
