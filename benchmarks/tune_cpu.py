"""Badly configured trainings, each with one fault: which findings appear, what they promise, what came, and `tune`.

    python benchmarks/tune_cpu.py                          # seven trainings and ten controls, an hour and a half
    python benchmarks/tune_cpu.py --only padding float32   # some; the others' figures are kept
    python benchmarks/tune_cpu.py --only controls
    python benchmarks/tune_cpu.py --budget 5m              # per training; fewer trials decide less

The trainings are those of examples/badly_configured.py. A gain counts as inside where what was obtained lies within the
predicted low … high. A control is the same kind of training without the fault; a finding on one that promises more than
the noise and that a trial does not confirm is false.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import result_path, write_result
from tabulate import tabulate

from effprof.advise.segments import NOISE
from effprof.advise.verification import WIDE

TRAINING = Path(__file__).resolve().parent.parent / "examples" / "badly_configured.py"
CASES = (
    "tiny_micro_batches",
    "float32",
    "starved_loader",
    "synchronising_loop",
    "full_recompute",
    "padding",
    "skewed_moe",
)
CONTROLS = tuple((case, seed) for seed, cases in ((1, CASES), (2, CASES[:3])) for case in cases)
CONTROL_STEPS = 300


def effprof(folder: Path, *arguments: str) -> dict[str, Any]:
    """The JSON that an effprof command prints; trials of this benchmark teach nothing to the user's own."""
    done = subprocess.run(
        [sys.executable, "-m", "effprof.cli.main", *arguments],
        cwd=folder,
        env={**os.environ, "EFFPROF_CALIBRATION": "off"},
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode not in (0, 1):
        raise SystemExit(f"effprof {' '.join(arguments)}: exit code {done.returncode}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def tune(case: str, budget: str) -> dict[str, Any]:
    """What `effprof tune` makes of a training."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(TRAINING), case]
        tuned = effprof(Path(folder), "tune", "--budget", budget, "--json", "--", *command)
    return {
        "budget": budget,
        "baseline": tuned["baseline"],
        "final": {name: value for name, value in tuned["final"].items() if name != "knobs" and value is not None},
        "speed_up": 1 + tuned["gain"]["value"] if tuned["gain"] else 1.0,
        "gain": tuned["gain"],
        "steps": [{key: value for key, value in step.items() if key != "seconds"} for step in tuned["steps"]],
        "stopped": tuned["stopped"],
        "seconds": tuned["seconds"],
    }


def control(case: str, seed: int, budget: str) -> dict[str, Any]:
    """The findings on a training without its fault, each tried where a trial can."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        command = [sys.executable, str(TRAINING), case, "--good", "--seed", str(seed)]
        with (root / "output.txt").open("w") as output:
            subprocess.run(
                [*command, "--steps", str(CONTROL_STEPS)], cwd=root, stdout=output, stderr=output, check=True
            )
        found = effprof(root, "recommend", "effprof_runs", "--json")
        findings = []
        for each in found["findings"]:
            if each["gain"]["likely"] <= NOISE:
                continue
            finding = {"finding": each["id"], "predicted": each["gain"], "verdict": "not tried"}
            if each["changes"]:
                options = ("--finding", each["id"], "--budget", budget, "--json")
                verified = effprof(root, "verify", "effprof_runs", *options, "--", *command)
                finding |= {"verdict": verified["verdict"], "obtained": verified["obtained"]}
            findings.append(finding)
    return {"case": case, "seed": seed, "findings": findings}


def is_decided(step: dict[str, Any]) -> bool:
    """Whether a trial measured a gain, and not only that the machine was too noisy to tell one."""
    interval = step["obtained"] and step["obtained"]["ci95"]
    return bool(interval) and (step["verdict"] in ("confirmed", "refuted") or interval[1] - interval[0] <= WIDE)


def summarise(tuned: dict[str, Any], controls: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures that stand for the whole."""
    steps = [step for each in tuned.values() for step in each["steps"]]
    gains = [step for step in steps if is_decided(step)]
    confirmed = [step for step in gains if step["verdict"] == "confirmed"]
    widths, by_rule = (
        [step[name]["high"] - step[name]["low"] for step in gains] for name in ("predicted", "predicted_from_record")
    )
    false = sum(finding["verdict"] != "confirmed" for each in controls for finding in each["findings"])
    return {
        "tried": len(steps),
        "verified": len(gains),
        "confirmed": len(confirmed),
        "inside": sum(bool(step["is_as_predicted"]) for step in gains),
        "median_predicted_width": float(np.median(widths)) if widths else None,
        "median_predicted_width_from_record": float(np.median(by_rule)) if by_rule else None,
        "inside_from_record": sum(
            step["predicted_from_record"]["low"] <= step["obtained"]["value"] <= step["predicted_from_record"]["high"]
            for step in gains
        ),
        "controls": len(controls),
        "controls_with_a_false_finding": sum(
            any(finding["verdict"] != "confirmed" for finding in each["findings"]) for each in controls
        ),
        "false_findings": false,
        "load_average": os.getloadavg()[0],
    }


def show(tuned: dict[str, Any], summary: dict[str, Any]) -> None:
    """The table."""
    rows = []
    for case, each in tuned.items():
        for step in each["steps"] or [{"finding": "none"}]:
            predicted, obtained = step.get("predicted"), step.get("obtained")
            rows.append(
                [
                    case,
                    step["finding"],
                    f"{predicted['likely']:+.1%} ({predicted['low']:+.1%} … {predicted['high']:+.1%})"
                    if predicted
                    else "",
                    f"{obtained['value']:+.1%} ({obtained['ci95'][0]:+.1%} … {obtained['ci95'][1]:+.1%})"
                    if obtained and obtained["ci95"]
                    else "",
                    step.get("verdict", ""),
                    {True: "yes", False: "no", None: ""}[step.get("is_as_predicted")],
                    f"{each['speed_up']:.2f}",
                ]
            )
    heads = ("training", "finding", "predicted", "obtained", "verdict", "inside", "speed-up by tune")
    print(tabulate(rows, headers=heads, disable_numparse=True))
    print(json.dumps(summary, indent=1))


def main() -> None:
    """Runs what is asked for, keeps the other figures, and writes after each, so that it can be stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=(*CASES, "controls"), default=(*CASES, "controls"))
    parser.add_argument("--budget", default="20m", help="of each tuning")
    parser.add_argument("--control-budget", default="2m", help="of each verification on a control")
    parser.add_argument("--out", type=Path, default=result_path("tune_cpu"))
    given = parser.parse_args()
    old = json.loads(given.out.read_text()) if given.out.exists() else {}
    tuned, controls = old.get("tuned", {}), old.get("controls", [])
    if "controls" in given.only:
        controls = []

    def save() -> dict[str, Any]:
        summary = summarise(tuned, controls)
        write_result("tune_cpu", {"summary": summary, "tuned": tuned, "controls": controls}, given.out)
        return summary

    for case in CASES:
        if case in given.only:
            tuned[case] = tune(case, given.budget)
            save()
    if "controls" in given.only:
        for case, seed in CONTROLS:
            controls.append(control(case, seed, given.control_budget))
            save()
    show(tuned, save())


if __name__ == "__main__":
    main()
