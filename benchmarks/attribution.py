"""Known delays put into real Lightning trainings, and the line of the time account that each second of them went to.

    python benchmarks/attribution.py                       # every case, about 20 minutes on two cores
    python benchmarks/attribution.py --cases input_sleep   # some of them
    python benchmarks/attribution.py --write-docs          # also the table in docs/accuracy.md

Each case is a training with one delay and the same training without it. What was injected is timed around the delay
itself; what was attributed is the difference between the two accounts in the line where the delay belongs. A case holds
when at least 95 % and at most 105 % of the injected time is there, and at most 5 % of the wall clock after start-up is
unattributed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common import result_path, write_result
from tabulate import tabulate

from effprof.analysis.analyze import analyze
from effprof.analysis.model import Account, Analysis
from effprof.runlog.reader import open_run

TRAINING = Path(__file__).resolve().with_name("attribution_training.py")
ACCURACY = Path(__file__).resolve().parent.parent / "docs" / "accuracy.md"
BEGIN, END = "<!-- attribution:begin -->", "<!-- attribution:end -->"
LEAST, MOST, UNATTRIBUTED = 0.95, 1.05, 0.05
STEPS = 40
PAUSE_S = 3.0


@dataclass(frozen=True)
class Case:
    """One delay: the training with it, the one without, and the line it belongs in (of `rank`'s own account)."""

    name: str
    baseline: str
    line: str
    what: str
    rank: int = 0


CASES = (
    Case("input_sleep", "baseline", "step.input_wait", "sleep in the dataset"),
    Case("transfer_sleep", "baseline", "step.host_to_device", "sleep in the transfer of a batch"),
    Case("busy_step", "baseline", "step.forward", "host busy in `training_step`, host clock only"),
    Case("busy_step_window", "baseline_window", "step.host_gap", "host busy in `training_step`, with a kernel window"),
    Case("busy_callback", "baseline", "step.other", "host busy in another callback's batch hooks"),
    Case("optimizer_sleep", "baseline", "step.optimizer", "sleep in the optimizer's step"),
    Case("recompute", "recompute_off", "step.backward", "activation checkpointing: forward run again in backward"),
    Case("compile", "compile_fast", "compile", "sleep in a `torch.compile` backend"),
    Case("evaluation_sleep", "evaluation", "evaluation", "sleep in `validation_step`"),
    Case("checkpoint_sleep", "checkpoint", "checkpoint", "sleep while a checkpoint is saved"),
    Case("logging_sleep", "logging", "logging", "sleep in a logger"),
    Case("slow_rank", "two_ranks", "step.forward", "sleep in rank 1's forward: its own account", rank=1),
    Case("slow_rank_waits", "two_ranks", "step.backward", "the same, rank 0's account: it waits in the all-reduce"),
    Case("router_skewed", "router_even", "step.forward", "skewed router: the rank with the busy experts works longer"),
)
RESTARTS = ("crashed", "killed")


@dataclass
class Outcome:
    """What one case came to."""

    case: str
    what: str
    line: str
    injected_s: float
    attributed_s: float
    share: float
    unattributed: float  # of the wall clock after start-up
    elsewhere: str  # the other line that grew most
    note: str = ""
    shares: tuple[float, ...] = ()  # of all repeats; the rest is of the one with the median

    @property
    def holds(self) -> bool:
        return LEAST <= self.share <= MOST and self.unattributed <= UNATTRIBUTED


class Trainings:
    """Runs trainings, each kind once, and keeps their analyses."""

    def __init__(self, folder: Path, steps: int) -> None:
        self._folder = folder
        self._steps = steps
        self._done: dict[str, Analysis] = {}

    def run(self, case: str) -> Analysis:
        """The analysis of a training of `case`."""
        if case not in self._done:
            self.start(case)
            self._done[case] = analyze(open_run(str(self._folder / case / "run")))
        return self._done[case]

    def start(self, case: str, *arguments: str, is_failing: bool = False) -> None:
        """Run a training to its end."""
        folder = self._folder / case
        folder.mkdir(exist_ok=True)
        command = [sys.executable, str(TRAINING), case, str(folder), str(self._steps), *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with open(folder / "output", "ab") as output:
            done = subprocess.run(
                command, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL, timeout=600
            )
        if (done.returncode != 0) is not is_failing:
            raise RuntimeError(f"{case}: status {done.returncode}\n{(folder / 'output').read_text()[-3000:]}")

    def injected(self, case: str, rank: int) -> float:
        """Seconds that the training says it was delayed on `rank`."""
        return float(json.loads((self._folder / case / f"injected-{rank}.json").read_text()))

    def path(self, case: str) -> Path:
        return self._folder / case


def measure(case: Case, trainings: Trainings) -> Outcome:
    """Run a case and its baseline and compare their accounts."""
    with_delay, without = trainings.run(case.name.removesuffix("_waits")), trainings.run(case.baseline)
    rank = case.rank
    injected = trainings.injected(case.name.removesuffix("_waits"), 1 if case.name == "slow_rank_waits" else rank)
    account, before = (analysis.ranks[rank].account for analysis in (with_delay, without))
    grown = {name: seconds - before.lines.get(name, 0.0) for name, seconds in account.lines.items()}
    attributed = grown.get(case.line, 0.0)
    others = {name: s for name, s in grown.items() if name not in (case.line, "startup")}
    most = max(others, key=lambda name: others[name])
    note = ""
    if case.name == "recompute":
        note = _recompute_note(with_delay, without)
    if case.name == "router_skewed":
        note = _router_note(with_delay, without)
    return Outcome(
        case.name,
        case.what,
        case.line,
        round(injected, 3),
        round(attributed, 3),
        round(attributed / injected, 4),
        round(unattributed_share(account), 4),
        f"{most} {others[most]:+.3f} s",
        note,
    )


def unattributed_share(account: Account) -> float:
    """Share of the wall clock after start-up that no line explains."""
    return account.lines["unattributed"] / (account.wall_s - account.lines["startup"])


def _recompute_note(with_delay: Analysis, without: Analysis) -> str:
    shares = [analysis.run.flops.get("recompute_share") for analysis in (with_delay, without)]
    return f"recomputed FLOPs ÷ model FLOPs {shares[0]:.3f} (without {shares[1]:.3f})"


def _router_note(with_delay: Analysis, without: Analysis) -> str:
    return " vs ".join(
        f"busiest expert {a.moe.imbalance:.2f} × mean" if a.moe and a.moe.imbalance else "not sampled"
        for a in (with_delay, without)
    )


def measure_restart(case: str, trainings: Trainings) -> list[Outcome]:
    """A training that stops between two checkpoints and is resumed: steps made again, one cut short, and the gap.

    After an exception the record ends when the training did, so that both lines are known. A kill leaves no last word:
    up to a second before it is not in the record, and the two lines are judged together.
    """
    from attribution_training import SAVED_EVERY, STOPPED_AT, UNFINISHED_S

    trainings.start(case, is_failing=True)
    ended_s = time.time()
    time.sleep(PAUSE_S)
    trainings.start(case, "resume")
    run = open_run(str(trainings.path(case) / "run"))
    analysis = analyze(run)
    rows = [line.split() for line in (trainings.path(case) / "stamps").read_text().splitlines()]
    stamps = [(int(step), float(unix_s)) for step, unix_s in rows]
    again = next(i for i in range(1, len(stamps)) if stamps[i - 1][0] >= stamps[i][0])
    redone = [end for step, end in stamps[again:] if step <= STOPPED_AT]
    # the first step after the resume has no stamp before it: its length comes from the others, which sleep alike
    lost_s = (redone[-1] - redone[0]) * len(redone) / (len(redone) - 1) + UNFINISHED_S
    first, second = (attempt.ranks[0] for attempt in run.attempts)
    ended_s = first.wall(first.end.monotonic_ns) if first.end else stamps[again - 1][1] + UNFINISHED_S
    gap_s = second.header.process_start_s - ended_s
    lines = analysis.account.lines
    note = (
        f"{len(redone)} steps after the checkpoint at {STOPPED_AT // SAVED_EVERY * SAVED_EVERY}, and the one under way"
    )
    if case == "killed":
        found = [("lost_steps + restart", f"killed and resumed: {note}, and the gap", lost_s + gap_s)]
    else:
        found = [
            ("lost_steps", f"exception, resumed: {note}", lost_s),
            ("restart", "exception, resumed: until the new process starts", gap_s),
        ]
    unattributed = round(unattributed_share(analysis.account), 4)
    outcomes = []
    for names, what, seconds in found:
        there = sum(lines[name] for name in names.split(" + "))
        share = round(there / seconds, 4)
        outcomes.append(Outcome(case, what, names, round(seconds, 3), round(there, 3), share, unattributed, ""))
    return outcomes


def middle(repeats: list[Outcome]) -> Outcome:
    """The repeat with the median share, with the shares of all."""
    ordered = sorted(repeats, key=lambda outcome: outcome.share)
    return replace(ordered[len(ordered) // 2], shares=tuple(outcome.share for outcome in ordered))


def read_outcomes() -> list[Outcome]:
    """What the last run on this kind of machine wrote: cases that are measured again replace their rows."""
    path = result_path("attribution")
    if not path.exists():
        return []
    written = json.loads(path.read_text())["outcomes"]
    return [Outcome(**{name: value for name, value in one.items() if name != "holds"}) for one in written]


def table(outcomes: list[Outcome]) -> str:
    """The outcomes as a Markdown table."""
    rows = [
        [
            outcome.what + (f" ({outcome.note})" if outcome.note else ""),
            f"`{outcome.line}`",
            f"{outcome.injected_s:.2f} s",
            f"{outcome.attributed_s:.2f} s",
            f"{100 * outcome.share:.1f} %",
            f"{100 * outcome.shares[0]:.1f} … {100 * outcome.shares[-1]:.1f} %",
            f"{100 * outcome.unattributed:.2f} %",
            "yes" if outcome.holds else "no",
        ]
        for outcome in outcomes
    ]
    heads = ["injected", "line", "injected time", "in that line", "share", "all repeats", "unattributed", "95 … 105 %"]
    return tabulate(rows, headers=heads, tablefmt="pipe", disable_numparse=True)


def write_docs(text: str, result: dict[str, Any]) -> None:
    """Put the table between its marks in docs/accuracy.md, which is made where it is missing."""
    page = ACCURACY.read_text() if ACCURACY.exists() else f"# How accurate the figures are\n\n{BEGIN}\n{END}\n"
    if BEGIN not in page:
        page += f"\n## Where injected seconds land\n\n{BEGIN}\n{END}\n"
    machine, versions = result["machine"], result["versions"]
    about = (
        f"Made by `benchmarks/attribution.py` on {result['date']}: {machine['cpu']}, {machine['cores']} cores, torch "
        f"{versions['torch']}, Lightning {versions['pytorch-lightning']}. Each row is a real Lightning training with "
        "one known delay against the same training without it; of the repeats the one with the median share is shown."
    )
    before, rest = page.split(BEGIN)
    ACCURACY.write_text(f"{before}{BEGIN}\n{about}\n\n{text}\n{END}{rest.split(END)[1]}")


def main() -> int:
    """Run the cases, print the table, return how many don't hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", nargs="*", help="names of cases; all by default")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--repeats", type=int, default=3, help="the one with the median share is shown")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", type=Path, help="keep the runs here")
    parser.add_argument("--write-docs", action="store_true")
    arguments = parser.parse_args()
    found: dict[tuple[str, str], list[Outcome]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for repeat in range(arguments.repeats):
            folder = (arguments.folder or Path(temporary)) / f"repeat-{repeat}"
            folder.mkdir()
            trainings = Trainings(folder, arguments.steps)
            for case in (*CASES, *RESTARTS):
                name = case if isinstance(case, str) else case.name
                if arguments.cases and name not in arguments.cases:
                    continue
                new = measure_restart(case, trainings) if isinstance(case, str) else [measure(case, trainings)]
                for outcome in new:
                    print(outcome, file=sys.stderr)
                    found.setdefault((outcome.case, outcome.line), []).append(outcome)
    outcomes = [middle(repeats) for repeats in found.values()]
    known = {(o.case, o.line): o for o in read_outcomes()} if arguments.cases and arguments.write_docs else {}
    outcomes = list({**known, **{(o.case, o.line): o for o in outcomes}}.values())
    path = write_result("attribution", {"outcomes": [{**asdict(o), "holds": o.holds} for o in outcomes]}, arguments.out)
    text = table(outcomes)
    print(text)
    if arguments.write_docs:
        write_docs(text, json.loads(path.read_text()))
    return sum(not outcome.holds for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main())
