"""A stand-in for a training command that costs no time: answers EFFPROF_TRIAL with a run whose speeds are known.

    python recorded_training.py WORKERS_RATIO [drifting]

Without a change a step takes 0.1 s, half of it waiting for input; `num_workers` changes the step's time by the ratio,
`gc_every_n_steps` takes a fifth away. On a drifting machine both together are slow when the whole is tested.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import sys
from pathlib import Path

# by its path: the directory above holds tests/effprof, which would stand before the package
specification = importlib.util.spec_from_file_location("conftest", Path(__file__).resolve().parents[1] / "conftest.py")
assert specification is not None
assert specification.loader is not None
conftest = importlib.util.module_from_spec(specification)
specification.loader.exec_module(conftest)

request = json.loads(os.environ["EFFPROF_TRIAL"])
changes = request["changes"]
has_workers = changes.get("num_workers", 0) > 0
ratio = float(sys.argv[1]) if has_workers else 1.0
ratio *= 0.8 if "gc_every_n_steps" in changes else 1.0
if "drifting" in sys.argv and "whole" in Path(request["run_dir"]).parts and changes:
    ratio = 1.2
wait = 0.05 if not has_workers else 0.0
draw = random.Random(request["run_dir"])
own = 1 + 0.004 * draw.gauss(0, 1)
steps = []
for number in range(60):
    seconds = 0.1 * ratio * own * (1 + 0.02 * draw.gauss(0, 1))
    rest = seconds - wait
    step = {"input_wait": wait, "forward": 0.4 * rest, "backward": 0.5 * rest, "optimizer": 0.1 * rest}
    steps.append({**step, "samples": 2.0, "positions": 50.0, "tokens": 50.0, "loss": 4.0 - 0.01 * number})
config = {
    "num_workers": changes.get("num_workers", 0),
    "host_cpus": 4,
    "trial": {"applied": changes, "refused": {}},
}
conftest.HandMadeRun(Path(request["run_dir"])).record(config=config).rank(steps, device={"type": "cpu", "name": "CPU"})
