"""The precision of dense products, from the processor's units; never from a stopwatch, so that bits repeat.

On a processor without bfloat16 units a bfloat16 product is emulated: a training step then takes 4.4 times as long as in
float32.
"""

import platform
from pathlib import Path
from typing import Literal

import torch

PRODUCTS = ("bfloat16", "float32")


def product_dtype(device: str) -> Literal["bfloat16", "float32"]:
    """`bfloat16` where this device has units that multiply it, else `float32`.

    On x86: AMX or AVX512_BF16. On other CPUs: as oneDNN reports. On a GPU of Nvidia: from compute capability 8.0.

    Args:
        device: `cpu`, `cuda`, `cuda:1` …
    """
    kind = torch.device(device)
    if kind.type == "cuda":
        with torch.cuda.device(kind):
            has_units = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_units = kind.type != "cpu" or _cpu_has_units()
    return "bfloat16" if has_units else "float32"


def _cpu_has_units() -> bool:
    if platform.machine().lower() in ("x86_64", "amd64"):
        # oneDNN reports bfloat16 on every AVX-512 processor, and emulates it where there are no units.
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def processor_name() -> str:
    """The CPU's name as the kernel has it; its architecture where the kernel names none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(filter(None, names), "") or platform.processor() or platform.machine()
