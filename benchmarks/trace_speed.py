"""effprof against HTA and against the floor (decompress and decode) on the same traces: seconds and peak memory.

    python benchmarks/trace_speed.py                      # the real traces, and one of 500 MB made from the largest
    python benchmarks/trace_speed.py --repeats 3 --no-large

Each measurement is a process of its own; arms take turns, so that a busy machine slows all of them. `seconds` is the
work without the interpreter's start and the imports, `cpu_s` what the process used of the processors for it, `peak_mb`
the largest resident set of the whole process, imports included. Arms:
  effprof  account_traces: the whole kernel account
  hta      TraceAnalysis with its temporal breakdown and the overlap of communication and compute
  floor    read, decompress, and decode all events into typed structs with msgspec, at once
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

from common import summarise, write_result
from tabulate import tabulate
from trace_inputs import MISSING, SHARED, list_traces, replicate

ARMS = ("effprof", "hta", "floor")
LARGE_SOURCE = SHARED / "hta_control.json.gz"
SMALLEST_EVENTS = 1000  # below that, a trace measures nothing but calls

ARM_SOURCE = """
import json, logging, re, sys, time, warnings
arm, path = sys.argv[1:]
def peak_mb():  # VmHWM and not ru_maxrss: that one begins with the parent's
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024 / 1e6
warnings.simplefilter("ignore"); logging.disable(50)
if arm == "effprof":
    from effprof.trace.account import account_traces
    def work(): return sum(one.events for one in account_traces(path).ranks.values())
elif arm == "hta":
    from hta.trace_analysis import TraceAnalysis
    def work():
        analysis = TraceAnalysis(trace_files={0: path}, include_last_profiler_step=True)
        analysis.get_temporal_breakdown(visualize=False); analysis.get_comm_comp_overlap(visualize=False)
        return sum(len(frame) for frame in analysis.t.traces.values())
else:
    import gzip, msgspec
    class Event(msgspec.Struct, gc=False):
        ph: str = ""; cat: str | None = None; name: str = ""; ts: float | int | None = None
        dur: float | int | None = None
    class Trace(msgspec.Struct):
        traceEvents: list[Event]
    def work():
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
            return len(msgspec.json.decode(file.read(), type=Trace).traceEvents)
began, used = time.perf_counter(), time.process_time()
events = work()
print(json.dumps({"seconds": time.perf_counter() - began, "cpu_s": time.process_time() - used, "events": events,
                  "peak_mb": peak_mb()}))
"""


def measure(arm: str, path: Path, timeout_s: float) -> dict[str, float] | str:
    """One run of an arm in a process of its own; what went wrong where it fails."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", ARM_SOURCE, arm, str(path)],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired:
        return f"not done after {timeout_s:.0f} s"
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else f"killed by signal {-done.returncode}"
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(path: Path, repeats: int, arms: tuple[str, ...], timeout_s: float) -> dict[str, Any]:
    """All arms on one trace, in turns."""
    runs: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    failures: dict[str, str] = {}
    for _ in range(repeats):
        for arm in arms:
            if arm not in failures:
                one = measure(arm, path, timeout_s)
                if isinstance(one, str):
                    failures[arm] = one
                else:
                    runs[arm].append(one)
    if "effprof" in failures:
        raise SystemExit(f"{path}: {failures['effprof']}")
    figures: dict[str, Any] = {
        arm: {key: summarise([one[key] for one in found]) for key in ("seconds", "cpu_s", "peak_mb")}
        for arm, found in runs.items()
        if found
    }
    decoded_mb = decoded_bytes(path) / 1e6
    result = {
        "trace": path.name,
        "events": int(runs["effprof"][0]["events"]),
        "decoded_mb": round(decoded_mb, 1),
        "arms": figures,
        "failures": failures,
        "ratios": {},
    }
    ours = figures["effprof"]
    result["mb_per_s"] = round(decoded_mb / ours["seconds"]["median"], 1)
    result["mb_per_cpu_s"] = round(decoded_mb / ours["cpu_s"]["median"], 1)
    for arm in arms[1:]:
        if arm in figures:
            theirs = figures[arm]
            result["ratios"][arm] = {
                "seconds": round(theirs["seconds"]["median"] / ours["seconds"]["median"], 2),
                "cpu_s": round(theirs["cpu_s"]["median"] / ours["cpu_s"]["median"], 2),
                "peak_mb": round(theirs["peak_mb"]["median"] / ours["peak_mb"]["median"], 2),
            }
    return result


def decoded_bytes(path: Path) -> int:
    from effprof.trace.source import Source

    return sum(map(len, Source(str(path)).blocks()))


def render(results: list[dict[str, Any]]) -> str:
    rows = []
    for one in results:
        for arm in ARMS:
            figures = one["arms"].get(arm)
            ratio = one["ratios"].get(arm)
            rows.append(
                [
                    one["trace"] if arm == ARMS[0] else "",
                    f"{one['decoded_mb']:,} MB, {one['events']:,}" if arm == ARMS[0] else "",
                    arm,
                    f"{figures['seconds']['median']:.3f}" if figures else one["failures"].get(arm, "not run")[:60],
                    f"{figures['cpu_s']['median']:.3f}" if figures else "",
                    f"{figures['peak_mb']['median']:.0f}" if figures else "",
                    f"{ratio['seconds']:.1f} × / {ratio['peak_mb']:.1f} ×" if ratio else "",
                ]
            )
    headers = ["trace", "size, events", "arm", "s", "CPU s", "peak MB", "time / memory over effprof's"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--large-mb", type=int, default=500, help="size of the large trace")
    parser.add_argument("--no-large", action="store_true")
    parser.add_argument("--hta-large", action="store_true", help="let HTA read the large trace too (3 GB, minutes)")
    parser.add_argument("--traces", nargs="*", help="other trace files, in place of the real ones")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one run")
    parser.add_argument("--out", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    load = os.getloadavg()
    paths = [Path(path) for path in arguments.traces] if arguments.traces else list_traces()
    if not paths:
        print(MISSING, file=sys.stderr)
        return 2
    results = []
    for path in paths:
        one = compare(path, arguments.repeats, ARMS, arguments.timeout)
        if arguments.traces or one["events"] >= SMALLEST_EVENTS:
            results.append(one)
    if not arguments.no_large:
        with tempfile.TemporaryDirectory() as folder:
            large = Path(folder) / f"replicated-{arguments.large_mb}-mb.json"
            replicate(LARGE_SOURCE, large, arguments.large_mb)
            arms = ARMS if arguments.hta_large else ("effprof", "floor")
            results.append(compare(large, max(1, arguments.repeats // 2), arms, arguments.timeout))
            packed = large.with_suffix(".json.gz")
            subprocess.run(["gzip", "-k", "-6", str(large)], check=True)
            results.append(compare(packed, max(1, arguments.repeats // 2), ("effprof",), arguments.timeout))
    print(render(results))
    print(f"load of the machine: {load[0]:.1f} before, {os.getloadavg()[0]:.1f} after, {os.cpu_count()} cores")
    figures = {
        "load_before": [round(value, 2) for value in load],
        "load_after": [round(value, 2) for value in os.getloadavg()],
        "repeats": arguments.repeats,
        "traces": results,
    }
    print(f"written to {write_result('trace_speed', figures, arguments.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
