"""What this machine and installation offer, and what is wrong with them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zim._extras import missing_by_extra
from zim.errors import install_advice, one_line
from zim.processor import cpu_flags

Status = Literal["ok", "note", "warning", "error"]

#: distributions that all install the package ``cv2``; two at once overwrite each other's files
CV2_DISTRIBUTIONS = (
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    value: str
    status: Status = "ok"
    #: what to do about it; empty when all is well
    advice: str = ""


def examine() -> list[Check]:
    """Run every check; a check that fails is an error line, never an exception."""
    checks: list[Check] = []
    steps: tuple[Callable[[], list[Check]], ...] = (
        _python,
        _torch,
        _cpu,
        _gpu,
        _opencv,
        _home,
        _bundled_model,
        _extras,
    )
    for step in steps:
        try:
            checks += step()
        except Exception as error:  # a broken install breaks in unforeseen ways; report them all
            name = step.__name__.strip("_").replace("_", " ")
            line = one_line(error)
            checks.append(Check(name, line, "error", "reinstall zim-toolkit"))
    return checks


def _python() -> list[Check]:
    where = f"{platform.python_implementation()} {platform.python_version()}"
    return [
        Check("zim-toolkit", importlib.metadata.version("zim-toolkit")),
        Check("python", f"{where} on {platform.system()} {platform.machine()}"),
    ]


def _torch() -> list[Check]:
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    if getattr(torch.version, "hip", None):
        build = f"ROCm {torch.version.hip}"
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} processors"
    override = os.environ.get("ZIM_THREADS") or os.environ.get("OMP_NUM_THREADS")
    return [
        Check("torch", f"{torch.__version__}, {build}"),
        Check("threads", threads + (f" (set to {override})" if override else "")),
    ]


def _cpu() -> list[Check]:
    import torch

    found = torch.backends.cpu.get_cpu_capability()
    if not Path("/proc/cpuinfo").is_file():
        return [Check("cpu", f"{found} (torch)")]
    names = {
        "avx2": "AVX2",
        "avx512f": "AVX-512",
        "avx512_bf16": "AVX-512 bf16",
        "amx_tile": "AMX",
        "amx_bf16": "AMX bf16",
        "asimd": "NEON",
    }
    flags = cpu_flags()
    has = [label for flag, label in names.items() if flag in flags]
    return [Check("cpu", f"{found} (torch); {', '.join(has) or 'no vector extensions found'}")]


def _gpu() -> list[Check]:
    import torch

    if torch.cuda.is_available():
        devices: list[Check] = []
        for index in range(torch.cuda.device_count()):
            info = torch.cuda.get_device_properties(index)
            memory = info.total_memory / 2**30
            devices.append(Check(f"gpu cuda:{index}", f"{info.name}, {memory:.0f} GiB"))
        return devices
    if torch.backends.mps.is_available():
        return [Check("gpu", "Apple MPS")]
    return [Check("gpu", "none; everything runs on the CPU", "note")]


def _opencv() -> list[Check]:
    installed: list[str] = []
    for name in CV2_DISTRIBUTIONS:
        try:
            installed.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    import cv2

    value = f"{cv2.__version__} ({', '.join(installed) or 'not from a Python package'})"
    if len(installed) > 1:
        advice = "they overwrite each other's files; uninstall all of them and install one again"
        return [Check("opencv", value, "warning", advice)]
    return [Check("opencv", value)]


def _home() -> list[Check]:
    from zim.weights import zim_home
    from zim.weights.store import offline

    folder = zim_home()
    network = " (offline: no downloads)" if offline() else ""
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        advice = "set ZIM_HOME to a folder that can be written"
        return [Check("ZIM_HOME", f"{folder}: {error.strerror}", "error", advice)]
    return [Check("ZIM_HOME", f"{folder}, writable{network}")]


def _bundled_model() -> list[Check]:
    from zim.weights import REGISTRY

    checks: list[Check] = []
    for row in REGISTRY.values():
        if not row.bundled:
            continue
        if row.installed():
            size = row.path().stat().st_size / 1e6
            checks.append(Check("bundled model", f"{row.name}, {size:.1f} MB"))
        else:
            checks.append(Check("bundled model", f"{row.name} is missing", "error", "reinstall"))
    return checks


def _extras() -> list[Check]:
    checks: list[Check] = []
    for extra, missing in missing_by_extra().items():
        if missing:
            value = f"not installed (missing {', '.join(missing)})"
            checks.append(Check(f"extra {extra}", value, "note", install_advice(extra)))
        else:
            checks.append(Check(f"extra {extra}", "installed"))
    return checks
