#!/usr/bin/env python3
"""Shows that the tests notice mistakes in the kernels: mutations.py [--only TEXT] [--keep DIR]

Makes a copy of the kernels in which every row of mutations.txt is a choice at run time, builds the emulation of it once, asks every
test which rows it reaches in which kernels, and then runs, for every row and kernel, the tests that reach it, quickest first, until one
fails. Where none does, again with threads and blocks in random orders (CUDA_CPU_SEED), and at last the random plans.

The result is MUTATIONS.md. Fails where a mistake in any kernel is noticed by nothing, where a kernel has no row, and where a row's
original is not in the source exactly once.
"""
import argparse, datetime, functools, json, os, pathlib, re, shutil, subprocess, sys, tempfile, time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KERNELS = HERE.parent / "kernels"
SEEDS = ["", "1", "2", "3", "4"]
# The program of the single ops, the beginning of the names of those that run on the GPU, and the program of the random plans.
OPS, ON_GPU, PLANS = "library", r"op_agreement::(gpu_)?(f32|bf16)::", "gpu_agreement"

SWITCH = r'''#pragma once
// Which mistake is made in which kernel, and, where asked, which of them the kernels reach.
#include <map>
#include <vector>
#include <cstdio>
namespace mutation {
inline const char* text(const char* name) { const char* s = getenv(name); return s ? s : ""; }
inline const char* kernel = text("MUTATION_KERNEL");
inline const int wanted = *kernel ? atoi(text("MUTATION")) : -1;
inline const char* probe = text("MUTATION_PROBE");
struct Reached { std::map<const char*, std::vector<char>> by; const char* last = nullptr; std::vector<char>* row = nullptr; };
inline Reached& reached() { static Reached* r = new Reached; return *r; }
inline void note(int n) {
  Reached& r = reached();
  const char* now = cpu::the_block.kernel;
  if (now != r.last) r.last = now, r.row = &r.by[now], r.row->resize(1000);
  (*r.row)[n] = 1;
}
inline bool on(int n) {
  if (__builtin_expect(*probe, 0)) note(n);
  return __builtin_expect(n == wanted, 0) && !strcmp(kernel, cpu::the_block.kernel);
}
struct Report { Report() { if (*probe) atexit([] {
  FILE* f = fopen(probe, "w");
  for (cpu::Kernel* k = cpu::kernels(); k; k = k->next) fprintf(f, "kernel %s\n", k->name);
  for (auto& [name, row] : reached().by)
    for (int n = 0; n < (int)row.size(); n++) if (row[n]) fprintf(f, "%d %s\n", n, name);
  fclose(f);
}); } };
inline Report report;
}
#define M(n) mutation::on(n)
'''


class Row:
    def __init__(self, file, anchor, what):
        self.file, self.anchor, self.what = file, anchor, what
        self.original, self.mutated, self.within, self.card = [], [], "", ""

    def __str__(self):
        return f"{self.file}, {self.anchor}: {self.what}"


def table():
    rows, file, anchor = [], None, None
    for number, line in enumerate((HERE / "mutations.txt").read_text().splitlines(), 1):
        if line.startswith("## "):
            file, anchor = line[3:], None
        elif line.startswith("@ "):
            anchor = line[2:]
        elif line.startswith("* "):
            rows.append(Row(file, anchor, line[2:]))
        elif line.startswith("- "):
            rows[-1].original.append(line[2:])
        elif line.startswith("+ "):
            rows[-1].mutated.append(line[2:])
        elif line.startswith("in: "):
            rows[-1].within = line[4:]
        elif line.startswith("card only: "):
            rows[-1].card = line[11:]
        elif line.strip() and not line.startswith("#"):
            sys.exit(f"mutations.txt:{number}: what is {line!r}?")
    return rows


def function(text, anchor, row):
    """Where the function that starts with the anchor begins and ends."""
    if text.count(anchor) != 1:
        sys.exit(f"{row}: {anchor!r} is {text.count(anchor)} times in {row.file}, not once")
    start = text.index(anchor)
    depth = 0
    for at in range(text.index("{", start), len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return start, at + 1
    sys.exit(f"{row}: {anchor!r} does not end")


def span(text, row):
    """Where the text that a row replaces begins and ends."""
    start, end = function(text, row.anchor, row)
    pattern = r"\s*".join(re.escape(line.replace("«", "\1").replace("»", "\2")) for line in row.original)
    if "\1" in pattern:
        pattern = pattern.replace("\\\1", "\1").replace("\\\2", "\2").replace("\1", "(?P<it>").replace("\2", ")")
    found = list(re.finditer(pattern, text[start:end]))
    if len(found) != 1:
        sys.exit(f"{row}: the original is there {len(found)} times, not once:\n  " + "\n  ".join(row.original))
    a, b = found[0].span("it" if "it" in found[0].groupdict() else 0)
    return start + a, start + b


def render(text, at, end, edits):
    """text[at:end] with its edits, the widest outermost. An edit: (start, end, row number, row)."""
    out = []
    edits = sorted(edits, key=lambda e: (e[0], -e[1], e[2]))
    while edits:
        a, b, number, row = edits.pop(0)
        inner = [e for e in edits if e[0] < b]
        edits = edits[len(inner):]
        for e in inner:
            if e[1] > b:
                sys.exit(f"{row} and {e[3]} overlap")
        out.append(text[at:a])
        body, mutated = render(text, a, b, inner), "\n".join(row.mutated)
        if text[b - 1] == ";":
            out.append(f"{{ if (M({number})) {{ {mutated} }} else {{ {body} }} }}")
        else:
            if not mutated:
                sys.exit(f"{row}: an expression cannot be nothing")
            out.append(f"(M({number}) ? ({mutated}) : ({body}))")
        at = b
    out.append(text[at:end])
    return "".join(out)


def build(rows, folder):
    """The kernels with all mistakes in them, and the emulation of them."""
    shutil.rmtree(folder / "kernels", ignore_errors=True)
    shutil.copytree(KERNELS, folder / "kernels", ignore=shutil.ignore_patterns("*.fatbin", "*.sh"))
    for path in (folder / "kernels").iterdir():
        text = path.read_text()
        edits = [(*span(text, row), n, row) for n, row in enumerate(rows) if row.file == path.name]
        text = render(text, 0, len(text), edits)
        if path.name == "ptx.cuh":
            text = text.replace("#pragma once\n", '#pragma once\n#include "mutation.h"\n', 1)
        path.write_text(text)
    (folder / "kernels" / "mutation.h").write_text(SWITCH)
    run = subprocess.run(["sh", HERE / "build.sh", folder / "out"], env={**os.environ, "KERNELS": str(folder / "kernels/kernels.cu")})
    if run.returncode:
        sys.exit("the mutated kernels do not compile")
    return folder / "out/libcuda_emulated.so"


def binaries():
    line = ["cargo", "test", "-p", "tests", "--test", OPS, "--test", PLANS, "--no-run", "--message-format=json"]
    found = {}
    for message in subprocess.run(line, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines():
        message = json.loads(message)
        if message.get("executable"):
            found[message["target"]["name"]] = message["executable"]
    return found


class Runner:
    def __init__(self, library):
        self.programs, self.library, self.times = binaries(), str(library), {}

    def tests(self):
        listed = subprocess.run([self.programs[OPS], "--list"], check=True, stdout=subprocess.PIPE, text=True).stdout
        return [line.split(": ")[0] for line in listed.splitlines() if line.endswith(": test") and re.match(ON_GPU, line)]

    @functools.cache
    def unmutated_passes(self, test, seed):
        return self.passes(test, seed)

    def passes(self, test, seed="", **more):
        """A test by its name, or all of the random plans. Their cases are the same every time."""
        line = [self.programs[PLANS]] if test == PLANS else [self.programs[OPS], "--exact", test]
        quiet = {"PROPTEST_RNG_SEED": "1", "PROPTEST_MAX_SHRINK_ITERS": "0", "PROPTEST_DISABLE_FAILURE_PERSISTENCE": "true"}
        env = {**os.environ, **quiet, "DINO_LIBCUDA": self.library, "RUST_BACKTRACE": "0", **more}
        env.pop("CUDA_CPU_SEED", None)
        if seed:
            env["CUDA_CPU_SEED"] = seed
        limit = 60 + 20 * self.times.get(test, 60)
        try:
            return subprocess.run(line, env=env, cwd=ROOT / "tests", timeout=limit, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
        except subprocess.TimeoutExpired:
            return False


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose file, function or text contains this; writes no MUTATIONS.md")
    parser.add_argument("--keep", type=pathlib.Path, help="build here, and leave it")
    options = parser.parse_args()
    began, rows = time.time(), table()
    folder = (options.keep or pathlib.Path(tempfile.mkdtemp())).resolve()
    folder.mkdir(exist_ok=True, parents=True)
    runner = Runner(build(rows, folder))

    # Which test reaches what. All of them pass while no mistake is made.
    reach, kernels, report = {}, set(), folder / "reached"
    tests = runner.tests()
    for test in [*tests, PLANS]:
        start = time.time()
        if not runner.passes(test, MUTATION_PROBE=str(report)):
            sys.exit(f"{test} fails as it is")
        runner.times[test] = time.time() - start
        for line in report.read_text().splitlines():
            number, kernel = line.split()
            if number == "kernel":
                kernels.add(kernel)
            else:
                reach.setdefault((int(number), kernel), []).append(test)
    print(f"{len(rows)} mistakes, {len(kernels)} kernels, {len(tests)} tests; {time.time() - began:.0f} s so far", flush=True)

    caught, missed, card, bare = {n: {} for n in range(len(rows))}, [], [], set(kernels)
    for n, row in enumerate(rows):
        if options.only not in str(row):
            continue
        where = sorted(k for m, k in reach if m == n and re.search(row.within, k))
        if not where:
            missed.append((row, "no kernel"))
        for kernel in where:
            by = None
            found = sorted(reach[n, kernel], key=lambda t: runner.times[t])
            # Only what is missing between threads, or written by two, depends on their order.
            race = "too many" in row.what or re.search("sync|cp_|load\\(", " ".join(row.original))
            for test, seed in [(t, s) for s in (SEEDS if race else [""]) for t in found if t != PLANS or not (s or row.card)]:
                if not runner.passes(test, seed, MUTATION=str(n), MUTATION_KERNEL=kernel):
                    if not runner.unmutated_passes(test, seed):
                        sys.exit(f"{test} fails as it is with CUDA_CPU_SEED={seed}")
                    by = test + (f", seed {seed}" if seed else "")
                    break
            if by:
                caught[n].setdefault(by, []).append(kernel)
                bare.discard(kernel)
            else:
                (card if row.card else missed).append((row, kernel))
            print(f"{row} | {kernel} | {by or 'MISSED'}", flush=True)

    for row, kernel in missed:
        print(f"MISSED: {row}, in {kernel}")
    if not options.only:
        for kernel in sorted(bare):
            print(f"no mistake in {kernel} is noticed")
        write(rows, caught, missed, card, bare, len(kernels), began)
    if not options.keep:
        shutil.rmtree(folder)
    sys.exit(1 if missed or (bare and not options.only) else 0)


def write(rows, caught, missed, card, bare, kernels, began):
    """MUTATIONS.md."""
    pairs = sum(len(k) for by in caught.values() for k in by.values())
    day = datetime.date.today().isoformat()
    out = ["# Mistakes in the kernels, and what notices them", "",
           f"`dino-gpu/emulate/mutations.py`, {day}, {(time.time() - began) / 60:.0f} minutes: {len(rows)} mistakes, made one at a time in every kernel that they",
           f"reach: {pairs} caught, {len(missed)} missed, {len(card)} that only a card can notice. {kernels - len(bare)} of {kernels} kernels have a mistake that is caught.", "",
           "Tests are those of `tests/tests/library/op_agreement.rs`, and `gpu_agreement` where none of them does; seeds are `CUDA_CPU_SEED`.", ""]
    if missed or bare:
        out += ["Missed:", ""] + [f"- {row}: {kernel}" for row, kernel in missed] + [f"- {k}: nothing" for k in sorted(bare)] + [""]
    out += ["| where | mistake | kernels | caught by |", "|---|---|---|---|"]
    for n, row in enumerate(rows):
        where = f"`{row.anchor.rstrip('(')}` in {row.file}"
        for by, names in caught[n].items():
            out.append(f"| {where} | {row.what} | {' '.join(names)} | {by} |")
        lost = [k for r, k in card if r is row]
        if lost:
            out.append(f"| {where} | {row.what} | {' '.join(lost)} | card only: {row.card} |")
    (HERE / "MUTATIONS.md").write_text("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
