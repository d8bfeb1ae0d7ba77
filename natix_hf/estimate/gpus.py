"""GPUs that people rent, by their vendor's data sheets."""

from __future__ import annotations

from dataclasses import dataclass

from natix_hf.errors import UsageError, cut, did_you_mean

# The share of a card's peak that a training of a vision transformer reaches: a guess from published figures of others,
# until benchmarks/gpu_day.py has measured it.
UTILISATION = (0.25, 0.5)
CONTEXT_BYTES = 10**9  # CUDA's own context, its libraries and what the allocator cannot give back
_USABLE = 0.95


@dataclass(frozen=True)
class Gpu:
    """One row of the table.

    Args:
        title: The full name.
        memory_gb: Memory in GB.
        bf16: Peak of dense matrix products in bfloat16 with float32 sums, in TFLOP/s; 0: it has no bfloat16.
        tf32: The same with TF32 inputs; 0: it has none.
        fp32: Peak in true float32, in TFLOP/s.
        fp16: As bf16, in float16.
    """

    title: str
    memory_gb: float
    bf16: float
    tf32: float
    fp32: float
    fp16: float

    @property
    def usable_bytes(self) -> float:
        """What tensors may take."""
        return self.memory_gb * 1e9 * _USABLE - CONTEXT_BYTES

    def peak_flops(self, dtype: str) -> float:
        """Peak FLOP/s for `bf16`, `fp16`, `tf32` or `fp32`. A GPU without TF32 computes in float32 instead."""
        return float(getattr(self, dtype) or self.fp32) * 1e12


# Data sheets of NVIDIA; dense figures, with float32 sums on GeForce cards.
GPUS = {
    "t4": Gpu("Tesla T4", 16, 0, 0, 8.1, 65),
    "v100": Gpu("Tesla V100", 16, 0, 0, 15.7, 125),
    "3090": Gpu("GeForce RTX 3090", 24, 71, 35.6, 35.6, 71),
    "4090": Gpu("GeForce RTX 4090", 24, 165.2, 82.6, 82.6, 165.2),
    "5090": Gpu("GeForce RTX 5090", 32, 209.5, 104.8, 104.8, 209.5),
    "a10g": Gpu("A10G", 24, 70, 35, 35, 70),
    "a4000": Gpu("RTX A4000", 16, 76.7, 38.3, 19.2, 76.7),
    "a5000": Gpu("RTX A5000", 24, 111.1, 55.6, 27.8, 111.1),
    "a6000": Gpu("RTX A6000", 48, 154.8, 77.4, 38.7, 154.8),
    "l4": Gpu("L4", 24, 121, 60, 30.3, 121),
    "l40s": Gpu("L40S", 48, 362, 183, 91.6, 362),
    "6000ada": Gpu("RTX 6000 Ada", 48, 364.2, 182.1, 91.1, 364.2),
    "a100": Gpu("A100 40 GB", 40, 312, 156, 19.5, 312),
    "a100-80gb": Gpu("A100 80 GB", 80, 312, 156, 19.5, 312),
    "h100": Gpu("H100 SXM", 80, 989, 494, 67, 989),
    "h200": Gpu("H200", 141, 989, 494, 67, 989),
    "b200": Gpu("B200", 180, 2250, 1125, 75, 2250),
}


def gpu_of(name: str) -> Gpu:
    """The GPU of a name, in any spelling of capitals, spaces and dashes.

    Raises:
        UsageError: If it is not in the table.
    """
    plain = _plain(name)
    for known, gpu in GPUS.items():
        if plain in (_plain(known), _plain(gpu.title), _plain(gpu.title.split(" ", 1)[-1])):
            return gpu
    raise UsageError(f"--gpu {cut(name)} is not in the table{did_you_mean(name, GPUS)}: it has {', '.join(GPUS)}")


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
