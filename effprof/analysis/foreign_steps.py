"""A foreign log's columns as one series per figure: what a tool prints, or what follows from what it prints."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from effprof.metrics.steady import steady_start
from effprof.runlog.importers.base import ForeignLog

Array = NDArray[np.float64]
# A difference of two printed clocks is taken over so many steps that their resolution is at most this share of it.
RESOLUTION_SHARE = 0.05
AGREE = 0.1  # a printed rate this far from batch ÷ step time is of something else


@dataclass
class ForeignSteps:
    """Figures per record, float64 of shape (records,), NaN where the log allows none.

    `derived` maps a figure to how it was made where the log does not print it.
    """

    step: Array
    covers: Array
    seconds: Array
    tokens: Array
    samples: Array
    tokens_per_s: Array
    tokens_per_s_per_device: Array
    samples_per_s: Array
    is_steady: NDArray[np.bool_]
    rule: str
    derived: dict[str, str] = field(default_factory=dict)


def foreign_steps(log: ForeignLog) -> ForeignSteps:
    """Series of a foreign log. A running average is no step's own value and is passed over."""
    derived: dict[str, str] = {}
    covers = _covers(log)
    tokens, samples = _tokens(log, covers, derived), _samples(log, covers)
    world = float(log.facts.get("world_size") or np.nan)
    rate, device_rate = _own(log, "tokens_per_s"), _own(log, "tokens_per_s_per_device")
    samples_rate = _own(log, "samples_per_s")
    job_rate = _first(rate, device_rate * world)
    seconds = _seconds(log, covers, tokens, job_rate, derived)
    rate = _first(job_rate, tokens / seconds)
    if _is_known(rate) and not log.has("tokens_per_s"):
        derived["tokens_per_s"] = "tokens ÷ step time" if not _is_known(job_rate) else "rate of a device × devices"
    device_rate = _first(device_rate, rate / world)
    samples_rate = _agreeing(samples_rate, samples / seconds, derived)
    basis = seconds if _is_known(seconds) else 1 / _first(rate, device_rate, samples_rate)
    start, rule = _steady_start(basis)
    return ForeignSteps(
        step=log.columns.get("step", np.arange(1.0, log.records + 1)),
        covers=covers,
        seconds=seconds,
        tokens=tokens,
        samples=samples,
        tokens_per_s=rate,
        tokens_per_s_per_device=device_rate,
        samples_per_s=samples_rate,
        is_steady=np.arange(log.records) >= start,
        rule=rule,
        derived=derived,
    )


def _own(log: ForeignLog, name: str) -> Array:
    """A column, all NaN where the log lacks it or it is a running average; rates and times are positive."""
    if name in log.averages or name not in log.columns:
        return np.full(log.records, np.nan)
    column = log.columns[name]
    return np.where(column > 0, column, np.nan)


def _first(*candidates: Array) -> Array:
    """The first of the series that has any value."""
    return next((each for each in candidates if _is_known(each)), candidates[0])


def _agreeing(printed: Array, computed: Array, derived: dict[str, str]) -> Array:
    """The printed samples/s, unless batch and step time say otherwise: old Megatron-DeepSpeed prints it per ms."""
    if not (_is_known(printed) and _is_known(computed)):
        return _first(printed, computed)
    if abs(float(np.nanmedian(printed / computed)) - 1) <= AGREE or "step_time_s" in derived:
        return printed
    derived["samples_per_s"] = "samples ÷ step time, which the printed rate contradicts"
    return computed


def _is_known(values: Array) -> bool:
    return bool(np.isfinite(values).any())


def _covers(log: ForeignLog) -> Array:
    """Optimizer steps per record: as printed, else the distance to the record before."""
    if "covers" in log.columns:
        return log.columns["covers"]
    step = log.columns.get("step")
    if step is None or len(step) < 2:
        return np.ones(log.records)
    gaps = np.diff(step)
    gaps = np.where(gaps > 0, gaps, np.nan)
    return np.concatenate([[np.nanmedian(gaps) if _is_known(gaps) else 1.0], gaps])


def _tokens(log: ForeignLog, covers: Array, derived: dict[str, str]) -> Array:
    """Tokens of the whole job's step."""
    printed = _own(log, "tokens")
    if _is_known(printed):
        return printed
    if log.has("consumed_tokens"):
        derived["tokens"] = "difference of the tokens consumed"
        return _differences(log.columns["consumed_tokens"]) / covers
    if log.facts.get("tokens"):
        return np.full(log.records, float(log.facts["tokens"]))
    length = log.facts.get("sequence_length")
    if length:
        derived["tokens"] = "samples × sequence length: padding, where there is any, counts"
        return _samples(log, covers) * float(length)
    return np.full(log.records, np.nan)


def _samples(log: ForeignLog, covers: Array) -> Array:
    """Samples of the whole job's step."""
    printed = _own(log, "samples")
    if _is_known(printed):
        return printed
    if log.has("consumed_samples"):
        return _differences(log.columns["consumed_samples"]) / covers
    return np.full(log.records, float(log.facts.get("global_batch") or np.nan))


def _differences(counter: Array) -> Array:
    """Increase since the record before; NaN at the first and where a counter restarts."""
    gaps = np.diff(counter)
    return np.concatenate([[np.nan], np.where(gaps > 0, gaps, np.nan)])


def _seconds(log: ForeignLog, covers: Array, tokens: Array, job_rate: Array, derived: dict[str, str]) -> Array:
    """Seconds per optimizer step: printed, from printed intervals or rates, or from the log's clocks."""
    printed = _first(_own(log, "step_time_s"), _own(log, "interval_s") / covers)
    if _is_known(printed):
        return printed
    if _is_known(tokens / job_rate):
        derived["step_time_s"] = "tokens of a step ÷ rate"
        return tokens / job_rate
    for name, what in (("elapsed_s", "differences of the time since training began"), ("time_s", "time stamps")):
        if log.has(name) and _is_known(covers):  # MLPerf's blocks can be of unknown many steps
            measured = _clock_differences(log.columns[name], covers)
            if _is_known(measured):
                derived["step_time_s"] = what
                return measured
    samples, rate = _samples(log, covers), _own(log, "samples_per_s")
    if _is_known(samples / rate):
        derived["step_time_s"] = "samples of a step ÷ rate"
        return samples / rate
    return np.full(log.records, np.nan)


def _clock_differences(clock: Array, covers: Array) -> Array:
    """Seconds per step between records, each over enough records for the clock's resolution; NaN where none suffice."""
    known = clock[np.isfinite(clock)]
    resolution = 1.0 if len(known) and (known == np.floor(known)).all() else 1e-3
    gaps = _differences(clock)
    typical = float(np.nanmedian(gaps)) if _is_known(gaps) else 0.0
    total = float(np.nansum(gaps))
    needed = resolution / RESOLUTION_SHARE
    if total < needed:
        return np.full(len(clock), np.nan)
    stride = 1 if typical >= needed else int(np.ceil(needed / max(typical, total / len(clock), 1e-9)))
    if stride >= len(clock):
        return np.full(len(clock), np.nan)
    passed = np.concatenate([[0.0], np.cumsum(np.nan_to_num(covers[1:], nan=1.0))])
    seconds = np.full(len(clock), np.nan)
    # a restart sets a clock of its own back: what lies across it is no step's time
    elapsed = clock[stride:] - clock[:-stride]
    crosses = np.array([not np.isfinite(gaps[i + 1 : i + 1 + stride]).all() for i in range(len(clock) - stride)])
    steps = passed[stride:] - passed[:-stride]
    seconds[stride:] = np.where((elapsed > 0) & ~(crosses & (stride == 1)), elapsed / steps, np.nan)
    return seconds


def _steady_start(seconds: Array) -> tuple[int, str]:
    """Index of the first steady record; records without a time of their own count as those before them."""
    known = np.flatnonzero(np.isfinite(seconds))
    if not len(known):
        return 0, "no record has a time or a rate"
    start, rule = steady_start(seconds[known])
    if start >= len(known):  # a single record is all there is
        return 0, "too few records to tell a warm-up"
    return int(known[start]), rule
