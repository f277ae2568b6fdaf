"""Turns the table that `nvidia-smi`'s likes draw into samples: which of its columns is which reading."""

from __future__ import annotations

import re
from dataclasses import dataclass

from effprof.hardware.probes.base import Reason
from effprof.hardware.probes.tool import Sample
from effprof.hardware.probes.tool_text import bus_id, drawn_table, number, used_of_total, watts_of_limit

_DRIVER = re.compile(r"Driver(?:\s+Ver(?:sion)?)?\s*:?\s+v?(\d[\w.\-]*)|Driver Version:\s*(\d[\w.\-]*)")


@dataclass(frozen=True)
class DrawnColumns:
    """Names of a table's columns; a quantity that the tool does not print has none.

    `memory` holds used and total, `power` what is drawn and the cap.
    """

    index: str
    name: str
    bus: str
    memory: str = ""
    power: str = ""
    utilization: str = ""
    temperature: str = ""
    clock: str = ""
    memory_clock: str = ""

    def samples(self, text: str) -> list[Sample]:
        """A sample per device of the table in `text`; none where there is no such table."""
        driver = _DRIVER.search(text)
        version = next((group for group in driver.groups() if group), None) if driver else None
        return [self._sample(row, version) for row in drawn_table(text, self.name, self.bus)]

    def _sample(self, row: dict[str, str], driver: str | None) -> Sample:
        values: dict[str, float | None] = {}
        reasons: dict[str, Reason] = {}
        for reading, column in (
            ("utilization_percent", self.utilization),
            ("temperature_c", self.temperature),
            ("sm_clock_mhz", self.clock),
            ("memory_clock_mhz", self.memory_clock),
        ):
            if column:
                values[reading] = number(row.get(column))
        if self.memory:
            used, total = used_of_total(row.get(self.memory))
            values |= {"memory_used_bytes": used, "memory_total_bytes": total}
            if used is None and re.search(r"\d", row.get(self.memory, "")):
                reasons |= dict.fromkeys(("memory_used_bytes", "memory_total_bytes"), "error")
        if self.power:
            drawn, limit = watts_of_limit(row.get(self.power))
            values |= {"power_w": drawn, "power_limit_w": limit}
        missing = [column for column in (self.utilization, self.temperature, self.memory, self.power) if column]
        if any(column not in row for column in missing):  # lines cut off, or columns of another release
            for name in (name for name, value in values.items() if value is None):
                reasons.setdefault(name, "parse")
        return Sample(
            index=row.get(self.index, ""),
            name=row[self.name],
            values=values,
            pci_bus_id=bus_id(row.get(self.bus)),
            driver=driver,
            reasons=reasons,
        )
