"""One event of a trace as the decoder gives it: only the fields that the account needs, types kept lenient."""

from __future__ import annotations

import re

import msgspec

Number = int | float | str | None  # exporters differ: numbers, numbers in strings, null

_NOTHING = msgspec.Raw(b"")


class Args(msgspec.Struct, gc=False):
    """`args` of an event. Shapes and rank lists stay undecoded until somebody asks."""

    correlation: Number = None
    external_id: Number = msgspec.field(default=None, name="External id")
    bytes: Number = None
    device: Number = None
    input_dims: msgspec.Raw = msgspec.field(default=_NOTHING, name="Input Dims")
    input_type: msgspec.Raw = msgspec.field(default=_NOTHING, name="Input type")
    concrete_inputs: msgspec.Raw = msgspec.field(default=_NOTHING, name="Concrete Inputs")
    collective: str | None = msgspec.field(default=None, name="Collective name")
    in_elements: Number = msgspec.field(default=None, name="In msg nelems")
    out_elements: Number = msgspec.field(default=None, name="Out msg nelems")
    dtype: str | None = None
    group_size: Number = msgspec.field(default=None, name="Group size")
    group_name: Number = msgspec.field(default=None, name="Process Group Name")
    group_ranks: msgspec.Raw = msgspec.field(default=_NOTHING, name="Process Group Ranks")
    sequence: Number = msgspec.field(default=None, name="Seq")
    name: Number = None
    task_type: str | None = msgspec.field(default=None, name="Task Type")


class Event(msgspec.Struct, gc=False):
    """A Chrome trace event."""

    ph: str = ""
    cat: str | None = None
    name: str = ""
    ts: Number = None
    dur: Number = None
    pid: Number = None
    tid: Number = None
    args: Args | None = None


class BareEvent(msgspec.Struct, gc=False):
    """An event whose `args` are not of the expected types: it still has its place in time."""

    ph: str = ""
    cat: str | None = None
    name: str = ""
    ts: Number = None
    dur: Number = None
    pid: Number = None
    tid: Number = None


_decode_all = msgspec.json.Decoder(list[Event]).decode
_decode_raw = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_one = msgspec.json.Decoder(Event).decode
_decode_bare = msgspec.json.Decoder(BareEvent).decode

# Kineto has written inf and nan where a bandwidth was divided by a duration of zero; JSON has no such numbers.
_NOT_A_NUMBER = re.compile(rb'("\s*:\s*)[-+]?(?:nan|inf|infinity)(?=\s*[,}\]])', re.IGNORECASE)
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")


def decode(group: bytes) -> list[Event]:
    """The events of a group, which is the inside of a JSON list.

    Raises:
        msgspec.DecodeError: the group is not a sequence of complete JSON objects of the expected types.
        RecursionError: it is nested too deeply to decode.
    """
    return _decode_all(b"[" + group + b"]")


def decode_leniently(group: bytes) -> tuple[list[Event], int]:
    """(events, how many could not be used): for a group that `decode` refused.

    Numbers that are not JSON, bytes that are not UTF-8 and control characters are replaced; events of unexpected
    types are decoded without their arguments, or left out and counted.

    Raises:
        msgspec.DecodeError, RecursionError: the group is not JSON in spite of that.
    """
    try:
        parts = _decode_raw(b"[" + group + b"]")
    except (msgspec.DecodeError, UnicodeDecodeError):
        parts = _decode_raw(b"[" + repair(group) + b"]")
    events, unusable = [], 0
    for part in parts:
        try:
            events.append(_decode_one(part))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            try:
                mended = repair(bytes(part))
                events.append(_decode_leniently_one(mended))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                unusable += 1
    return events, unusable


def _decode_leniently_one(part: bytes) -> Event:
    try:
        return _decode_one(part)
    except msgspec.ValidationError:
        bare = _decode_bare(part)
        return Event(bare.ph, bare.cat, bare.name, bare.ts, bare.dur, bare.pid, bare.tid)


def repair(group: bytes) -> bytes:
    """The same bytes as valid UTF-8, without control characters, and with null for nan and inf."""
    text = group.decode("utf-8", "replace").encode()
    return _NOT_A_NUMBER.sub(rb"\1null", _CONTROL.sub(b" ", text))
