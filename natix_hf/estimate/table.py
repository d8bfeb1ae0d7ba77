"""The table of `natix-hf smoke` and `natix-hf estimate`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from natix_hf.disk import as_size
from natix_hf.terminal import minutes

TITLES = {
    0: "decode and split",
    1: "train the baseline",
    2: "threshold",
    3: "gate",
    4: "ExPLoRA and its classifier",
    5: "calibrate and certify",
    6: "evaluate and export",
}
_ROW = "{:<30}  {:>10}  {:>10}  {:>20}  {:>10}"


@dataclass(frozen=True)
class Row:
    """One phase.

    Args:
        title: What is done.
        pictures_per_s: Pictures a second of its training, from the fewest to the most.
        memory: Bytes at the peak.
        seconds: The time, from the least to the most.
        disk: Bytes that it leaves.
    """

    title: str
    pictures_per_s: tuple[float, float] | None = None
    memory: int | None = None
    seconds: tuple[float, float] | None = None
    disk: int | None = None


@dataclass(frozen=True)
class Forecast:
    """What a run will need.

    Args:
        rows: The phases in their order.
        checkpoints: Bytes of checkpoints while the largest training runs. They are removed after it.
        lines: What the table does not say: how it was found, and advice.
        faults: What would not fit, or did not work.
        price_per_hour: Of the whole machine, in any currency.
    """

    rows: list[Row]
    checkpoints: int = 0
    lines: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    price_per_hour: float | None = None

    @property
    def seconds(self) -> tuple[float, float]:
        """The whole time, from the least to the most."""
        times = [row.seconds for row in self.rows if row.seconds is not None]
        return sum(low for low, _ in times), sum(high for _, high in times)

    @property
    def disk(self) -> int:
        """Bytes on the disk while the run needs the most."""
        return sum(row.disk or 0 for row in self.rows) + self.checkpoints

    def told(self) -> Iterator[str]:
        """The lines that a person reads."""
        yield _ROW.format("phase", "pictures/s", "memory", "time", "disk").rstrip()
        for row in self.rows:
            speed = "" if row.pictures_per_s is None else _between(*(f"{value:,.0f}" for value in row.pictures_per_s))
            yield _ROW.format(row.title, speed, _size(row.memory), _time(row.seconds), _size(row.disk)).rstrip()
        peak = max((row.memory or 0 for row in self.rows), default=0)
        if self.checkpoints:
            yield _ROW.format("checkpoints, while it trains", "", "", "", _size(self.checkpoints))
        yield _ROW.format("all", "", _size(peak or None), _time(self.seconds), _size(self.disk)).rstrip()
        if self.price_per_hour is not None:
            low, high = (second / 3600 * self.price_per_hour for second in self.seconds)
            yield f"cost     {_between(f'{low:.2f}', f'{high:.2f}')} at {self.price_per_hour:g} an hour"
        yield from self.lines
        yield from (f"warning: {fault}" for fault in self.faults)


def _between(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _time(seconds: tuple[float, float] | None) -> str:
    return "" if seconds is None else _between(*(minutes(value) for value in seconds))


def _size(count: int | None) -> str:
    return "" if count is None else as_size(count)
