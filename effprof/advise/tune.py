"""Tuning: measure, recommend, verify the best, keep what is confirmed, and again until nothing is left above noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import msgspec

from effprof.advise.calibration import load_calibration
from effprof.advise.recommend import RISK_WEIGHTS, recommend
from effprof.advise.rehearsal import read_rehearsed, with_rehearsal
from effprof.advise.segments import NOISE
from effprof.advise.trial import fresh_directory, run_trial
from effprof.advise.verification import (
    FAILED,
    Obtained,
    Progress,
    Verification,
    merge_changes,
    verify_command,
)
from effprof.advise.verified import keep
from effprof.analysis.analyze import examine
from effprof.analysis.model import Analysis, Finding, Gain, _says
from effprof.analysis.timeline import build_timeline
from effprof.errors import EffprofError
from effprof.runlog.reader import open_run

SCHEMA = "effprof.tune/1"
MEASURED_SHARE, MIN_MEASURED_S, MAX_MEASURED_S = 1 / 20, 3.0, 30.0  # of the budget, stepping in a measuring trial
VERIFIED_SHARE = 0.25  # of the budget at most for one change, so that one that can't be decided leaves time for others
# Changes are rehearsed in processes of their own, as these differ, within this share of the budget.
MAX_REHEARSED, REHEARSALS, REHEARSED_SHARE, MIN_REHEARSED_S = 8, 8, 0.25, 2.0
MIN_VERIFICATION_S = 60.0  # three short processes of each side that take ten seconds to start; fewer decide little


class TunedRate(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Throughput; the one that could be measured."""

    tokens_per_s: float | None = None
    samples_per_s: float | None = None


class Final(TunedRate, kw_only=True, omit_defaults=False):
    """The configuration that the tuning ended with."""

    changes: Annotated[dict[str, Any], _says("all changes kept, in the vocabulary of `effprof.advise.changes`")] = {}
    knobs: Annotated[dict[str, list[str]], _says("FRAMEWORK: snippets to paste, in the order kept")] = {}


class TuneStep(msgspec.Struct, kw_only=True):
    """One change that was tried."""

    finding: str
    predicted: Annotated[Gain, _says("as rehearsed, where the change can be; else as the rule predicted")]
    predicted_from_record: Annotated[Gain, _says("by the rule alone, from what the measuring trial recorded")]
    obtained: Obtained | None
    kept: bool
    verdict: str
    reason: str = ""
    changes: dict[str, Any] = {}
    is_as_predicted: bool | None = None
    is_loss_damaged: bool = False
    seconds: float = 0.0


class Tuned(msgspec.Struct, kw_only=True):
    """What `effprof tune` answers."""

    schema: Annotated[str, _says("names this document's keys")] = SCHEMA
    baseline: TunedRate
    final: Final
    steps: list[TuneStep] = []
    gain: Annotated[
        Obtained | None, _says("of final over baseline, from one A/B test; null where nothing was kept")
    ] = None
    stopped: Annotated[str, _says("why the tuning ended")] = ""
    trials: Annotated[str, _says("directory of all trials")] = ""
    is_interrupted: bool = False
    seconds: float = 0.0


def tune(
    command: Sequence[str], folder: Path, *, budget_s: float = 600.0, progress: Progress = lambda _: None
) -> Tuned:
    """Finds the fastest configuration of a training command that its findings lead to.

    Each change is kept only where an A/B test on this machine confirms it and the loss is unharmed. Where more than
    one was kept, the end is a test of the first configuration against the last; where that does not confirm a gain, the
    tuning falls back to the first change alone, which was tested against the first configuration itself.

    Args:
        command: the training as it is started by hand, with EfficiencyCallback in it.
        folder: where the trials' runs go.
        budget_s: no trial begins that would not end within it, except the first measurement.
        progress: told what happens.

    Raises:
        EffprofError: the command can't be run, or the training can't be measured.
    """
    tuning = _Tuning(list(command), folder, budget_s, progress)
    try:
        tuning.run()
    except KeyboardInterrupt:
        tuning.stopped, tuning.is_interrupted = "interrupted", True
    return tuning.result()


@dataclass
class _Tuning:
    command: list[str]
    folder: Path
    budget_s: float
    progress: Progress
    began: float = field(default_factory=monotonic)
    changes: dict[str, Any] = field(default_factory=dict)
    kept: list[tuple[Finding, Verification]] = field(default_factory=list)
    steps: list[TuneStep] = field(default_factory=list)
    tried: set[str] = field(default_factory=set)
    from_record: dict[str, Gain] = field(default_factory=dict)
    metric: str = "tokens_per_s"
    baseline: float | None = None
    final: float | None = None
    gain: Obtained | None = None
    stopped: str = ""
    is_interrupted: bool = False

    @property
    def left_s(self) -> float:
        return self.budget_s - (monotonic() - self.began)

    def run(self) -> None:
        findings = self.measure()
        while True:
            finding = next((each for each in findings if self.is_candidate(each)), None)
            if finding is None:
                self.stopped = "no finding above the noise is left to try"
                break
            if self.tried and self.left_s - self.reserve_s < MIN_VERIFICATION_S:
                self.stopped = f"the budget of {self.budget_s:.0f} s is used up"
                break
            if self.try_finding(finding):
                findings = self.measure()
        if len(self.kept) > 1:
            self.test_the_whole()

    @property
    def reserve_s(self) -> float:
        """Time kept back for the last test, once a second change may need one."""
        return self.budget_s * VERIFIED_SHARE / 2 if self.kept else 0.0

    def measure(self) -> list[Finding]:
        """What the training as it is now could still gain, the best first."""
        place = fresh_directory(self.folder, "measured")
        kept = ", ".join(finding.id for finding, _ in self.kept)
        self.progress(f"measuring with {kept}" if kept else "measuring the training as it is")
        seconds = min(MAX_MEASURED_S, max(MIN_MEASURED_S, self.budget_s * MEASURED_SHARE))
        left = max(60.0, self.left_s)
        segment = run_trial(self.command, self.changes, place, seconds=seconds, timeout_s=left, is_measuring=True)
        if segment.outcome != "ok":
            if self.kept:
                return []
            raise EffprofError(f"the training could not be measured: {segment.reason}", f"its output is in {place}")
        analysis = _analysis(place)
        if self.baseline is None:
            self.metric, self.baseline = segment.metric, segment.rate
        return self.rehearsed(self.recommended(analysis))

    def rehearsed(self, findings: list[Finding]) -> list[Finding]:
        """The findings with the gains of more trials that time their changes in their own processes."""
        self.from_record = {each.id: each.gain for each in findings}
        wanted = [each.changes for each in findings if self.is_candidate(each)][:MAX_REHEARSED]
        if not wanted:
            return findings
        began, found, analyses = monotonic(), [], []
        share_s = REHEARSED_SHARE * self.budget_s
        # starting the process takes the other half
        each_s = max(MIN_REHEARSED_S, share_s / REHEARSALS / 2 / len(wanted))
        for count in range(1, REHEARSALS + 1):
            place = fresh_directory(self.folder, "rehearsed")
            left = max(60.0, self.left_s)
            trial = run_trial(
                self.command,
                self.changes,
                place,
                seconds=MIN_MEASURED_S,
                timeout_s=left,
                rehearse=wanted,
                rehearse_s=each_s,
            )
            rehearsed = read_rehearsed(place) if trial.outcome == "ok" else []
            for each in rehearsed:
                self.progress(f"rehearsed {each.changes}: " + (each.reason or f"model time × {each.ratio:.3f}"))
            if not any(each.ratio for each in rehearsed):
                break
            found += rehearsed
            analyses.append(_analysis(place))
            if (monotonic() - began) * (count + 1) / count > share_s:
                break
        return _ordered([with_rehearsal(each, found, analyses) for each in findings]) if found else findings

    def recommended(self, analysis: Analysis) -> list[Finding]:
        found = recommend(analysis, load_calibration()).findings
        names = ", ".join(f"{each.id} ({each.gain.likely:+.0%})" for each in found[:5]) or "none"
        self.progress(f"findings: {names}")
        return _ordered(found)

    def is_candidate(self, finding: Finding) -> bool:
        """Whether a trial can make it, it concerns the steps, promises more than noise and is new."""
        is_new = finding.id not in self.tried and merge_changes(self.changes, finding.changes) != self.changes
        return bool(finding.changes) and finding.gain.basis == "steady" and finding.gain.likely > NOISE and is_new

    def try_finding(self, finding: Finding) -> bool:
        """Whether the finding's change was kept."""
        self.tried.add(finding.id)
        self.progress(f"{finding.id}: trying {finding.changes}, predicted {finding.gain.likely:+.1%}")
        verification = verify_command(
            self.command,
            finding.changes,
            self.folder / finding.id,
            base=self.changes,
            finding=finding,
            budget_s=min(self.left_s - self.reserve_s, max(MIN_VERIFICATION_S, self.budget_s * VERIFIED_SHARE)),
            progress=lambda text: self.progress(f"  {text}"),
        )
        is_kept = verification.is_good and not verification.is_interrupted
        self.steps.append(_step(finding, self.from_record[finding.id], verification, is_kept))
        self.progress(f"{finding.id}: {verification.verdict}: {verification.reason}")
        if verification.is_interrupted:
            raise KeyboardInterrupt
        if verification.verdict != FAILED:
            keep(verification, None)
        if is_kept:
            if not self.kept:
                self.baseline, self.gain = verification.before, verification.obtained
            self.kept.append((finding, verification))
            self.changes = merge_changes(self.changes, finding.changes)
            self.final = verification.after
        return is_kept

    def test_the_whole(self) -> None:
        """The first configuration against the last, and back to what is proven where that shows no gain."""
        self.progress("testing the whole against the training as it was")
        whole = verify_command(
            self.command,
            self.changes,
            self.folder / "whole",
            budget_s=max(MIN_VERIFICATION_S, self.left_s),
            progress=lambda text: self.progress(f"  {text}"),
        )
        if whole.is_interrupted or not whole.is_good:
            self.fall_back(whole)
        else:
            self.baseline, self.final, self.gain = whole.before, whole.after, whole.obtained

    def fall_back(self, whole: Verification) -> None:
        first, verification = self.kept[0]
        self.kept, self.changes = [(first, verification)], dict(first.changes)
        self.baseline, self.final, self.gain = verification.before, verification.after, verification.obtained
        for step in self.steps:
            step.kept = step.finding == first.id
        why = "interrupted" if whole.is_interrupted else f"{whole.verdict}: {whole.reason}"
        self.stopped = f"back to {first.id} alone, as the whole was not confirmed ({why})"
        self.is_interrupted = whole.is_interrupted

    def result(self) -> Tuned:
        knobs: dict[str, list[str]] = {}
        for finding, _ in self.kept:
            for framework, snippet in finding.knobs.items():
                knobs.setdefault(framework, []).append(snippet)
        rate = self.final if self.kept else self.baseline
        return Tuned(
            baseline=TunedRate(**{self.metric: self.baseline}),
            final=Final(changes=self.changes, knobs=knobs, **{self.metric: rate}),
            steps=self.steps,
            gain=self.gain,
            stopped=self.stopped,
            trials=str(self.folder),
            is_interrupted=self.is_interrupted,
            seconds=monotonic() - self.began,
        )


def _analysis(place: Path) -> Analysis:
    record = open_run(str(place))
    examined = examine(record)
    peak = examined.analysis.efficiency.mfu.peak_flops_per_s
    examined.analysis.timeline = build_timeline(record, peak_flops_per_s=peak, steps=examined.steps)
    return examined.analysis


def _ordered(findings: list[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda each: -each.gain.likely * RISK_WEIGHTS[each.risk_level])


def _step(finding: Finding, from_record: Gain, verification: Verification, is_kept: bool) -> TuneStep:
    return TuneStep(
        finding=finding.id,
        predicted=finding.gain,
        predicted_from_record=from_record,
        obtained=verification.obtained,
        kept=is_kept,
        verdict=verification.verdict,
        reason=verification.reason,
        changes=dict(finding.changes),
        is_as_predicted=verification.is_as_predicted,
        is_loss_damaged=bool(verification.loss and verification.loss.is_damaged),
        seconds=verification.seconds,
    )
