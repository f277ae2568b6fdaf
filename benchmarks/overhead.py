"""What effprof's callback adds to a training step, side by side with the alternatives.

    python benchmarks/overhead.py            # about 20 minutes on two cores
    python benchmarks/overhead.py --quick    # does it run at all; the figures mean nothing

Two measurements, because whole steps differ by more than ten microseconds from one training to the next:

1. Whole step. Trainings with each callback alternate in random order within one process. A repeat's figure is the
   median step of that training minus the median step of the same repeat's training without a callback; the spread is
   over repeats. A second training without a callback is the control: what it differs by is noise.
2. Inside the hooks. Every hook of a callback is timed from inside `fit` and summed per micro-batch; the same sum for a
   callback whose hooks are empty is subtracted. Token counting and the input split are timed apart.
"""

from __future__ import annotations

import argparse
import io
import logging
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytorch_lightning as pl
import torch
from common import summarise, write_result
from pytorch_lightning.callbacks import Callback, DeviceStatsMonitor, ThroughputMonitor
from pytorch_lightning.loggers import CSVLogger
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.data import DataLoader
from traceml_ai.integrations.lightning import TraceMLCallback

from effprof.callbacks import EfficiencyCallback
from effprof.measure.tokens import TokenCounter

now = time.perf_counter_ns

ROWS, WIDTH, LAYERS = 64, 128, 2
BATCH, LENGTH = 8, 128
WARM_UP_STEPS = 50  # first steps count FLOPs, allocate, start processes
NONE, CONTROL, EMPTY, EFFPROF = "no callback", "no callback, again", "empty Callback()", "EfficiencyCallback"
QUIET, THROUGHPUT, TRACEML = "EfficiencyCallback, no writer thread", "ThroughputMonitor", "TraceMLCallback"

HOOKS = (
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
    "on_train_batch_end",
)


class Net(pl.LightningModule):
    """A step of about half a millisecond: short, so that microseconds show."""

    def __init__(self) -> None:
        super().__init__()
        layers = [layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
        self.net = nn.Sequential(*layers)
        self.flops_per_batch = 6 * LAYERS * WIDTH * WIDTH * ROWS  # what ThroughputMonitor asks for

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.net(batch["x"]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class StepClock(Callback):
    """The start of every step."""

    def __init__(self) -> None:
        self.starts: list[int] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.starts.append(now())


class EmptyHooks(Callback):
    """The hooks effprof uses, with nothing in them."""

    def on_train_batch_start(self, *_: Any) -> None: ...
    def on_before_backward(self, *_: Any) -> None: ...
    def on_after_backward(self, *_: Any) -> None: ...
    def on_before_optimizer_step(self, *_: Any) -> None: ...
    def on_before_zero_grad(self, *_: Any) -> None: ...
    def on_train_batch_end(self, *_: Any) -> None: ...


def make_batch() -> dict[str, Tensor]:
    """A batch as language-model trainings have it: token ids, a mask to count and labels to count."""
    torch.manual_seed(0)
    tokens = torch.ones(BATCH, LENGTH, dtype=torch.long)
    return {"x": torch.randn(ROWS, WIDTH), "input_ids": tokens, "attention_mask": tokens, "labels": tokens}


def fit(callbacks: list[Callback], steps: int, log_every: int, folder: str) -> None:
    """Train `Net` for `steps` steps with a CSV logger."""
    batch = make_batch()
    loader: DataLoader[Any] = DataLoader([0] * (steps + 2), batch_size=1, collate_fn=lambda _: batch)  # type: ignore[arg-type]
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        logger=CSVLogger(folder),
        callbacks=callbacks,
        log_every_n_steps=log_every,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    # effprof's summary, and TraceML's reminder that its global patches (input and copy times) are not installed: they
    # would stay for the other arms, so its figure is that of the callback alone
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        trainer.fit(Net(), loader)


# --- whole steps -----------------------------------------------------------------------------------------------------


def make_callbacks(arm: str, folder: str) -> list[Callback]:
    """The callbacks of one arm, fresh."""
    if arm in (NONE, CONTROL):
        return []
    if arm == EMPTY:
        return [Callback()]
    if arm == THROUGHPUT:
        return [ThroughputMonitor(batch_size_fn=lambda _: BATCH, window_size=20)]
    if arm == "DeviceStatsMonitor":
        return [DeviceStatsMonitor(cpu_stats=True)]
    if arm == TRACEML:
        return [TraceMLCallback()]
    return [EfficiencyCallback(run_dir=f"{folder}/run")]


ARMS = (NONE, CONTROL, EMPTY, EFFPROF, QUIET, THROUGHPUT, TRACEML, "DeviceStatsMonitor")


def silence_writer() -> Any:
    """Let effprof's writer thread sleep through the training; it then writes everything at the end."""
    return mock.patch("effprof.measure.recorder.PERIOD_S", 3600.0)


def drain_traceml() -> None:
    """Empty the queues that TraceML's own process would read, so that they never fill up."""
    from traceml_ai.instrumentation import step_events
    from traceml_ai.utils import timing

    for queue in (step_events._STEP_TIME_QUEUE, step_events._STEP_MEMORY_QUEUE, timing._GLOBAL_TIME_QUEUE):
        while not queue.empty():
            queue.get_nowait()


def time_steps(arm: str, steps: int, log_every: int) -> np.ndarray:
    """Microseconds of each step of one training, warm-up left out."""
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder, silence_writer() if arm == QUIET else nullcontext():
        fit([clock, *make_callbacks(arm, folder)], steps + WARM_UP_STEPS, log_every, folder)
    drain_traceml()
    return np.diff(np.array(clock.starts[WARM_UP_STEPS:])) / 1e3


def measure_whole_steps(options: argparse.Namespace, log_every: int) -> dict[str, Any]:
    """Added microseconds per step of every arm over no callback, and the tail of the steps."""
    order = random.Random(log_every)
    steps: dict[str, list[np.ndarray]] = {arm: [] for arm in ARMS}
    for repeat in range(options.repeats):
        for arm in order.sample(ARMS, len(ARMS)):
            steps[arm].append(time_steps(arm, options.steps, log_every))
        tell(f"whole steps, logging every {log_every}: repeat {repeat + 1} of {options.repeats}")
    medians = {arm: [float(np.median(times)) for times in repeats] for arm, repeats in steps.items()}
    means = {arm: [float(np.mean(times)) for times in repeats] for arm, repeats in steps.items()}
    added = {arm: subtract(values, medians[NONE]) for arm, values in medians.items() if arm != NONE}
    added_mean = {arm: subtract(values, means[NONE]) for arm, values in means.items() if arm != NONE}
    return {
        "step_us": summarise(medians[NONE]),
        "added_us": {arm: summarise(values) for arm, values in added.items()},
        "added_us_of_mean_step": {arm: summarise(values) for arm, values in added_mean.items()},
        "p999_us": {arm: round(float(np.percentile(np.concatenate(r), 99.9)), 1) for arm, r in steps.items()},
        "ratio_to_throughput_monitor": {
            arm: ratio_of_medians(added[arm], added[THROUGHPUT])
            for arm in (EMPTY, EFFPROF, TRACEML, "DeviceStatsMonitor")
        },
    }


def subtract(values: list[float], base: list[float]) -> list[float]:
    """Pairwise differences, repeat by repeat."""
    return [value - zero for value, zero in zip(values, base, strict=True)]


def ratio_of_medians(values: list[float], base: list[float], draws: int = 2000) -> dict[str, float | None]:
    """Ratio of the medians over repeats, with a bootstrap 95 % interval (repeats drawn in pairs, fixed seed)."""
    pairs = np.array([values, base])
    rng = np.random.default_rng(0)
    drawn = pairs[:, rng.integers(0, pairs.shape[1], (draws, pairs.shape[1]))]
    tops, bottoms = np.median(drawn, axis=2)
    ratios = tops[bottoms > 0] / bottoms[bottoms > 0]
    bottom = statistics.median(base)
    if bottom <= 0 or not len(ratios):  # the alternative's overhead drowned in noise: there is nothing to divide by
        return {"median": None, "low": None, "high": None}
    low, high = np.percentile(ratios, [2.5, 97.5])
    return {"median": round(statistics.median(values) / bottom, 3), "low": round(low, 3), "high": round(high, 3)}


# --- inside the hooks ------------------------------------------------------------------------------------------------


class Stopwatch:
    """Nanoseconds spent in some functions, summed until the next micro-batch ends."""

    def __init__(self) -> None:
        self.spent = 0
        self.per_batch: list[int] = []

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed."""

        def timed(*arguments: Any, **named: Any) -> Any:
            start = now()
            try:
                return function(*arguments, **named)
            finally:
                self.spent += now() - start

        return timed

    def lap(self) -> None:
        """A micro-batch ended."""
        self.per_batch.append(self.spent)
        self.spent = 0


class Laps(Callback):
    """Ends a lap of every stopwatch after all other callbacks have run."""

    def __init__(self, *watches: Stopwatch) -> None:
        self.watches = watches

    def on_train_batch_end(self, *_: Any) -> None:
        for watch in self.watches:
            watch.lap()


class ActionWatch(Callback):
    """Times the Trainer's profiler actions, which is where effprof splits input wait from the copy to the device."""

    def __init__(self) -> None:
        self.watch = Stopwatch()

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        for name in ("start", "stop"):
            setattr(trainer.profiler, name, self.watch.around(getattr(trainer.profiler, name)))


def time_hooks(callback: Callback) -> Stopwatch:
    """Put a stopwatch around each of the callback's hooks."""
    watch = Stopwatch()
    for name in HOOKS:
        setattr(callback, name, watch.around(getattr(callback, name)))
    return watch


@contextmanager
def time_token_counting() -> Iterator[Stopwatch]:
    """A stopwatch around effprof's token counter, wherever it is called from."""
    watch = Stopwatch()
    with mock.patch.object(TokenCounter, "count", watch.around(TokenCounter.count)):
        yield watch


def time_parts(callback: Callback, options: argparse.Namespace, log_every: int, folder: str) -> dict[str, np.ndarray]:
    """Microseconds per micro-batch of one training, by part: hooks, token counting inside them, profiler actions."""
    actions = ActionWatch()
    with time_token_counting() as counting:
        hooks = time_hooks(callback)
        fit([callback, actions, Laps(hooks, counting, actions.watch)], options.steps + WARM_UP_STEPS, log_every, folder)
    watches = {"hooks": hooks, "token_counting": counting, "actions": actions.watch}
    return {name: np.array(watch.per_batch[WARM_UP_STEPS:]) / 1e3 for name, watch in watches.items()}


def measure_hooks(options: argparse.Namespace, log_every: int) -> dict[str, Any]:
    """Microseconds per micro-batch inside effprof's hooks above empty ones, its token counting and its input split."""
    order = random.Random(log_every)
    repeats: dict[str, list[dict[str, np.ndarray]]] = {"empty": [], "effprof": []}
    for repeat in range(options.repeats):
        for name in order.sample(("empty", "effprof"), 2):
            with tempfile.TemporaryDirectory() as folder:
                callback = EmptyHooks() if name == "empty" else EfficiencyCallback(run_dir=f"{folder}/run")
                repeats[name].append(time_parts(callback, options, log_every, folder))
        tell(f"hooks, logging every {log_every}: repeat {repeat + 1} of {options.repeats}")
    figures: dict[str, Any] = {}
    reductions = {"median": np.median, "mean": np.mean, "p99": lambda times: np.percentile(times, 99)}
    for statistic, reduce in reductions.items():
        own = [float(reduce(parts["hooks"] - parts["token_counting"])) for parts in repeats["effprof"]]
        zero = [float(reduce(parts["hooks"])) for parts in repeats["empty"]]
        actions = {name: [float(reduce(parts["actions"])) for parts in found] for name, found in repeats.items()}
        figures[statistic] = {
            "empty_hooks": summarise(zero),
            "effprof_hooks": summarise(subtract(own, zero)),
            "effprof_input_split": summarise(subtract(actions["effprof"], actions["empty"])),
            "effprof_token_counting": summarise([float(reduce(p["token_counting"])) for p in repeats["effprof"]]),
        }
    return figures


# --- report ----------------------------------------------------------------------------------------------------------


def tell(what: str) -> None:
    """Progress, on the error stream, so that the table can be piped."""
    print(what, file=sys.stderr, flush=True)


def spread(figures: dict[str, float | None]) -> str:
    """Median and extremes in one table cell."""
    low, high = figures.get("min", figures.get("low")), figures.get("max", figures.get("high"))
    return "–" if figures["median"] is None else f"{figures['median']:.2f} ({low:.2f} … {high:.2f})"


def render(figures: dict[str, Any]) -> str:
    """The result as Markdown tables."""
    whole = figures["whole_step"]
    intervals = list(whole)
    added = [[arm, *(spread(whole[every]["added_us"][arm]) for every in intervals)] for arm in ARMS if arm != NONE]
    ratios = [
        [arm, *(spread(whole[every]["ratio_to_throughput_monitor"][arm]) for every in intervals)]
        for arm in whole[intervals[0]]["ratio_to_throughput_monitor"]
    ]
    tails = [[arm, *(whole[every]["p999_us"][arm] for every in intervals)] for arm in ARMS]
    hooks = [
        [part.replace("_", " "), *(spread(figures["hooks"][every]["median"][part]) for every in figures["hooks"])]
        for part in next(iter(figures["hooks"].values()))["median"]
    ]
    columns = [f"logging every {every}" for every in intervals]
    base = ", ".join(f"{whole[every]['step_us']['median']:.0f}" for every in intervals)
    sections = (
        (f"Added µs per step over no callback ({base} µs), median over repeats (min … max)", added, columns),
        ("Ratio to ThroughputMonitor's (95 % interval)", ratios, columns),
        ("p99.9 of a step, µs", tails, columns),
        (
            "Inside fit, µs per micro-batch above the same with empty hooks, median step (min … max over repeats)",
            hooks,
            [f"logging every {every}" for every in figures["hooks"]],
        ),
    )
    return "\n\n".join(
        f"{title}\n\n{tabulate(rows, headers=['', *headers], tablefmt='github')}" for title, rows, headers in sections
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--log-every", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument("--quick", action="store_true", help="two short repeats: tests the script, measures nothing")
    parser.add_argument("--out", type=Path, help="where to write the JSON (default: benchmarks/results)")
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.steps, options.log_every = 2, 40, [10]
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)

    time_steps(NONE, options.steps, 50)  # warm up the process
    figures: dict[str, Any] = {
        "settings": {"repeats": options.repeats, "steps": options.steps, "threads": 1},
        "whole_step": {str(every): measure_whole_steps(options, every) for every in options.log_every},
        "hooks": {str(every): measure_hooks(options, every) for every in options.log_every},
    }
    print(render(figures))
    print("\nwritten to", write_result("overhead", figures, options.out))


if __name__ == "__main__":
    main()
