"""Compiles the kernels into one fat binary: compile.py HOME OUT, with NVIDIA's libraries in HOME (build.sh fetches them).

A driver takes PTX up to its own version and cubins of its own and older compilers. So each part is by the first compiler that knows the
card: PTX, 8.0 and 9.0a by CUDA 12.0, which drivers from 525 on have, and 12.0 by CUDA 12.8, which is older than any driver of that card.
PyPI has no nvcc of CUDA 12; NVRTC is the same compiler as a library, without a preprocessor of the host's.
"""
import ctypes
import subprocess
import sys
from pathlib import Path

# What NVRTC has no file for.
STDINT = b"""
typedef unsigned char uint8_t; typedef unsigned short uint16_t; typedef unsigned int uint32_t; typedef unsigned long long uint64_t;
typedef signed char int8_t; typedef short int16_t; typedef int int32_t; typedef long long int64_t; typedef unsigned long uintptr_t;
"""
OPTIONS = [b"-std=c++17", b"-DINFINITY=__int_as_float(0x7f800000)", b"-I."]
# Compiler, card, and the PTX that it is made from. A cubin runs on later cards of the same major number (8.0 on 8.6 and 8.9), except an
# "a", which runs on its own card alone.
CUBINS = [("12.0", "80", "80"), ("12.0", "90a", "90a"), ("12.8", "120", "80")]


def strings(values):
    return (ctypes.c_char_p * len(values))(*values)


def checked(library, name, *arguments):
    status = getattr(library, name)(*arguments)
    if status != 0:
        sys.exit(f"{name}: status {status}")


def text(library, name, program):
    """What `name` answers of a program: its size is asked for first."""
    size = ctypes.c_size_t()
    checked(library, f"{name}Size", program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    checked(library, name, program, buffer)
    return buffer.raw


def ptx(home, card):
    libraries = home / "12.0/nvidia/cuda_nvrtc/lib"
    ctypes.CDLL(libraries / "libnvrtc-builtins.so.12.0", ctypes.RTLD_GLOBAL)
    nvrtc = ctypes.CDLL(libraries / "libnvrtc.so.12")
    program = ctypes.c_void_p()
    source = Path("kernels.cu").read_bytes()
    checked(nvrtc, "nvrtcCreateProgram", ctypes.byref(program), source, b"kernels.cu", 1, strings([STDINT]), strings([b"stdint.h"]))
    include = home / "12.0/nvidia/cuda_runtime/include"
    options = [f"-arch=compute_{card}".encode(), *OPTIONS, f"-I{include}".encode()]
    if nvrtc.nvrtcCompileProgram(program, len(options), strings(options)) != 0:
        sys.exit(text(nvrtc, "nvrtcGetProgramLog", program).rstrip(b"\0").decode())
    return text(nvrtc, "nvrtcGetPTX", program)


def main(home, out):
    sources = {}
    for card in ("80", "90a"):
        sources[card] = ptx(home, card)
        (home / f"{card}.ptx").write_bytes(sources[card].rstrip(b"\0"))
    nvfatbin = ctypes.CDLL(home / "12.8/nvidia/nvfatbin/lib/libnvfatbin.so.12")
    fatbin = ctypes.c_void_p()
    options = [b"-64", b"-compress-all"]
    checked(nvfatbin, "nvFatbinCreate", ctypes.byref(fatbin), strings(options), ctypes.c_size_t(len(options)))
    for version, card, source in CUBINS:
        cubin = home / f"{card}.cubin"
        ptxas = home / version / "nvidia/cuda_nvcc/bin/ptxas"
        subprocess.run([ptxas, "-O3", f"-arch=sm_{card}", home / f"{source}.ptx", "-o", cubin], check=True)
        code = cubin.read_bytes()
        checked(nvfatbin, "nvFatbinAddCubin", fatbin, code, ctypes.c_size_t(len(code)), card.encode(), b"")
    code = sources["80"]
    checked(nvfatbin, "nvFatbinAddPTX", fatbin, code, ctypes.c_size_t(len(code)), b"80", b"", b"")
    size = ctypes.c_size_t()
    checked(nvfatbin, "nvFatbinSize", fatbin, ctypes.byref(size))
    made = ctypes.create_string_buffer(size.value)
    checked(nvfatbin, "nvFatbinGet", fatbin, made)
    out.write_bytes(made.raw)


main(Path(sys.argv[1]), Path(sys.argv[2]))
