// An emulation of libcublasLt.so: the fourteen functions a trainer needs, for column-major bf16 and f32 matrices without
// batches, with f32 sums and an optional bias. The matmul is queued on the emulated driver's stream (or its capture)
// and sums in double, so its results differ from a card's in rounding only.
//
// Strict: leading dimensions, shapes and attributes are checked at the call, pointers against live device memory there
// and again when the work runs; an algorithm may be used only with the alignment (the bias's too) and the workspace it was chosen for,
// and the workspace is overwritten with NaN patterns.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <set>
#include <vector>

// of the emulated driver
extern "C" int emulation_enqueue(void* stream, void (*f)(void*), void* arg, void (*drop)(void*));
extern "C" int emulation_inside(const void* p, size_t bytes);
extern "C" void emulation_lose(int code);

#define API extern "C" __attribute__((visibility("default")))

namespace {
enum Status { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum { R_32F = 0, R_16BF = 14 };
enum { EPILOGUE_DEFAULT = 1, EPILOGUE_BIAS = 4 };
constexpr int32_t MAGIC_HANDLE = 0x48414e44, MAGIC_DESC = 0x44455343, MAGIC_LAYOUT = 0x4c41594f, MAGIC_PREFERENCE = 0x50524546;
constexpr uint64_t MAGIC_ALGO = 0x414c474f, WANTED_WORKSPACE = 1 << 20;

struct Object { int32_t magic; };
// The objects that exist, so that a destroyed one is refused without being read.
std::mutex& mutex = *new std::mutex;
std::set<void*>& objects = *new std::set<void*>;
struct Desc : Object {
  int32_t compute, scale, transa = 0, transb = 0, epilogue = EPILOGUE_DEFAULT, bias_type = -1;
  void* bias = nullptr;
};
struct Layout : Object {
  int32_t type;
  uint64_t rows, cols;
  int64_t ld;
};
struct Preference : Object {
  uint64_t workspace = 0;
  uint32_t alignment[4] = {256, 256, 256, 256};  // of A, B, C, D; the default of the real library
};
// What the opaque 64 bytes hold: the problem the algorithm was chosen for.
struct Algo {
  uint64_t magic, workspace, m, n, k, bias_alignment;
  uint32_t alignment[4];
};
static_assert(sizeof(Algo) == 64);
struct Heuristic {
  Algo algo;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

int wrong(const char* call, const char* what, int status = INVALID_VALUE) {
  fprintf(stderr, "emulation: %s: %s\n", call, what);
  return status;
}
template <class T> T* as(void* p, int32_t magic) {
  std::lock_guard<std::mutex> lock(mutex);
  return objects.count(p) && ((Object*)p)->magic == magic ? (T*)p : nullptr;
}
template <class T> int keep(void** out, T* made, int32_t magic) {
  std::lock_guard<std::mutex> lock(mutex);
  made->magic = magic;
  objects.insert(made);
  *out = made;
  return SUCCESS;
}
template <class T> bool take(T& to, const void* from, size_t n) { return from && n == sizeof(T) && (memcpy(&to, from, n), true); }
template <class T> int destroy(const char* call, void* p, int32_t magic) {
  T* t = as<T>(p, magic);
  if (!t) return wrong(call, "not such an object, or destroyed before");
  {
    std::lock_guard<std::mutex> lock(mutex);
    objects.erase(p);
  }
  delete t;
  return SUCCESS;
}

size_t element(int type) { return type == R_16BF ? 2 : 4; }
size_t bytes(const Layout& l) { return l.cols ? ((l.cols - 1) * (uint64_t)l.ld + l.rows) * element(l.type) : 0; }
float load(const void* p, size_t i, int type) {
  if (type == R_32F) return ((const float*)p)[i];
  uint32_t u = (uint32_t)((const uint16_t*)p)[i] << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
void store(void* p, size_t i, int type, float f) {
  if (type == R_32F) {
    ((float*)p)[i] = f;
    return;
  }
  uint32_t u;
  memcpy(&u, &f, 4);
  ((uint16_t*)p)[i] = (u & 0x7fffffff) > 0x7f800000 ? 0x7fff : (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

struct Product {
  Desc d;
  Layout a, b, c, out;
  const char *pa, *pb, *pc;
  char *pd, *workspace;
  float alpha, beta;
  uint64_t m, n, k;
  size_t used_workspace;
};
bool memory_ok(const Product& p) {
  if (!emulation_inside(p.pa, bytes(p.a)) || !emulation_inside(p.pb, bytes(p.b)) || !emulation_inside(p.pd, bytes(p.out))) return false;
  if (p.beta != 0 && !emulation_inside(p.pc, bytes(p.c))) return false;
  if (p.used_workspace && !emulation_inside(p.workspace, p.used_workspace)) return false;
  if (p.d.epilogue != EPILOGUE_BIAS) return true;
  return emulation_inside(p.d.bias, p.m * element(p.d.bias_type < 0 ? p.out.type : p.d.bias_type));
}
void run(const Product& p) {
  if (!memory_ok(p)) return emulation_lose(700);
  if (p.used_workspace) memset(p.workspace, 0xff, p.used_workspace);
  // A as k rows of m numbers, so that the innermost loop runs along memory
  std::vector<float> a(p.k * p.m);
  for (uint64_t k = 0; k < p.k; k++)
    for (uint64_t m = 0; m < p.m; m++) a[k * p.m + m] = load(p.pa, p.d.transa ? m * p.a.ld + k : k * p.a.ld + m, p.a.type);
  std::vector<double> sum(p.m);
  for (uint64_t n = 0; n < p.n; n++) {
    std::fill(sum.begin(), sum.end(), 0.);
    for (uint64_t k = 0; k < p.k; k++) {
      double b = load(p.pb, p.d.transb ? k * p.b.ld + n : n * p.b.ld + k, p.b.type);
      const float* row = &a[k * p.m];
      for (uint64_t m = 0; m < p.m; m++) sum[m] += row[m] * b;
    }
    for (uint64_t m = 0; m < p.m; m++) {
      double v = p.alpha * sum[m];
      if (p.beta != 0) v += (double)p.beta * load(p.pc, n * p.c.ld + m, p.c.type);  // C is not read where beta is 0
      if (p.d.epilogue == EPILOGUE_BIAS) v += load(p.d.bias, m, p.d.bias_type < 0 ? p.out.type : p.d.bias_type);
      store(p.pd, n * p.out.ld + m, p.out.type, (float)v);
    }
  }
}

// Reads the descriptors; reports on stderr what does not fit together.
int describe(const char* call, void* handle, void* d, void* a, void* b, void* c, void* out, Product& p) {
  if (!as<Object>(handle, MAGIC_HANDLE)) return wrong(call, "no handle");
  auto* desc = as<Desc>(d, MAGIC_DESC);
  auto *la = as<Layout>(a, MAGIC_LAYOUT), *lb = as<Layout>(b, MAGIC_LAYOUT), *lc = as<Layout>(c, MAGIC_LAYOUT), *ld = as<Layout>(out, MAGIC_LAYOUT);
  if (!desc || !la || !lb || !lc || !ld) return wrong(call, "no description, or one of another kind, or a destroyed one");
  p.d = *desc, p.a = *la, p.b = *lb, p.c = *lc, p.out = *ld;
  p.m = p.d.transa ? p.a.cols : p.a.rows;
  p.k = p.d.transa ? p.a.rows : p.a.cols;
  p.n = p.d.transb ? p.b.rows : p.b.cols;
  if ((p.d.transb ? p.b.cols : p.b.rows) != p.k) return wrong(call, "the inner dimensions of A and B differ");
  if (p.out.rows != p.m || p.out.cols != p.n) return wrong(call, "D has not the shape of the matmul");
  if (p.c.rows != p.m || p.c.cols != p.n) return wrong(call, "C has not the shape of the matmul");
  if (p.c.type != p.out.type) return wrong(call, "C and D have different types", NOT_SUPPORTED);
  if (p.a.type != p.b.type) return wrong(call, "A and B have different types", NOT_SUPPORTED);
  if (p.a.type == R_32F && p.out.type != R_32F) return wrong(call, "f32 factors and a bf16 result", NOT_SUPPORTED);
  if (p.d.epilogue == EPILOGUE_BIAS && p.d.bias_type >= 0 && p.d.bias_type != p.out.type)
    return wrong(call, "the type of the bias does not go with D", NOT_SUPPORTED);
  return SUCCESS;
}
}  // namespace

API size_t cublasLtGetVersion() { return 130002; }
API int cublasLtCreate(void** h) { return h ? keep(h, new Object, MAGIC_HANDLE) : (int)INVALID_VALUE; }
API int cublasLtDestroy(void* h) { return destroy<Object>(__func__, h, MAGIC_HANDLE); }

API int cublasLtMatmulDescCreate(void** d, int compute, int scale) {
  // 68: f32; 69: pedantic; 75, 77: f32 by way of bf16 or tf32, here exact as well
  if (compute != 68 && compute != 69 && compute != 75 && compute != 77) return wrong(__func__, "only f32 sums", NOT_SUPPORTED);
  if (scale != R_32F) return wrong(__func__, "only f32 scales", NOT_SUPPORTED);
  auto* made = new Desc;
  made->compute = compute, made->scale = scale;
  return keep(d, made, MAGIC_DESC);
}
API int cublasLtMatmulDescDestroy(void* d) { return destroy<Desc>(__func__, d, MAGIC_DESC); }
API int cublasLtMatmulDescSetAttribute(void* p, int attribute, const void* v, size_t n) {
  auto* d = as<Desc>(p, MAGIC_DESC);
  if (!d) return wrong(__func__, "not a descriptor of a matmul");
  bool ok = false;
  int32_t t = 0;
  switch (attribute) {
    case 0: ok = take(d->compute, v, n) && (d->compute == 68 || d->compute == 69 || d->compute == 75 || d->compute == 77); break;
    case 1: ok = take(d->scale, v, n) && d->scale == R_32F; break;
    case 2: ok = take(t, v, n) && t == 0; break;  // pointer mode: host
    case 3: ok = take(d->transa, v, n) && (d->transa == 0 || d->transa == 1); break;
    case 4: ok = take(d->transb, v, n) && (d->transb == 0 || d->transb == 1); break;
    case 7: ok = take(d->epilogue, v, n) && (d->epilogue == EPILOGUE_DEFAULT || d->epilogue == EPILOGUE_BIAS); break;
    case 8: ok = take(d->bias, v, n); break;
    case 26: ok = take(d->bias_type, v, n) && (d->bias_type == R_32F || d->bias_type == R_16BF); break;
  }
  return ok ? (int)SUCCESS : wrong(__func__, "an attribute, a value or a size that is not emulated or not valid");
}

API int cublasLtMatrixLayoutCreate(void** l, int type, uint64_t rows, uint64_t cols, int64_t ld) {
  if (type != R_32F && type != R_16BF) return wrong(__func__, "only f32 and bf16", NOT_SUPPORTED);
  if (!l || !rows || !cols || ld < (int64_t)rows) return wrong(__func__, "an empty matrix, or a leading dimension below the number of rows");
  auto* made = new Layout;
  made->type = type, made->rows = rows, made->cols = cols, made->ld = ld;
  return keep(l, made, MAGIC_LAYOUT);
}
API int cublasLtMatrixLayoutDestroy(void* l) { return destroy<Layout>(__func__, l, MAGIC_LAYOUT); }
API int cublasLtMatrixLayoutSetAttribute(void* p, int attribute, const void* v, size_t n) {
  auto* l = as<Layout>(p, MAGIC_LAYOUT);
  if (!l) return wrong(__func__, "not a description of a matrix");
  Layout next = *l;
  int32_t t = 0;
  int64_t stride = 0;
  bool ok = false;
  switch (attribute) {
    case 0: ok = take(next.type, v, n) && (next.type == R_32F || next.type == R_16BF); break;
    case 1: ok = take(t, v, n) && t == 0; break;  // column-major
    case 2: ok = take(next.rows, v, n); break;
    case 3: ok = take(next.cols, v, n); break;
    case 4: ok = take(next.ld, v, n); break;
    case 5: ok = take(t, v, n) && t == 1; break;  // no batches
    case 6: ok = take(stride, v, n); break;
  }
  if (!ok || !next.rows || !next.cols || next.ld < (int64_t)next.rows)
    return wrong(__func__, "an attribute, a value or a size that is not emulated or not valid");
  *l = next;
  return SUCCESS;
}

API int cublasLtMatmulPreferenceCreate(void** p) { return keep(p, new Preference, MAGIC_PREFERENCE); }
API int cublasLtMatmulPreferenceDestroy(void* p) { return destroy<Preference>(__func__, p, MAGIC_PREFERENCE); }
API int cublasLtMatmulPreferenceSetAttribute(void* p, int attribute, const void* v, size_t n) {
  auto* f = as<Preference>(p, MAGIC_PREFERENCE);
  if (!f) return wrong(__func__, "not a preference");
  uint32_t ignored;
  float waves;
  bool ok = attribute == 1                    ? take(f->workspace, v, n)
            : attribute >= 5 && attribute <= 8 ? take(f->alignment[attribute - 5], v, n)
            : attribute == 9                  ? take(waves, v, n)
            : attribute == 0 || attribute == 3 ? take(ignored, v, n)
                                              : false;
  return ok ? (int)SUCCESS : wrong(__func__, "an attribute or a size that is not emulated or not valid");
}

API int cublasLtMatmulAlgoGetHeuristic(void* handle, void* d, void* a, void* b, void* c, void* out, void* preference, int want,
                                       Heuristic* results, int* got) {
  Product p{};
  auto* f = as<Preference>(preference, MAGIC_PREFERENCE);
  if (!f || want < 1 || !results || !got) return wrong(__func__, "no preference, or no memory for results");
  *got = 0;
  if (int e = describe(__func__, handle, d, a, b, c, out, p)) return e;
  Heuristic& h = results[0];
  memset((void*)&h, 0, sizeof h);
  h.workspace = f->workspace < WANTED_WORKSPACE ? f->workspace : WANTED_WORKSPACE;
  // The real library reads from the bias's pointer how it is aligned.
  uint64_t bias = p.d.epilogue == EPILOGUE_BIAS ? (uint64_t)p.d.bias | 256 : 1;
  h.algo = {MAGIC_ALGO, h.workspace, p.m, p.n, p.k, bias & -bias, {f->alignment[0], f->alignment[1], f->alignment[2], f->alignment[3]}};
  h.waves = 1;
  *got = 1;
  return SUCCESS;
}
API int cublasLtMatmul(void* handle, void* d, const void* alpha, const void* pa, void* a, const void* pb, void* b, const void* beta,
                       const void* pc, void* c, void* pd, void* out, const Algo* algo, void* workspace, size_t workspace_size, void* stream) {
  Product p{};
  if (!alpha || !beta) return wrong(__func__, "no scales");
  if (int e = describe(__func__, handle, d, a, b, c, out, p)) return e;
  memcpy(&p.alpha, alpha, 4), memcpy(&p.beta, beta, 4);
  p.pa = (const char*)pa, p.pb = (const char*)pb, p.pc = (const char*)pc, p.pd = (char*)pd, p.workspace = (char*)workspace;
  if (algo) {
    if (algo->magic != MAGIC_ALGO || algo->m != p.m || algo->n != p.n || algo->k != p.k)
      return wrong(__func__, "the algorithm was chosen for another matmul");
    if (algo->workspace > workspace_size) return wrong(__func__, "less workspace than the algorithm needs");
    const void* at[] = {pa, pb, p.beta != 0 ? pc : pd, pd};
    for (int i = 0; i < 4; i++)
      if (algo->alignment[i] && (uintptr_t)at[i] % algo->alignment[i])
        return wrong(__func__, "a matrix is less aligned than was promised when the algorithm was chosen (256 bytes unless told otherwise)");
    if (p.d.epilogue == EPILOGUE_BIAS && (uintptr_t)p.d.bias % algo->bias_alignment)
      return wrong(__func__, "the bias is less aligned than the one that the algorithm was chosen with");
    p.used_workspace = algo->workspace;
  }
  if (p.d.epilogue == EPILOGUE_BIAS && !p.d.bias) return wrong(__func__, "a bias without its pointer");
  if (pd == pc && p.beta != 0 && p.c.ld != p.out.ld) return wrong(__func__, "C and D share memory with different leading dimensions");
  if (!memory_ok(p)) return wrong(__func__, "a matrix, the bias or the workspace is not in live device memory");
  int e = emulation_enqueue(stream, [](void* q) { run(*(Product*)q); }, new Product(p), [](void* q) { delete (Product*)q; });
  return e ? wrong(__func__, "the driver refused the work", e == 3 || e == 201 ? NOT_INITIALIZED : EXECUTION_FAILED) : (int)SUCCESS;
}
