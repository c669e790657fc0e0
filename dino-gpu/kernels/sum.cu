// What processes that share a batch bring, added up. dino-kernel/src/group.rs

// x (parts, n): the first part becomes the sum of all, formed by halves, (0 + 1) + (2 + 3) and so on: the same bits whoever adds.
extern "C" __global__ void add_by_halves(float* x, int parts, long long n) {
  for (long long i = FLAT(); i < n; i += (long long)gridDim.x * blockDim.x)
    for (int step = 1; step < parts; step *= 2)
      for (int at = 0; at + step < parts; at += 2 * step) x[at * n + i] += x[(at + step) * n + i];
}
REGISTER(add_by_halves);
