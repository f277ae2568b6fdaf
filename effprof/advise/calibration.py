"""What verified trials on this machine taught about each rule's promises.

One line of JSON per trial in `calibration.jsonl` under `$XDG_STATE_HOME/effprof` (`~/.local/state/effprof`);
`EFFPROF_CALIBRATION=off` neither reads nor writes it, another value is the file's path.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from effprof.analysis.model import Finding, Gain

FILE = "calibration.jsonl"
PRIOR_TRIALS = 2.0  # weight of the rule's own promise, in trials: one lucky or unlucky trial moves it by a third


class Trial(msgspec.Struct, kw_only=True):
    """One verified change: what was promised and what came."""

    rule: str
    predicted: Gain
    obtained: float
    ci95: tuple[float, float]
    verdict: str
    device: str = ""
    when_s: float = 0.0


@dataclass(frozen=True)
class Calibration:
    """The trials known, by rule."""

    trials: dict[str, list[Trial]] = field(default_factory=dict)

    def adjust(self, finding: Finding) -> Finding:
        """The finding with its gain scaled by how this rule's promises came true, and the count of trials.

        The scale is the mean of obtained ÷ likely over the trials, each within 0 … 2, shrunk towards 1 by a prior of
        two trials: a rule that over-promises loses rank, and none is silenced by a single trial.
        """
        trials = [each for each in self.trials.get(finding.id, []) if each.predicted.likely > 0]
        if not trials:
            return finding
        ratios = np.clip([each.obtained / each.predicted.likely for each in trials], 0.0, 2.0)
        scale = float((PRIOR_TRIALS + ratios.sum()) / (PRIOR_TRIALS + len(trials)))
        gain = finding.gain
        low, likely, high = (min(value * scale, gain.bound) for value in (gain.low, gain.likely, gain.high))
        adjusted = Gain(low=min(low, likely), likely=likely, high=max(likely, high), bound=gain.bound, basis=gain.basis)
        return msgspec.structs.replace(finding, gain=adjusted, trials=len(trials))


def calibration_path() -> Path | None:
    """Where trials are kept; None where the user opted out."""
    chosen = os.environ.get("EFFPROF_CALIBRATION", "")
    if chosen.lower() in ("off", "0", "no"):
        return None
    if chosen:
        return Path(chosen)
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "effprof" / FILE


def load_calibration(path: Path | None = None) -> Calibration:
    """The trials in the file; lines that cannot be read are passed over, no file is no trials."""
    path = path or calibration_path()
    trials: dict[str, list[Trial]] = {}
    try:
        lines = path.read_bytes().splitlines() if path else []
    except OSError:
        lines = []
    for line in lines:
        try:
            trial = msgspec.json.decode(line, type=Trial)
        except msgspec.DecodeError:
            continue
        trials.setdefault(trial.rule, []).append(trial)
    return Calibration(trials)


def remember(trial: Trial, path: Path | None = None) -> Path | None:
    """Appends a trial; gives the file, or None where the user opted out."""
    path = path or calibration_path()
    if path is None:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(msgspec.json.encode(trial) + b"\n")
    return path
