"""Counts what a micro-batch holds: samples, positions, tokens, loss tokens and attended pairs.

Host tensors are read in place and answered at once (a few µs). Device tensors are never waited for: what is counted
from is reduced to a byte or two a position, copied behind the work already queued, and counted later.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effprof.measure.batch_layout import Fields, Layout, find_fields
from effprof.measure.token_facts import (
    Counts,
    Rules,
    Shape,
    count_facts,
    device_facts,
    host_facts,
    needs_no_values,
    shape_of,
)
from effprof.measure.unpadded import UnpaddedBatches
from effprof.runlog.schema import COUNTERS

if TYPE_CHECKING:
    from effprof.measure.late_copies import LateCopies

# Counting is thinned out only where it takes more than both: this long, and this share of the time between batches.
BUDGET_NS = 50_000
BUDGET_SHARE = 0.001
_WEIGHED_BATCHES = 32
_MAX_EVERY_N = 64
_MAX_FAILURES = 3
_MAX_SHAPES = 1024
# Batches looked at for mistakes (padding without a mask, restarts that a mask overrules): the first ones, then a few.
_INSPECT_FIRST = 8
_INSPECT_EVERY = 64


@dataclass(frozen=True)
class _Pending:
    """A micro-batch whose values are still on their way from the device."""

    slot: int
    shape: Shape | None  # None where the values are not needed
    known: Counts | None  # counts already complete but for what `tokens_fn` gave
    given: Counts
    names: tuple[str, ...]  # facts that arrive; none where the last counted batch of this shape stands in


class TokenCounter:
    """Counts micro-batches by the counters of `effprof.runlog.schema.COUNTERS`.

    `count` answers for host tensors. `submit` and `poll` answer for any tensor, late where it is on a device; `poll`
    may be called by another thread than `submit`. Results may be shared between calls: don't change them. A counter
    that could not be counted is absent. Nothing here raises; `reason` says in one line why tokens are missing.

    Without a mask every position is a token. Documents are told apart by, in this order: `cu_seqlens` and the like,
    `seq_lens`, document numbers, a padding mask that numbers its documents (1 1 2 2 0), and position ids that restart
    (only without a padding mask: with one transformers attends across the restart). A mask of (…, T, T) is counted
    entry by entry.

    Args:
        window: sliding-window length that `window_pairs` is counted for, None without one.
        causal: whether a token sees only itself and the tokens before it; None leaves pairs out.
        ignore_index: label of positions without a loss.
        pad_id: token id of padding, to warn where it trails and no mask says so.
        every_n: count every Nth batch of a shape and let it stand for those between; positions are always exact.
            Rises by itself only where counting takes over 50 µs and over 0.1 % of the time between batches.
        tokens_fn: batch → tokens, or → mapping of counters; overrides what is found. A device scalar is read late.
        encoder_decoder: whether there is a decoder, with the labels as its input where the batch names none; None
            finds it out (decoder ids, or labels of another width than the ids).
    """

    def __init__(
        self,
        *,
        window: int | None = None,
        causal: bool | None = None,
        ignore_index: int = -100,
        pad_id: int | None = None,
        every_n: int = 1,
        tokens_fn: Callable[[Any], Any] | None = None,
        encoder_decoder: bool | None = None,
    ) -> None:
        self.rules = Rules(window, causal, ignore_index, pad_id, encoder_decoder)
        self.every_n = max(1, every_n)
        self.reason = ""
        self.input_shapes: set[Any] = set()  # of the batches' main tensors, as long as there are not very many
        self._tokens_fn = tokens_fn
        self._layout: Layout | None = None
        self._unpadded = UnpaddedBatches(self.rules)
        self._shapes: dict[Shape, Counts] = {}
        self._last: dict[Shape, Counts] = {}
        self._stood_in: dict[Shape, int] = {}
        self._warnings: dict[str, str] = {}
        self._reported = 0
        self._inspected = 0
        self._failures = 0
        self._cheapest_ns = 1 << 62
        self._weighed = 0
        self._weighed_since_ns = 0
        self._ready: deque[tuple[int, Counts]] = deque()
        self._copies: LateCopies[_Pending] | None = None

    def count(self, batch: Any) -> Counts:
        """Counts of one micro-batch on the host. Of a batch on a device: what its shape tells."""
        if self._failures >= _MAX_FAILURES:
            return {}
        try:
            fields = self._fields(batch)
            if not _is_on_device(fields):
                return self._count_on_host(batch, fields)
            if self._is_known_from_shape(fields):
                return self._from_shape(fields)
            self.reason = "the batch is on a device: its tokens are read by submit() and poll()"
            shape = shape_of(fields, self.rules)
            return {"samples": shape.rows, "positions": count_facts(shape, {}, self.rules, {}, {})["positions"]}
        except Exception as error:
            return self._failed(error)

    def submit(self, batch: Any, slot: int) -> None:
        """Count one micro-batch; its counts come out of `poll` under `slot`, exactly once."""
        if self._failures >= _MAX_FAILURES:
            self._ready.append((slot, {}))
            return
        try:
            fields = self._fields(batch)
            if _is_on_device(fields):
                self._count_on_device(batch, fields, slot)
            else:
                self._ready.append((slot, self._count_on_host(batch, fields)))
        except Exception as error:
            self._ready.append((slot, self._failed(error)))

    def poll(self, wait: bool = False) -> list[tuple[int, Counts]]:
        """(slot, counts) counted since the last call. `wait` waits for the device: at the end of a run only."""
        if self._copies is not None and len(self._copies):
            try:
                arrived = self._copies.poll(wait)
            except Exception as error:
                self._failures = _MAX_FAILURES
                self._failed(error)
                arrived = [(pending, []) for pending in self._copies.abandon()]
            self._ready.extend((pending.slot, self._count_late(pending, arrays)) for pending, arrays in arrived)
        return [self._ready.popleft() for _ in range(len(self._ready))]

    def new_warnings(self) -> list[dict[str, str]]:
        """Warnings not handed out before, as {"code", "message"}."""
        fresh = list(self._warnings.items())[self._reported :]
        self._reported = len(self._warnings)
        return [{"code": code, "message": message} for code, message in fresh]

    def _fields(self, batch: Any) -> Fields:
        fields = self._layout.fetch(batch) if self._layout is not None else None
        if fields is None:
            fields, self._layout = find_fields(batch)
        for main in fields.values():
            if len(self.input_shapes) < _MAX_SHAPES:
                self.input_shapes.add(main.shape)
            break
        return fields

    def _count_on_host(self, batch: Any, fields: Fields) -> Counts:
        began_ns = time.perf_counter_ns()
        unpadded = self._unpadded.counts(fields) if self.every_n == 1 else None
        inspect = unpadded is None and self._inspects(fields)
        if unpadded is not None:
            counts = unpadded
            self._weigh(began_ns)
        elif self._is_known_from_shape(fields) and not inspect:
            counts = self._from_shape(fields)
        else:
            shape = shape_of(fields, self.rules)
            if self._stands_in(shape):
                counts = self._last[shape]
            else:
                facts = host_facts(fields, self.rules, inspect)
                counts = count_facts(shape, facts, self.rules, self._shapes, self._warnings)
                self._remember(shape, counts)
                self._unpadded.learn(fields, counts)
                self._weigh(began_ns)
        if self._tokens_fn is None:
            return counts
        return {**counts, **{name: int(value) for name, value in _as_counts(self._tokens_fn(batch)).items()}}

    def _count_on_device(self, batch: Any, fields: Fields, slot: int) -> None:
        began_ns = time.perf_counter_ns()
        given = {} if self._tokens_fn is None else _as_counts(self._tokens_fn(batch))
        late = {name: value for name, value in given.items() if _is_device_tensor(value)}
        constants = {name: int(value) for name, value in given.items() if name not in late}
        shape, known, facts = None, None, {}
        inspect = self._inspects(fields)
        if self._is_known_from_shape(fields) and not inspect:
            known = self._from_shape(fields)
            if not late:
                self._ready.append((slot, {**known, **constants} if constants else known))
                return
        else:
            shape = shape_of(fields, self.rules)
            if not self._stands_in(shape):
                facts = device_facts(fields, self.rules, inspect)
        if self._copies is None:
            from effprof.measure.late_copies import LateCopies

            self._copies = LateCopies()
        names = (*facts, *late)
        tensors = [*facts.values(), *(value.reshape(1) for value in late.values())]
        self._copies.submit(_Pending(slot, shape, known, constants, names), tensors)
        if facts:
            self._weigh(began_ns)

    def _count_late(self, pending: _Pending, arrays: list[Any]) -> Counts:
        try:
            facts = dict(zip(pending.names, arrays, strict=True))
            given = {name: int(facts.pop(name)[0]) for name in COUNTERS if name in facts}
            if pending.known is not None or pending.shape is None:
                counts = pending.known or {}
            elif facts:
                counts = count_facts(pending.shape, facts, self.rules, self._shapes, self._warnings)
                self._remember(pending.shape, counts)
            else:
                counts = self._last.get(pending.shape, {})
            return {**counts, **pending.given, **given} if given or pending.given else counts
        except Exception as error:
            return self._failed(error)

    def _is_known_from_shape(self, fields: Fields) -> bool:
        return not fields or "first" in fields or needs_no_values(fields)

    def _from_shape(self, fields: Fields) -> Counts:
        if fields and "first" not in fields:
            return count_facts(shape_of(fields, self.rules), {}, self.rules, self._shapes, self._warnings)
        if self._tokens_fn is None:
            self.reason = "no token ids found in the batch; pass tokens_fn=lambda batch: number_of_tokens"
        return {"samples": int(fields["first"].shape[0])} if fields else {}

    def _inspects(self, fields: Fields) -> bool:
        """Whether this batch is looked at for mistakes too."""
        if "first" in fields or not fields or (self.rules.pad_id is None and "position_ids" not in fields):
            return False
        self._inspected += 1
        return self._inspected <= _INSPECT_FIRST or self._inspected % _INSPECT_EVERY == 0

    def _stands_in(self, shape: Shape) -> bool:
        """Whether the last counted batch of this shape stands for this one."""
        if self.every_n == 1:
            return False
        waited = self._stood_in.get(shape, self.every_n)
        self._stood_in[shape] = 1 if waited >= self.every_n else waited + 1
        return waited < self.every_n

    def _remember(self, shape: Shape, counts: Counts) -> None:
        if self.every_n > 1:
            self._last[shape] = counts

    def _weigh(self, began_ns: int) -> None:
        """Raise `every_n` where the cheapest of the last batches still cost too much of the time between them."""
        now_ns = time.perf_counter_ns()
        self._cheapest_ns = min(self._cheapest_ns, now_ns - began_ns)
        self._weighed += 1
        if self._weighed < _WEIGHED_BATCHES:
            return
        between_ns = (now_ns - self._weighed_since_ns) / self._weighed / self.every_n
        if self._weighed_since_ns and self._cheapest_ns > max(BUDGET_NS, BUDGET_SHARE * between_ns):
            wanted = math.ceil(self._cheapest_ns / max(BUDGET_NS, BUDGET_SHARE * between_ns))
            self.every_n = max(self.every_n, min(_MAX_EVERY_N, wanted))
            self._warnings.setdefault(
                "tokens_sampled",
                f"counting a batch takes {self._cheapest_ns / 1000:.0f} µs: every {self.every_n}th batch of a shape is "
                "counted and stands for those between",
            )
        self._weighed, self._cheapest_ns, self._weighed_since_ns = 0, 1 << 62, now_ns

    def _failed(self, error: Exception) -> Counts:
        self._failures += 1
        self.reason = f"the batch could not be counted ({type(error).__name__}: {error}); pass tokens_fn="
        self._warnings.setdefault("tokens_not_counted", self.reason)
        return {}


def _as_counts(given: Any) -> Mapping[str, Any]:
    """What `tokens_fn` returned, as a mapping of counters."""
    if not isinstance(given, Mapping):
        return {"tokens": given}
    unknown = [name for name in given if name not in COUNTERS]
    if unknown:
        raise ValueError(f"tokens_fn gave unknown counters {', '.join(map(str, unknown))}")
    return given


def _is_on_device(fields: Fields) -> bool:
    for value in fields.values():
        return _is_device_tensor(value)
    return False


def _is_device_tensor(value: Any) -> bool:
    device = getattr(value, "device", None)
    return device is not None and getattr(device, "type", "cpu") != "cpu"
