// The log-sum-exp of every prototype over the teacher's rows, a tile of prototypes and a block of rows at a time.
// dino-kernel/src/ops/column_lse.rs

// A column's running log-sum-exp: the largest term so far, and the sum of exp(slope (term - top)), in f64 for a column has thousands.
struct Column { double total; float top; };

// One thread a prototype of the tile: merges the products s (rows, tile) into its column; the terms are s scale - top - ln / slope, with
// the row's lse (rows, 2) = (top, ln), which may be null for 0. `finish`: the offset, in the unit of logits.
extern "C" __global__ void column_running(Column* __restrict__ running, float* __restrict__ offset, const float* __restrict__ s,
    const float* __restrict__ lse, const float* __restrict__ scale, const float* __restrict__ slope_at, int rows, int tile, int start,
    int finish) {
  long long k = FLAT();
  if (k >= tile) return;
  Column c = {0.0, -INFINITY};
  if (!start) c = running[k];
  float slope = *slope_at;
  for (int row = 0; row < rows; row++) {
    float x = s[(long long)row * tile + k] * scale[k];
    if (lse) x = x - lse[2 * row] - lse[2 * row + 1] / slope;
    if (x > c.top || x != x) {
      c.total = c.total * (double)expf((c.top - x) * slope) + 1.0;
      c.top = x;
    } else {
      c.total += (double)expf((x - c.top) * slope);
    }
  }
  running[k] = c;
  if (finish) offset[k] = c.top + (float)log(c.total) / slope;
}
REGISTER(column_running);
