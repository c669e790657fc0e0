// The position table resampled by two small matrices, and the transpose. One thread an output element; zeros of the matrices are
// skipped, which leaves sixteen taps.  dino-kernel/src/ops/position.rs

// y (to_rows * to_cols, C); table (from_rows * from_cols, C); rows (to_rows, from_rows); cols (to_cols, from_cols).
extern "C" __global__ void KERNEL(resize_positions)(act* __restrict__ y, const float* __restrict__ table, const float* __restrict__ rows,
    const float* __restrict__ cols, int from_rows, int from_cols, int to_rows, int to_cols, int channels) {
  long long e = FLAT();
  if (e >= (long long)to_rows * to_cols * channels) return;
  int c = e % channels, j = e / channels % to_cols, i = e / channels / to_cols;
  float s = 0;
  for (int p = 0; p < from_rows; p++) {
    float vertical = rows[i * from_rows + p];
    if (vertical == 0) continue;
    for (int q = 0; q < from_cols; q++) {
      float horizontal = cols[j * from_cols + q];
      if (horizontal != 0) s += vertical * horizontal * table[((long long)p * from_cols + q) * channels + c];
    }
  }
  put(y[e], s);
}
REGISTER(KERNEL(resize_positions));

extern "C" __global__ void KERNEL(resize_positions_backward)(float* __restrict__ dtable, const act* __restrict__ dy,
    const float* __restrict__ rows, const float* __restrict__ cols, int from_rows, int from_cols, int to_rows, int to_cols, int channels) {
  long long e = FLAT();
  if (e >= (long long)from_rows * from_cols * channels) return;
  int c = e % channels, q = e / channels % from_cols, p = e / channels / from_cols;
  float s = 0;
  for (int i = 0; i < to_rows; i++) {
    float vertical = rows[i * from_rows + p];
    if (vertical == 0) continue;
    for (int j = 0; j < to_cols; j++) {
      float horizontal = cols[j * from_cols + q];
      if (horizontal != 0) s += vertical * horizontal * get(dy[((long long)i * to_cols + j) * channels + c]);
    }
  }
  dtable[e] += s;
}
REGISTER(KERNEL(resize_positions_backward));
