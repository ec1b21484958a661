"""How fast it trains, from the clock and the exact count of operations: for each line that is written down."""

from __future__ import annotations

from dataclasses import dataclass, field

from train.flops import TERA


@dataclass
class Speed:
    """Speed since the last line.

    flops: operations of one sample's training step. peak: FLOP/s of one device, None if unknown. devices: how many.
    """

    flops: float
    peak: float | None
    devices: int = 1
    since: float | None = field(default=None, init=False)
    steps: int = field(default=0, init=False)

    def start(self, step: int, now: float) -> None:
        """Start the clock (again): after `step` steps, at `now` seconds. What lay between is nobody's speed."""
        self.steps, self.since = step, now

    def update(self, step: int, samples: int, now: float) -> dict[str, float | None]:
        """The speed since the last call, with `step` steps of `samples` pictures done in all, at `now` seconds.

        {"images_per_second", "tflops" (per device), "mfu" in [0, 1]}; mfu is None where the peak is not known. Empty
        before the clock was started and if nothing was done since.
        """
        done, since = step - self.steps, self.since
        self.start(step, now)
        if since is None or done <= 0 or now <= since:
            return {}
        rate = done * samples / (now - since)
        each = rate * self.flops / self.devices
        return {
            "images_per_second": rate,
            "tflops": each / TERA,
            "mfu": each / self.peak if self.peak else None,
        }
