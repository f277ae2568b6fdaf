"""One event of a trace as the decoder gives it: only the fields that the account needs, types kept lenient."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

Number = int | float | str | None  # exporters differ: numbers, numbers in strings, null

_NOTHING = msgspec.Raw(b"")


class Event(msgspec.Struct, gc=False):
    """A Chrome trace event; its arguments are decoded once it is known which ones matter."""

    ph: str = ""
    cat: str | None = None
    name: str = ""
    ts: Number = None
    dur: Number = None
    pid: Number = None
    tid: Number = None
    args: msgspec.Raw = _NOTHING


class ActivityArgs(msgspec.Struct, gc=False):
    """Arguments of a kernel, a copy or a set; of a collective's kernel also what Kineto writes beside it."""

    correlation: Number = None
    external_id: Number = msgspec.field(default=None, name="External id")
    bytes: Number = None
    device: Number = None
    collective: str | None = msgspec.field(default=None, name="Collective name")
    in_elements: Number = msgspec.field(default=None, name="In msg nelems")
    out_elements: Number = msgspec.field(default=None, name="Out msg nelems")
    dtype: str | None = None
    group_size: Number = msgspec.field(default=None, name="Group size")
    group_name: Number = msgspec.field(default=None, name="Process Group Name")
    group_ranks: msgspec.Raw = msgspec.field(default=_NOTHING, name="Process Group Ranks")
    sequence: Number = msgspec.field(default=None, name="Seq")


class LaunchArgs(msgspec.Struct, gc=False):
    """Arguments of a host call."""

    correlation: Number = None


class OperatorArgs(msgspec.Struct, gc=False):
    """Arguments of an operator; shapes stay undecoded until somebody asks."""

    external_id: Number = msgspec.field(default=None, name="External id")
    input_dims: msgspec.Raw = msgspec.field(default=_NOTHING, name="Input Dims")
    input_type: msgspec.Raw = msgspec.field(default=_NOTHING, name="Input type")
    concrete_inputs: msgspec.Raw = msgspec.field(default=_NOTHING, name="Concrete Inputs")


class OtherArgs(msgspec.Struct, gc=False):
    """Arguments of events that name a process, and of Ascend's tasks."""

    name: Number = None
    task_type: str | None = msgspec.field(default=None, name="Task Type")


_decode_all = msgspec.json.Decoder(list[Event]).decode
_decode_raw = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_one = msgspec.json.Decoder(Event).decode

# Kineto has written inf and nan where a bandwidth was divided by a duration of zero; JSON has no such numbers.
_NOT_A_NUMBER = re.compile(rb'("\s*:\s*)[-+]?(?:nan|inf|infinity)(?=\s*[,}\]])', re.IGNORECASE)
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")


def decode(group: bytes | memoryview) -> list[Event]:
    """The events of a group, which is the inside of a JSON list.

    Raises:
        msgspec.DecodeError: the group is not a sequence of complete JSON objects of the expected types.
        RecursionError: it is nested too deeply to decode.
    """
    return _decode_all(b"".join((b"[", group, b"]")))


def decode_leniently(group: bytes) -> tuple[list[Event], int]:
    """(events, how many could not be used): for a group that `decode` refused.

    Numbers that are not JSON, bytes that are not UTF-8 and control characters are replaced; events of unexpected
    types are left out and counted.

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
                events.append(_decode_one(mended))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                unusable += 1
    return events, unusable


_Args = TypeVar("_Args", ActivityArgs, LaunchArgs, OperatorArgs, OtherArgs)


def decode_args(events: list[Event], kind: type[_Args]) -> list[_Args]:
    """The arguments of some events, one each; empty ones where they are missing or of unexpected types."""
    together = b",".join(event.args or b"null" for event in events)
    try:
        decoded = msgspec.json.decode(b"[" + together + b"]", type=list[kind | None])  # type: ignore[valid-type]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return [_decode_args_of(event, kind) for event in events]
    return [args if args is not None else kind() for args in decoded]


def _decode_args_of(event: Event, kind: type[_Args]) -> _Args:
    try:
        return msgspec.json.decode(event.args, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return kind()


def repair(group: bytes) -> bytes:
    """The same bytes as valid UTF-8, without control characters, and with null for nan and inf."""
    text = group.decode("utf-8", "replace").encode()
    return _NOT_A_NUMBER.sub(rb"\1null", _CONTROL.sub(b" ", text))
