"""What verifications leave behind: a file in the run they were made for, and a line in the calibration file."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from effprof.advise.calibration import Trial, remember
from effprof.advise.verification import Verification

VERIFIED = "verified"  # directory in a run


def keep(verification: Verification, run: str | None, device: str = "") -> None:
    """Writes a verification into its run, and what it teaches about the rule into the calibration file."""
    obtained, finding = verification.obtained, verification.finding
    if finding is None:
        return
    if run is not None:
        target = Path(run) / VERIFIED / f"{finding}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(msgspec.json.encode(verification) + b"\n")
    if obtained is None or obtained.ci95 is None or verification.predicted is None:
        return
    remember(
        Trial(
            rule=finding,
            predicted=verification.predicted,
            obtained=obtained.value,
            ci95=obtained.ci95,
            verdict=verification.verdict,
            device=device,
            when_s=time.time(),
        )
    )


def verified_findings(run: str) -> dict[str, Verification]:
    """Finding → its verification in this run; nothing for a run that is not a local directory."""
    found = {}
    for path in sorted(Path(run).glob(f"{VERIFIED}/*.json")):
        try:
            verification = msgspec.json.decode(path.read_bytes(), type=Verification)
        except (OSError, msgspec.DecodeError):
            continue
        if verification.finding:
            found[verification.finding] = verification
    return found
