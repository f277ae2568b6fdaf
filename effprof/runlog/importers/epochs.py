"""Loops that count iterations anew in every epoch: Swin-style scripts, mmcv's runner, Lightning's progress bar.

Steps are epoch × iterations of an epoch + iteration. Whether an iteration is an optimizer step or a micro-batch of one
does not stand in such lines; they are taken for steps, and a note says so.
"""

from __future__ import annotations

import numpy as np

from effprof.runlog.importers.base import ForeignLog
from effprof.runlog.importers.table import Column, LineFormat

_MIB = 2**20


def _count_through(log: ForeignLog) -> None:
    epochs = log.columns.pop("epoch")
    iterations, per_epoch = log.columns.pop("iteration"), log.columns.pop("iterations")
    log.columns["step"] = (epochs - epochs[0]) * per_epoch + iterations
    log.notes.append(("iterations", "an iteration is taken for an optimizer step: the log does not tell accumulation"))


def _count_through_from_one(log: ForeignLog) -> None:
    _count_through(log)
    log.columns["step"] = log.columns["step"] + 1  # these print the index, from 0


def _clock_through(log: ForeignLog) -> None:
    """A bar's clock begins anew in every epoch: what earlier ones took is added."""
    epochs = log.columns["epoch"].copy()
    hours = np.nan_to_num(log.columns.pop("hours", np.zeros(log.records)))
    elapsed = 3600 * hours + 60 * log.columns.pop("minutes") + log.columns.pop("seconds")
    before = 0.0
    for row in range(1, len(elapsed)):
        if epochs[row] != epochs[row - 1]:
            before = elapsed[row - 1]
        elapsed[row] += before
    log.columns["elapsed_s"] = elapsed
    _count_through(log)


FORMATS = [
    LineFormat(
        name="swin",
        framework="Swin-style loop",
        step=r"\bTrain: \[{n}/{n}\]\[{n}/{n}\].*\btime {n} \(",
        columns={
            "epoch": Column(r"Train: \[{n}/"),
            "iteration": Column(r"Train: \[[\d.]+/[\d.]+\]\[{n}/"),
            "iterations": Column(r"Train: \[[\d.]+/[\d.]+\]\[[\d.]+/{n}\]"),
            "step_time_s": Column(r"(?<!data )(?<!model )\btime {n} \("),
            "input_wait_s": Column(r"\bdata time {n} \("),
            "loss": Column(r"\bloss {n} \("),
            "memory_bytes": Column(r"\bmem {n}MB", _MIB),
        },
        finish=_count_through_from_one,
        weight=2.0,
    ),
    LineFormat(
        name="mmcv",
        framework="mmcv",
        step=r"\bEpoch \[{n}\]\[{n}/{n}\].*\btime: {n},",
        columns={
            "epoch": Column(r"\bEpoch \[{n}\]"),
            "iteration": Column(r"\bEpoch \[[\d.]+\]\[{n}/"),
            "iterations": Column(r"\bEpoch \[[\d.]+\]\[[\d.]+/{n}\]"),
            "step_time_s": Column(r"(?<!_)\btime: {n}"),
            "input_wait_s": Column(r"\bdata_time: {n}"),
            "loss": Column(r"(?<![\w.])loss: {n}"),
            "memory_bytes": Column(r"\bmemory: {n}", _MIB),
        },
        finish=_count_through,
        weight=2.0,
    ),
    LineFormat(
        name="lightning-progress",
        framework="Lightning",
        step=r"\bEpoch {n}: +{n}%\|.*\| {n}/{n} \[[\d:]+<.*(?:it/s|s/it)",
        columns={
            "epoch": Column(r"\bEpoch {n}:"),
            "iteration": Column(r"\| {n}/\d+ \["),
            "iterations": Column(r"\| \d+/{n} \["),
            "hours": Column(r"\[{n}:\d\d:\d\d<"),
            "minutes": (Column(r"\[\d+:{n}:\d\d<"), Column(r"\[{n}:\d\d<")),
            "seconds": (Column(r"\[\d+:\d\d:{n}<"), Column(r"\[\d+:{n}<")),
            "loss": (Column(r"\btrain_loss(?:_step)?={n}"), Column(r"(?<!_)\bloss(?:_step)?={n}")),
        },
        finish=_clock_through,
        has_time=False,
        weight=2.0,
    ),
]
