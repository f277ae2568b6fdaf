"""Pauses of Python's garbage collector, by step."""

from __future__ import annotations

import gc
from time import perf_counter_ns as now

from effprof.measure.clock import PhaseClock
from effprof.measure.garbage_watch import GarbageWatch


def test_collections_are_booked_to_their_step_and_only_inside_steps() -> None:
    clock = PhaseClock(now(), lambda *_: None)
    watch = GarbageWatch(clock)
    gc.disable()
    try:
        gc.collect()
        assert watch.poll() == []
        assert watch.facts() == {}
        clock.begin_steps()
        gc.collect(0)
        clock.end_step(1)
        clock.end_step(2)
        began = now()
        gc.collect()
        gc.collect()
        took = now() - began
        (first, _), (third, columns) = watch.poll()
        assert (first, third) == (0, 2)
        assert 0 < columns["gc_ns"] <= took
        facts = watch.facts()
        assert (facts["gc_collections"], facts["gc_full_collections"]) == (3, 2)
        assert 0 < facts["gc_longest_s"] <= facts["gc_s"]
        assert 0 < facts["gc_share"] < 1
    finally:
        gc.enable()
        watch.remove()
    assert not any(getattr(each, "__self__", None) is watch for each in gc.callbacks)
