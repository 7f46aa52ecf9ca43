"""What the CPU can do, as Linux says; no torch is imported before something needs it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

#: CPU features that decide which kernels run, as Linux names them
CPU_FLAGS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "bf16",
    "i8mm",
    "sve",
)


def cpu_flags() -> list[str]:
    """Return those of :data:`CPU_FLAGS` that the processor has; empty where Linux is not."""
    found = set(cpuinfo("flags", "Features").split())
    return [flag for flag in CPU_FLAGS if flag in found]


def cpuinfo(*keys: str) -> str:
    """Return the first value of one of these keys in ``/proc/cpuinfo``, or nothing."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return ""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return ""


@functools.cache
def bfloat16_units() -> Literal["matrix", "vector"] | None:
    """Tell what multiplies bfloat16 in this CPU and is used by torch.

    Returns:
        ``matrix`` (AMX), ``vector`` (AVX512-BF16), or None: it would be imitated, or (ARM) nobody
        has measured whether it pays.
    """
    import torch

    if not torch.backends.mkldnn.is_available():
        return None
    flags = cpu_flags()

    def usable(flag: str, ask: str) -> bool:
        torch_knows = getattr(torch.cpu, ask, None)
        return flag in flags and (torch_knows is None or torch_knows())

    if usable("amx_bf16", "_is_amx_tile_supported"):
        return "matrix"
    return "vector" if usable("avx512_bf16", "_is_avx512_bf16_supported") else None
