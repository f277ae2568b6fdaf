"""How far blocks of one A/B test lie apart: segments one after the other against segments that take turns.

    python benchmarks/turns.py             # 6 blocks of each kind, about 7 minutes
    python benchmarks/turns.py --quick     # 2 short ones, to see that it works

Both kinds test the same change of the same training (examples/badly_configured.py), a block of each in alternation.
What is reported is the standard deviation over blocks of log(rate with the change ÷ rate without).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic

import numpy as np
from common import result_path, write_result

from effprof.advise.segments import SegmentResult, speed_gain
from effprof.advise.trial import fresh_directory, run_trial
from effprof.advise.turns import run_in_turns

TRAINING = Path(__file__).resolve().parent.parent / "examples" / "badly_configured.py"
COMMAND = [sys.executable, str(TRAINING), "tiny_micro_batches"]
CHANGES = {"micro_batch": 16, "accumulate": 1}
Block = Callable[[Path, float], Sequence[SegmentResult]]


def one_after_the_other(folder: Path, seconds: float) -> Sequence[SegmentResult]:
    """A segment without the change, then one with it."""
    return [run_trial(COMMAND, changes, fresh_directory(folder, "alone"), seconds=seconds) for changes in ({}, CHANGES)]


def in_turns(folder: Path, seconds: float) -> Sequence[SegmentResult]:
    """Both at once, one of them stepping."""
    own, changed = (fresh_directory(folder, "turns") for _ in range(2))
    return run_in_turns(COMMAND, ({}, own), (CHANGES, changed), seconds=seconds, timeout_s=600)


def main() -> None:
    """Alternates, and writes both spreads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=result_path("turns"))
    given = parser.parse_args()
    blocks, seconds = (2, 2.0) if given.quick else (6, 10.0)
    kinds: dict[str, Block] = {"one_after_the_other": one_after_the_other, "in_turns": in_turns}
    gains: dict[str, list[float]] = {name: [] for name in kinds}
    wall_s = dict.fromkeys(kinds, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(blocks):
            for name, block in kinds.items():
                began = monotonic()
                own, changed = block(Path(folder), seconds)
                gains[name].append(speed_gain([own], [changed]))
                wall_s[name] += monotonic() - began
    figures = {
        name: {
            "gains": [round(gain, 4) for gain in found],
            "log_ratio_sd": round(float(np.std(np.log1p(found), ddof=1)), 4),
            "block_s": round(wall_s[name] / blocks, 1),
        }
        for name, found in gains.items()
    }
    write_result("turns", {"seconds": seconds, **figures}, given.out)
    for name, each in figures.items():
        print(f"{name}: standard deviation {each['log_ratio_sd']:.3f}, {each['block_s']:.0f} s a block")


if __name__ == "__main__":
    main()
