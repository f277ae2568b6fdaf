"""Turns a chip's name, as a runtime prints it or a person types it, into words that can be compared."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

# Words that say who made a chip; the catalogue's vendor each one stands for.
VENDOR_WORDS = {
    "nvidia": "NVIDIA",
    "tesla": "NVIDIA",
    "geforce": "NVIDIA",
    "quadro": "NVIDIA",
    "amd": "AMD",
    "instinct": "AMD",
    "radeon": "AMD",
    "intel": "Intel",
    "huawei": "Huawei",
    "ascend": "Huawei",
    "apple": "Apple",
    "google": "Google",
    "tpu": "Google",
    "aws": "AWS",
    "hygon": "Hygon",
    "cambricon": "Cambricon",
    "metax": "MetaX",
    "iluvatar": "Iluvatar",
    "biren": "Biren",
    "enflame": "Enflame",
    "kunlunxin": "Kunlunxin (Baidu)",
    "cerebras": "Cerebras",
    "graphcore": "Graphcore",
}
# Words that never tell two chips apart. "quadro", "rtx", "pro", "ada", "max" and the like do, and stay.
_FILLER = {"nvidia", "tesla", "geforce", "amd", "instinct", "radeon", "intel", "apple", "google", "aws", "huawei"}
_FILLER |= {"corporation", "inc", "gpu", "graphics", "generation", "edition", "accelerator", "tensor", "core"}

_MIG = re.compile(r"\bMIG\b[\s-]*(?P<profile>\d+(?:c\.\d+)?g\.(?P<gb>\d+)gb\S*)?", re.IGNORECASE)
_MEMORY_WORD = re.compile(r"^(\d+(?:\.\d+)?)gb$")
_REWRITES = (
    (re.compile(r"\(r\)|\(tm\)|[®™]"), " "),
    (re.compile(r"[^a-z0-9.]+"), " "),
    (re.compile(r"(?<!\d)\.|\.(?!\d)"), " "),
    (re.compile(r"\b(bi|mr) ?(v\d+)"), r"\1\2"),  # BI-V100 must not answer to V100
    (re.compile(r"\bmi (?=\d)"), "mi"),
    (re.compile(r"\b(rtx|gtx|rx|tpu|ascend|gaudi)(?=v?\d)"), r"\1 "),
    (re.compile(r"\b(m\d)(pro|max|ultra)\b"), r"\1 \2"),
    (re.compile(r"\b([a-z]{0,2}\d{2,4})(sxm|pcie|nvl)"), r"\1 \2"),
    (re.compile(r"\bsxm\d\b"), "sxm"),
    (re.compile(r"\b(\d+(?:\.\d+)?) ?(?:gb|gib|g)\b"), r"\1gb"),
)


@dataclass(frozen=True)
class ChipName:
    """A name taken apart.

    `words` keep their order and lack filler; `model_words` also lack memory sizes. `vendor` is set where a word
    of the name says it. `slice_profile` is the MIG profile ("3g.40gb") or "" for a MIG name without one, else None.
    """

    text: str
    words: tuple[str, ...]
    model_words: tuple[str, ...]
    memory_gb: float | None
    vendor: str | None
    slice_profile: str | None
    slice_memory_gb: float | None

    @property
    def names_a_chip(self) -> bool:
        """Whether some word could be a model designation: "NVIDIA", "HBM3" or "80GB" alone name nothing."""
        return any(any(c.isdigit() for c in word) and not word.startswith("hbm") for word in self.model_words)


@lru_cache(maxsize=2048)
def parse_name(text: str) -> ChipName:
    """Take a chip's name apart; case, vendor prefix, hyphens and brackets do not matter."""
    mig = _MIG.search(text)
    plain = (text[: mig.start()] + text[mig.end() :]) if mig else text
    plain = plain.lower()
    for pattern, replacement in _REWRITES:
        plain = pattern.sub(replacement, plain)
    every = plain.split()
    words = tuple(word for word in every if word not in _FILLER)
    sizes = [float(match.group(1)) for match in map(_MEMORY_WORD.match, words) if match]
    return ChipName(
        text=text.strip(),
        words=words,
        model_words=tuple(word for word in words if not _MEMORY_WORD.match(word)),
        memory_gb=sizes[0] if len(sizes) == 1 else None,
        vendor=next((VENDOR_WORDS[word] for word in every if word in VENDOR_WORDS), None),
        slice_profile=(mig.group("profile") or "").lower() if mig else None,
        slice_memory_gb=float(mig.group("gb")) if mig and mig.group("gb") else None,
    )
