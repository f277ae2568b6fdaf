"""Reads what `rocm-smi --json` prints, AMD's and the one that Hygon ships under the same and another name.

Keys were renamed between releases and differ between the two in words and units, so each reading knows the patterns
of its key; the unit stands in the key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from effprof.hardware.probes.tool import Sample
from effprof.hardware.probes.tool_text import NO_VALUE, bus_id, number, size

_CARD = re.compile(r"card(\d+)$")
# Reading → patterns of its key, the first that is there and holds a number counts.
_KEYS: Mapping[str, tuple[str, ...]] = {
    "power_w": (
        r"current socket graphics package power \(w\)",
        r"average graphics package power \(w\)",
        r"(?:current|average)? ?socket power \(w\)",
    ),
    "power_limit_w": (r"max graphics package power \(w\)",),
    "temperature_c": (r"temperature \(sensor junction\) \(c\)", r"temperature \(sensor edge\) \(c\)"),
    "memory_temperature_c": (r"temperature \(sensor mem(?:ory)?\) \(c\)",),
    "utilization_percent": (r"(?:gpu|dcu|hcu) use \(%\)",),
    "sm_clock_mhz": (r"sclk clock speed:?",),
    "memory_clock_mhz": (r"mclk clock speed:?",),
}
_MEMORY = {
    "memory_used_bytes": re.compile(r"vram total used memory \((\w+)\)", re.IGNORECASE),
    "memory_total_bytes": re.compile(r"vram total memory \((\w+)\)", re.IGNORECASE),
}
_NAMES = ("card series", "device name", "card model", "market name")
# Microjoules per unit of the counter are in the key's own text where a release prints energy at all.
_ENERGY = re.compile(r"accumulated energy \(uj\)", re.IGNORECASE)
_PATTERNS = {name: [re.compile(each, re.IGNORECASE) for each in keys] for name, keys in _KEYS.items()}


def samples(text: str) -> list[Sample]:
    """A sample per card; log lines before the document are passed over.

    Raises:
        ValueError: there is no JSON document, or it is torn.
    """
    document = json.loads(text[text.index("{") :])
    system = document.get("system") if isinstance(document.get("system"), dict) else {}
    driver = _cell(system, "driver version")
    return [
        _sample(found[1], card, driver)
        for key, card in document.items()
        if (found := _CARD.match(key)) and isinstance(card, dict)
    ]


def _sample(index: str, card: Mapping[str, Any], driver: str | None) -> Sample:
    values: dict[str, float | None] = {}
    for reading, patterns in _PATTERNS.items():
        cells = [str(value) for pattern in patterns for key, value in card.items() if pattern.fullmatch(key.strip())]
        if cells:
            values[reading] = next((value for value in map(number, cells) if value is not None), None)
    for reading, pattern in _MEMORY.items():
        for key, value in card.items():
            if found := pattern.fullmatch(key.strip()):
                values[reading] = size(str(value), found[1])
    for key, value in card.items():
        if _ENERGY.fullmatch(key.strip()):
            microjoules = number(str(value))
            # a counter that reads 0 does not count: it stands still on some consumer cards
            values["energy_j"] = microjoules / 1e6 if microjoules else None
    uuid = _cell(card, "unique id")
    return Sample(
        index=index,
        name=next((name for name in (_cell(card, each) for each in _NAMES) if name), "") or f"card{index}",
        values=values,
        uuid=uuid if uuid and uuid.strip("0x") else None,
        pci_bus_id=bus_id(_cell(card, "pci bus")),
        driver=driver,
    )


def _cell(card: Mapping[str, Any], name: str) -> str | None:
    for key, value in card.items():
        if key.strip().lower() == name and str(value).strip().lower() not in NO_VALUE:
            return str(value).strip()
    return None
