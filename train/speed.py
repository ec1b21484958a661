"""How fast it trains, from the clock and the exact count of operations."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Speed:
    """flops: operations of one sample's training step. peak: FLOP/s of one device. None: not known."""

    flops: float | None = None
    peak: float | None = None
    devices: int = 1

    def of(self, samples: int, seconds: float) -> dict[str, float | None]:
        """{"images_per_second", "tflops" (per device), "mfu" in [0, 1]} of training `samples` in `seconds` > 0."""
        rate = samples / seconds
        each = rate * self.flops / self.devices if self.flops else None
        return {
            "images_per_second": rate,
            "tflops": each / 1e12 if each else None,
            "mfu": each / self.peak if each and self.peak else None,
        }
