// l2 normalization of rows, weight normalization of prototypes; one warp a row.  dino-kernel/src/ops/norm.rs
#ifndef NORM_ONCE
#define NORM_ONCE

// scale (rows) = g / |v|; v (rows, cols). Without gains (null) it is 1.
extern "C" __global__ void prototype_scale(float* __restrict__ scale, const float* __restrict__ v, const float* __restrict__ g, int rows, int cols) {
  long long row = WARP_ROW();
  if (row >= rows) return;
  float s = 0;
  for (int c = LANE(); c < cols; c += 32) s += v[row * cols + c] * v[row * cols + c];
  s = warp_sum(s);
  if (LANE() == 0) scale[row] = g ? g[row] / sqrtf(s) : 1.f;
}
REGISTER(prototype_scale);

// In place: dv (rows, cols) holds dW and is overwritten by scale (dW - v^ (v^ . dW)); dg (rows), unless null, accumulates v^ . dW.
extern "C" __global__ void weight_norm_backward(float* __restrict__ dv, float* __restrict__ dg, const float* __restrict__ v,
    const float* __restrict__ scale, int rows, int cols) {
  long long row = WARP_ROW();
  if (row >= rows) return;
  v += row * cols, dv += row * cols;
  float square = 0, along = 0;
  for (int c = LANE(); c < cols; c += 32) square += v[c] * v[c], along += v[c] * dv[c];
  square = warp_sum(square), along = warp_sum(along);
  float part = along / square, s = scale[row];
  for (int c = LANE(); c < cols; c += 32) dv[c] = (dv[c] - part * v[c]) * s;
  if (dg && LANE() == 0) dg[row] += along / sqrtf(square);
}
REGISTER(weight_norm_backward);
#endif

// y = x / max(|x|, 1e-12); the squares are scaled by the largest element first, so that they neither overflow nor vanish.
extern "C" __global__ void KERNEL(l2_normalise)(act* __restrict__ y, float* __restrict__ norm, const act* __restrict__ x, int rows, int cols) {
  long long row = WARP_ROW();
  if (row >= rows) return;
  x += row * cols, y += row * cols;
  float top = 0;
  for (int c = LANE(); c < cols; c += 32) {
    float v = fabsf(get(x[c]));
    top = v > top || v != v ? v : top;
  }
  top = warp_max(top);
  float length = top, inverse = 1.f / top;
  if (top > 0 && top < INFINITY) {
    float s = 0;
    bool scaled = inverse < INFINITY;  // else a row of denormals: its norm is below the floor anyway
    for (int c = LANE(); c < cols; c += 32) {
      float v = scaled ? get(x[c]) * inverse : get(x[c]);
      s += v * v;
    }
    s = sqrtf(warp_sum(s));
    length = scaled ? top * s : s;
  }
  length = length < FLOOR ? FLOOR : length;
  for (int c = LANE(); c < cols; c += 32) put(y[c], get(x[c]) / length);
  if (LANE() == 0) norm[row] = length;
}
REGISTER(KERNEL(l2_normalise));

// dx = (dy - y (y . dy)) / norm; at the floor the divisor is a constant, so nothing is projected out.
extern "C" __global__ void KERNEL(l2_normalise_backward)(act* __restrict__ dx, const act* __restrict__ dy, const act* __restrict__ y,
    const float* __restrict__ norm, int rows, int cols) {
  long long row = WARP_ROW();
  if (row >= rows) return;
  dx += row * cols, dy += row * cols, y += row * cols;
  float along = 0, length = norm[row];
  for (int c = LANE(); c < cols; c += 32) along += get(y[c]) * get(dy[c]);
  along = warp_sum(along);
  if (!(length > FLOOR)) along = 0;
  for (int c = LANE(); c < cols; c += 32) put(dx[c], (get(dy[c]) - get(y[c]) * along) / length);
}
REGISTER(KERNEL(l2_normalise_backward));
