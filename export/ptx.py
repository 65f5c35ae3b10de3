"""Compiles the sampling kernels to PTX: `python -m crossmost.export.ptx` after a change of `sampling.cu`.

The PTX is kept beside its source, so that nobody who installs or exports needs a compiler. NVRTC 12.1 is used, of
all versions, because it writes PTX 8.1, which every driver from CUDA 12.1 on takes; newer ones write newer PTX.
NVRTC is a library that needs no GPU: `pip install "nvidia-cuda-nvrtc-cu12==12.1.*"`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
from pathlib import Path

from crossmost.errors import InputError, WorkFailed
from crossmost.runtime.cuda_kernels import ARCHITECTURES, KERNELS, ptx_name

SOURCE = KERNELS / "sampling.cu"
WHEEL = "nvidia-cuda-nvrtc-cu12==12.1.*"
NVRTC_VERSION = (12, 1)
NEWEST_PTX = (8, 1)


def compile_ptx(source: str, architecture: int) -> str:
    """Compile CUDA C++ to PTX.

    Args:
        source: the text of a `.cu` file.
        architecture: the oldest compute capability it shall run on, such as 75 for 7.5.

    Raises:
        InputError: the wheel with NVRTC 12.1 is not installed.
        WorkFailed: the source does not compile (the first error), or the PTX is newer than 8.1.
    """
    nvrtc = _load_nvrtc()
    program = ctypes.c_void_p()
    text = source.encode()
    _check(nvrtc, nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, SOURCE.name.encode(), 0, None, None))
    try:
        options = [f"--gpu-architecture=compute_{architecture}".encode(), b"--std=c++17", b"--fmad=false"]
        status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        if status != 0:
            log = _text(nvrtc, "ProgramLog", program).strip().splitlines()
            raise WorkFailed(f"NVRTC refused the kernels: {log[0] if log else _meaning(nvrtc, status)}")
        ptx = _text(nvrtc, "PTX", program)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if ptx_version(ptx) > NEWEST_PTX:
        raise WorkFailed(
            f"expected PTX 8.1 or older, found {ptx_version(ptx)}: drivers of CUDA 12.1 refuse it"
        )
    return ptx


def ptx_version(ptx: str) -> tuple[int, int]:
    """The PTX version a module asks of the driver.

    Raises:
        WorkFailed: the text has none.
    """
    match = re.search(r"^\.version (\d+)\.(\d+)$", ptx, re.MULTILINE)
    if match is None:
        raise WorkFailed("expected PTX with a .version line, found none")
    return int(match[1]), int(match[2])


def compile_kernels(folder: Path) -> list[Path]:
    """Write the PTX of the sampling kernels for every architecture; returns the files."""
    written = []
    for architecture in ARCHITECTURES:
        path = folder / ptx_name(divmod(architecture, 10))
        path.write_text(compile_ptx(SOURCE.read_text("utf-8"), architecture), newline="\n")
        written.append(path)
    return written


def _load_nvrtc() -> ctypes.CDLL:
    spec = importlib.util.find_spec("nvidia.cuda_nvrtc") if importlib.util.find_spec("nvidia") else None
    folders = spec.submodule_search_locations if spec else None
    libraries = [path for folder in folders or () for path in sorted(Path(folder).glob("*/*nvrtc*12*"))]
    names = [path for path in libraries if "builtins" not in path.name and "alt" not in path.name]
    if not names:
        raise InputError(f'expected NVRTC 12.1, found none: pip install "{WHEEL}"')
    nvrtc = ctypes.CDLL(str(names[0]))
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(nvrtc, nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    if (major.value, minor.value) != NVRTC_VERSION:
        raise InputError(f'expected NVRTC 12.1, found {major.value}.{minor.value}: pip install "{WHEEL}"')
    return nvrtc


def _text(nvrtc: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    _check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}")(program, buffer))
    return buffer.value.decode()


def _check(nvrtc: ctypes.CDLL, status: int) -> None:
    if status != 0:
        raise WorkFailed(f"NVRTC failed: {_meaning(nvrtc, status)}")


def _meaning(nvrtc: ctypes.CDLL, status: int) -> str:
    nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
    return str(nvrtc.nvrtcGetErrorString(status).decode())


if __name__ == "__main__":
    for path in compile_kernels(KERNELS):
        print(path.name)
