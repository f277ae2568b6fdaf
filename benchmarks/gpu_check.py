"""What effprof shows and costs on one GPU: MFU of a 300M dense and a 300M-active MoE transformer, syncs, overhead.

    python benchmarks/gpu_check.py                       # one CUDA device, about 5 minutes
    python benchmarks/gpu_check.py --device cpu --tiny   # the same path on a CPU, to test this script

Three questions per model, in bf16 with SDPA and torch.compile:
1. MFU as `effprof analyze` reports it.
2. Synchronisations: profiler traces of the same steps with and without the callback; every call that makes the host
   wait for the device is counted, in all and inside effprof's own hooks.
3. Overhead: time per step with and without the callback, alternating.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec
import pytorch_lightning as pl
import torch
from common import summarise, write_result
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.data import DataLoader

from effprof.analysis.analyze import analyze
from effprof.callbacks import EfficiencyCallback
from effprof.runlog.reader import open_run

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import itertools

from gpt import GPTConfig, LitGPT, Windows, read_standard_library

FULL = GPTConfig(width=1024, layers=24, heads=16, context=2048)  # 302M parameters in the blocks
TINY = GPTConfig(width=64, layers=2, heads=2, context=64)
MODELS = {"dense": 0, "moe": 8}  # experts, of which two are active: the same arithmetic per token as the dense model

# Calls after which the host has waited for the device, by the names a profiler trace gives them.
SYNCS = (
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "hipStreamSynchronize",
    "hipDeviceSynchronize",
    "hipEventSynchronize",
    "aten::item",
    "aten::_local_scalar_dense",
)
SPAN = "effprof.hook"
HOOKS = (
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
    "on_train_batch_end",
)


class StepClock(pl.Callback):
    """Host time at every step's start; on a busy device the host is paced by it."""

    def __init__(self) -> None:
        self.starts: list[int] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.starts.append(time.perf_counter_ns())

    def step_ms(self, warm_up: int) -> list[float]:
        """Milliseconds of each step after the first `warm_up`."""
        starts = self.starts[warm_up:]
        return [(after - before) / 1e6 for before, after in itertools.pairwise(starts)]


class TraceSteps(pl.Callback):
    """Profiles `count` steps after `skip` and keeps the events."""

    def __init__(self, skip: int, count: int) -> None:
        self.window = range(skip, skip + count)
        self.profile: profile | None = None
        self.events: list[Any] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        step = trainer.global_step
        if step == self.window.start:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self.profile = profile(activities=activities)
            self.profile.start()
        elif step == self.window.stop and self.profile is not None:
            self.profile.stop()
            self.events = list(self.profile.events())
            self.profile = None


def count_syncs(events: list[Any]) -> dict[str, Counter[str]]:
    """Synchronising calls in a trace: everywhere, and inside the spans of effprof's hooks on their own thread."""
    spans = [(e.thread, e.time_range.start, e.time_range.end) for e in events if e.name == SPAN]
    everywhere: Counter[str] = Counter()
    inside: Counter[str] = Counter()
    for event in events:
        if event.name not in SYNCS:
            continue
        everywhere[event.name] += 1
        moment = event.time_range.start
        if any(event.thread == thread and start <= moment <= end for thread, start, end in spans):
            inside[event.name] += 1
    return {"everywhere": everywhere, "inside_effprof": inside}


def mark_hooks(callback: pl.Callback) -> None:
    """Wrap the callback's hooks in a named span, so that a trace shows what happens inside them."""

    def marked(hook: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            with record_function(SPAN):
                hook(*arguments)

        return call

    for name in HOOKS:
        setattr(callback, name, marked(getattr(callback, name)))


def train(config: GPTConfig, options: argparse.Namespace, steps: int, callbacks: list[pl.Callback]) -> None:
    """Train a fresh compiled model for `steps` steps on the standard library's text."""
    pl.seed_everything(1, verbose=False)
    model = LitGPT(config)
    if not options.no_compile:
        model.model.compile()
    loader = DataLoader(
        Windows(options.text, config.context, seed=1), batch_size=options.batch, pin_memory=options.device == "cuda"
    )
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator=options.device,
        devices=1,
        precision="bf16-mixed",
        callbacks=callbacks,
        logger=False,
        log_every_n_steps=50,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader)


def measure_efficiency(config: GPTConfig, options: argparse.Namespace) -> dict[str, Any]:
    """The analysis of one run of its own, as `effprof analyze --json` prints it, without the per-rank details."""
    with tempfile.TemporaryDirectory() as folder:
        train(config, options, options.steps, [EfficiencyCallback(run_dir=f"{folder}/run")])
        analysis = msgspec.to_builtins(analyze(open_run(f"{folder}/run")))
    return {key: analysis[key] for key in ("efficiency", "account", "memory", "moe", "hardware", "warnings")}


def measure_syncs(config: GPTConfig, options: argparse.Namespace) -> dict[str, Any]:
    """Synchronising calls in `traced` steps with and without the callback."""
    counts = {}
    for name in ("without", "with"):
        tracer = TraceSteps(options.warm_up, options.traced)
        with tempfile.TemporaryDirectory() as folder:
            callbacks: list[pl.Callback] = [tracer]
            if name == "with":
                callback = EfficiencyCallback(run_dir=f"{folder}/run")
                mark_hooks(callback)
                callbacks.append(callback)
            train(config, options, options.warm_up + options.traced + 2, callbacks)
        counts[name] = {where: dict(found) for where, found in count_syncs(tracer.events).items()}
        counts[name]["events"] = len(tracer.events)
        counts[name]["hook_spans"] = sum(event.name == SPAN for event in tracer.events)
    return {"steps": options.traced, **counts}


def measure_overhead(config: GPTConfig, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds per step with and without the callback, alternating, and what the callback adds per repeat."""
    medians: dict[str, list[float]] = {"without": [], "with": []}
    for repeat in range(options.repeats):
        for name in ("without", "with") if repeat % 2 == 0 else ("with", "without"):
            clock = StepClock()
            with tempfile.TemporaryDirectory() as folder:
                own = [EfficiencyCallback(run_dir=f"{folder}/run")] if name == "with" else []
                train(config, options, options.steps, [clock, *own])
            times = sorted(clock.step_ms(options.warm_up))
            medians[name].append(times[len(times) // 2])
    added = [(w - wo) * 1e3 for w, wo in zip(medians["with"], medians["without"], strict=True)]
    return {
        "step_ms_without": summarise(medians["without"]),
        "step_ms_with": summarise(medians["with"]),
        "added_us_per_step": summarise(added),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model and a run for testing this script")
    parser.add_argument("--no-compile", action="store_true", help="train without torch.compile")
    parser.add_argument("--batch", type=int, help="windows per step")
    parser.add_argument("--steps", type=int, help="steps per training")
    parser.add_argument("--repeats", type=int, help="alternations of the overhead measurement")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--out", type=Path, help="where to write the JSON (default: benchmarks/results)")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device: run this on a GPU, or with --device cpu --tiny to test the script")
    sizes = {"batch": 2, "steps": 12, "repeats": 1, "warm_up": 4, "traced": 4}
    if not options.tiny:
        sizes = {"batch": 8, "steps": 150, "repeats": 3, "warm_up": 30, "traced": 20}
    for name, value in sizes.items():
        if getattr(options, name, None) is None:
            setattr(options, name, value)
    options.text = read_standard_library()
    torch.set_float32_matmul_precision("high")
    for package in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(package).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")

    figures: dict[str, Any] = {"settings": {**sizes, "batch": options.batch, "steps": options.steps}, "models": {}}
    figures["settings"]["compiled"] = not options.no_compile
    for name in options.models:
        config = replace(TINY if options.tiny else FULL, experts=MODELS[name])
        total, active = LitGPT(config).model.count_parameters()
        result = {
            "shape": asdict(config),
            "parameters_total": total,
            "parameters_active": active,
            **measure_efficiency(config, options),
            "syncs": measure_syncs(config, options),
            "overhead": measure_overhead(config, options),
        }
        figures["models"][name] = result
        mfu = result["efficiency"]["mfu"]["value"]
        added = result["overhead"]["added_us_per_step"]
        print(f"{name}: MFU {'unknown' if mfu is None else f'{mfu:.1%}'}", flush=True)
        print(f"  syncs inside effprof: {result['syncs']['with']['inside_effprof'] or 'none'}")
        print(f"  added per step: {added['median']:.1f} µs ({added['min']:.1f} … {added['max']:.1f})", flush=True)
    print("written to", write_result("gpu-check-tiny" if options.tiny else "gpu-check", figures, options.out))


if __name__ == "__main__":
    main()
