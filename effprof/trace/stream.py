"""From blocks of bytes to groups of events, cut where one event ends; what stands around the list is kept apart.

A cut counts only if what lies before it decodes: inside a string or a nested object it never does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from effprof.errors import EffprofError
from effprof.trace.events import Event, decode, decode_leniently
from effprof.trace.source import Source

GROUP_BYTES = 512 << 10  # decoded at a time: larger groups leave the cache
MOST_EVENT_BYTES = 16 << 20  # one event; Kineto's largest carry call stacks and rank lists of some 100 kB
MOST_FRAME_BYTES = 32 << 20  # what stands before or after the list of events
_WINDOW, _OVERLAP = 8192, 4096  # bytes searched for a boundary at a time, from the end
_TRIES = 3  # cuts tried by the end of a group before it is scanned from its start

_LIST_KEY = re.compile(rb'"traceEvents"\s*:\s*\[')
_BOUNDARY = re.compile(rb"\}\s*,\s*(?=\{)")
_LIST_END = re.compile(rb"\}\s*(?=\])")
_TAIL_BYTES = 64 << 10  # of the file's end, searched for the end of the list
# A string that does not end runs to the end of what is there: brackets in it are not brackets.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[{}\[\]]', re.DOTALL)
_MOST_DEPTH = 1000
_OPENING, _CLOSING = frozenset(b"{["), frozenset(b"}]")


class EventStream:
    """The events of one trace file, group by group, in bounded memory.

    After iterating: `frame` holds the top-level keys beside the events, `events` how many were read, `unusable` how
    many were not of the shape of an event, `lost_bytes` how much of a cut-off file came after the last whole event.
    """

    def __init__(self, path: str) -> None:
        self.source = Source(path)
        self.frame: dict[str, Any] = {}
        self.events = 0
        self.unusable = 0
        self.lost_bytes = 0
        self.is_truncated = False
        self._head = b""

    def groups(self) -> Iterator[list[Event]]:
        """Lists of events in file order.

        Raises:
            EffprofError: no trace, empty, damaged, or an event larger than any profiler writes.
        """
        blocks = self.source.blocks()
        buffer, wanted = self._find_list(blocks), GROUP_BYTES
        while True:
            buffer, is_over = _fill(buffer, wanted, blocks)
            if is_over:
                yield from self._finish(buffer)
                return
            events, taken, end = self._take(buffer)
            self.events += len(events)
            if events:
                yield events
            del events
            if end is not None:
                self._close(buffer[end + 1 :], blocks)
                return
            buffer = buffer[taken:]
            if not taken and len(buffer) > MOST_EVENT_BYTES:
                raise EffprofError(
                    f"{self.source.path}: not a trace, or a damaged one: no event ends within "
                    f"{MOST_EVENT_BYTES >> 20} MiB after event {self.events:,}",
                    "record the trace again",
                )
            # what holds no whole event grows by doubling, so that going through it again and again stays linear
            wanted = GROUP_BYTES if taken else 2 * len(buffer)

    def _find_list(self, blocks: Iterator[bytes]) -> bytes:
        """What follows the opening bracket of the list of events."""
        head = b""
        for block in blocks:
            searched = max(0, len(head) - 64)
            head += block
            stripped = head.lstrip()
            if stripped.startswith(b"\xef\xbb\xbf"):
                stripped = stripped[3:].lstrip()
            if stripped.startswith(b"["):
                return stripped[1:]
            if stripped and not stripped.startswith(b"{"):
                break
            found = _LIST_KEY.search(head, searched)
            if found:
                self._head = head[: found.start()]
                return head[found.end() :]
            if len(head) > MOST_FRAME_BYTES:
                break
        if not head.strip():
            raise EffprofError(f"{self.source.path}: is empty", "record the trace again")
        raise EffprofError(
            f"{self.source.path}: not a profiler trace: it has no list of traceEvents",
            "give what torch.profiler's export_chrome_trace or tensorboard_trace_handler wrote",
        )

    def _take(self, buffer: bytes) -> tuple[list[Event], int, int | None]:
        """(events, bytes taken, where the list's end stands) of the longest head of `buffer` that can be decoded."""
        end = len(buffer)
        for _ in range(_TRIES):
            cut = _last_boundary(buffer, end)
            if cut is None:
                break
            brace, following = cut
            try:
                return decode(memoryview(buffer)[:brace]), following, None
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                end = brace
        return self._take_slowly(buffer)

    def _take_slowly(self, buffer: bytes) -> tuple[list[Event], int, int | None]:
        """The same, with the boundaries found by going through every bracket and string from the start."""
        brace, list_end = self._scan(buffer)
        if not brace:
            return [], 0, list_end
        try:
            events, unusable = decode_leniently(buffer[:brace])
        except (msgspec.DecodeError, RecursionError) as error:
            raise self._damaged(error) from None
        self.unusable += unusable
        if list_end is not None:
            return events, brace, list_end
        comma = buffer.find(b",", brace)
        return events, brace if comma < 0 else comma + 1, None

    def _finish(self, buffer: bytes) -> Iterator[list[Event]]:
        """The last group: up to the list's end where there is one, else up to the last whole event."""
        whole = _whole_list(buffer)
        if whole is not None:
            events, list_end = whole
            self.events += len(events)
            yield events
            self._read_frame(buffer[list_end + 1 :])
            self.is_truncated |= self.source.is_cut
            return
        yield from self._finish_slowly(buffer)

    def _finish_slowly(self, buffer: bytes) -> Iterator[list[Event]]:
        """The same, by every bracket and string, for what is cut off or holds what no profiler writes."""
        brace, list_end = self._scan(buffer)
        if brace:
            try:
                try:
                    events = decode(buffer[:brace])
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    events, unusable = decode_leniently(buffer[:brace])
                    self.unusable += unusable
            except (msgspec.DecodeError, RecursionError) as error:
                raise self._damaged(error) from None
            self.events += len(events)
            yield events
        if list_end is None:
            self.is_truncated = True
            self.lost_bytes = len(buffer[brace:].lstrip(b", \r\n\t"))
            self._read_frame(b"")
        else:
            self._read_frame(buffer[list_end + 1 :])
        self.is_truncated |= self.source.is_cut

    def _close(self, tail: bytes, blocks: Iterator[bytes]) -> None:
        for block in blocks:
            tail += block
            if len(tail) > MOST_FRAME_BYTES:
                raise EffprofError(
                    f"{self.source.path}: more than {MOST_FRAME_BYTES >> 20} MiB follow the events", "is it a trace?"
                )
        self._read_frame(tail)
        self.is_truncated |= self.source.is_cut

    def _read_frame(self, tail: bytes) -> None:
        """The top-level keys around the list; a tail that is cut off is left out."""
        if not self._head:
            return
        for text in (self._head + b'"traceEvents": []' + tail, self._head.rstrip().rstrip(b",") + b"}"):
            try:
                frame = msgspec.json.decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
            if isinstance(frame, dict):
                self.frame = frame
                return

    def _scan(self, buffer: bytes) -> tuple[int, int | None]:
        """(past the last whole event, the bracket that ends the list or None), by brackets outside strings."""
        depth, last = 0, 0
        for token in _TOKEN.finditer(buffer):
            first = buffer[token.start()]
            if first in _OPENING:
                depth += 1
                if depth > _MOST_DEPTH:
                    raise self._damaged(f"nested more than {_MOST_DEPTH} deep")
            elif first in _CLOSING:
                if depth == 0:
                    return last, token.start()
                depth -= 1
                if depth == 0:
                    last = token.end()
        return last, None

    def _damaged(self, error: object) -> EffprofError:
        return EffprofError(
            f"{self.source.path}: damaged after event {self.events:,}, within the first "
            f"{self.source.read_bytes:,} bytes: {error}",
            "copy the file again, or record the trace again",
        )


def _fill(buffer: bytes, wanted: int, blocks: Iterator[bytes]) -> tuple[bytes, bool]:
    """(`buffer` with blocks added until it holds `wanted` bytes, whether the file is over)."""
    parts, size = [buffer], len(buffer)
    while size < wanted:
        block = next(blocks, b"")
        if not block:
            return b"".join(parts), True
        parts.append(block)
        size += len(block)
    return b"".join(parts), False


def _whole_list(buffer: bytes) -> tuple[list[Event], int] | None:
    """(events, the bracket that ends their list), where that bracket is one of the last of `buffer`; else None.

    A bracket whose head decodes as a list of events ends the list: in a string, a nested object or behind the list
    none does.
    """
    found = list(_LIST_END.finditer(buffer, max(0, len(buffer) - _TAIL_BYTES)))
    for end in reversed(found[-_TRIES:]):
        try:
            return decode(memoryview(buffer)[: end.start() + 1]), end.end()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
    return None


def _last_boundary(buffer: bytes, end: int) -> tuple[int, int] | None:
    """(past the closing brace, start of what follows the comma) of the last `},{` before `end`."""
    start = end
    while start > 0:
        start = max(0, start - _WINDOW)
        found = list(_BOUNDARY.finditer(buffer, start, min(end, start + _WINDOW + _OVERLAP)))
        if found:
            return found[-1].start() + 1, found[-1].end()
    return None
