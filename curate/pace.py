"""What the steps of a run take: seconds a row of one worker, from the reports of its tasks."""

from collections import Counter
from dataclasses import dataclass, field

from curate.measure import Report


@dataclass
class Pace:
    """What the steps of this attempt took: a few numbers a step, however many tasks there were."""

    rows: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    first: dict[str, tuple[int, float]] = field(default_factory=dict)
    """(rows, seconds) of the first task, in which a step may read its lists and warm up"""
    gpu_peak_bytes: dict[str, int] = field(default_factory=dict)
    """by step of a task; the most that torch held on the GPU of a process after it"""

    def add(self, report: Report) -> None:
        """Take in one task."""
        for label, seconds in report.step_seconds.items():
            rows = report.measured[label]
            self.first.setdefault(label, (rows, seconds))
            self.rows[label] += rows
            self.seconds[label] = self.seconds.get(label, 0.0) + seconds
            if report.gpu_peak_bytes:
                self.gpu_peak_bytes[label] = max(report.gpu_peak_bytes, self.gpu_peak_bytes.get(label, 0))

    def seconds_per_row(self, label: str) -> float | None:
        """Seconds of one worker a row, without the first task where there are others; None for a step that measured nothing."""
        rows, seconds = self.first.get(label, (0, 0.0))
        if self.rows[label] > rows:
            return (self.seconds[label] - seconds) / (self.rows[label] - rows)
        return seconds / rows if rows else None
