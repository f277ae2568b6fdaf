"""Makes docs/schema.md from the types, so that the document cannot say anything else than the code.

What higher floors add to it comes from `effprof.cli.schema_doc`, whose command writes the whole document.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import inspect as types

from effprof.analysis import compare, model
from effprof.runlog import schema

_INTRO = """# JSON schemas

Made from the types by `python -m effprof.cli.schema_doc`; a test compares the two.

- Each document names its schema. Keys may be added within a schema number, never renamed or given another meaning.
- Units are in the key: `_s` seconds, `_bytes`, `_w` watts, `_ns` nanoseconds. Shares and MFU run from 0 to 1.
- A key marked *nullable* holds null where the value could not be measured; `warnings` says why. 0 means measured and
  zero. Every other key always holds a value. `…[]` is each item of a list, `….NAME` each key of an open mapping.
- `effprof analyze --json` prints one document per line for each run it is given: with one run the output is a JSON
  document, with several it is JSON Lines.
"""

_DEFINITIONS = """### How the figures are made

- **Steady steps** are all steps but a leading prefix of each attempt; `efficiency.steps.rules` says how it was found.
  Slow steps inside the run always count.
- **A step of the job** takes as long as it took the rank that was slowest over the whole attempt (one rank's clock, so
  that the steps sum to real time). Time in evaluation, checkpoint, logging and the like is taken out, also where
  another rank spent it while this one waited.
- **Tokens and FLOPs of the job** are summed over data-parallel ranks; of ranks that share a batch one is counted.
  Steps whose tokens were not counted take the mean of those that were (`tokens_sampled`).
- **MFU** = Σ model FLOPs ÷ (Σ step time × devices × peak) over the steady steps. Above 1 it is refused: null and
  `mfu_above_peak`. **`mfu_wall`** = FLOPs of all steps, repeated ones once ÷ (wall clock × devices × peak).
  **`hfu`** adds recompute and the per-token work on padding; masked attention over padding is not added.
- **Intervals** are 95 %, from a moving-block bootstrap (block length: cube root of the number of steps) with a fixed
  seed. They cover the noise between steps of this run, not what differs between two starts of the same job. On a few
  dozen strongly correlated steps they are somewhat too narrow.
- **`account.lines`** are {lines}.
  They sum to `wall_s`. On the basis `host`, `step.exposed_communication`, `step.pipeline_bubble` and
  `step.host_gap` cannot be told from the phases that contain them and are absent; on the basis `device` the first two
  are. The gap between two attempts is `restart`; time in steps that an earlier attempt had already made is
  `lost_steps`. Before a rank's own process began, while others had, is `startup`. The device basis is timed on a
  sample of the steps.
- **`ended`**: `completed` and `failed` by the closing line of the last attempt; without one `running` while the last
  record is under 10 s old, `killed` after that.
- **A ratio** in a comparison is `is_different` when its interval leaves out 1.
"""


@dataclass(frozen=True)
class Document:
    """One JSON document: its schema's name, the command that prints it and its type."""

    schema: str
    command: str
    type: type[msgspec.Struct]


@dataclass(frozen=True)
class Key:
    """One key of a document: where it is, what it holds, and whether it may be null."""

    path: str
    type: str
    is_nullable: bool
    description: str

    @property
    def line(self) -> str:
        """The key without its description, as the golden file keeps it."""
        return f"{self.path}: {self.type}{' | null' if self.is_nullable else ''}"


def keys(document: type[msgspec.Struct]) -> list[Key]:
    """Every key of a document's type, in order, with its path from the top."""
    return list(_struct_keys(types.type_info(document), ""))


def render(others: Sequence[Document] = ()) -> str:
    """The text of docs/schema.md.

    Args:
        others: documents of commands above this floor, set between the comparison and the record on disk.
    """
    parts = [_INTRO, f"## {model.SCHEMA}\n\n`effprof analyze --json`", _table(keys(model.Analysis))]
    parts.append(_DEFINITIONS.format(lines=_names(model.ACCOUNT_LINES)))
    parts += [f"## {compare.SCHEMA}\n\n`effprof compare --json`", _table(keys(compare.Comparison))]
    for other in others:
        parts += [f"## {other.schema}\n\n`{other.command}`", _table(keys(other.type))]
    parts += [f"## {schema.RUN_SCHEMA}\n\n{_doc(schema.RunRecord)}", _table(keys(schema.RunRecord))]
    parts.append(f"## {schema.LOG_SCHEMA}\n\n{_doc(schema)}")
    for line in _line_types():
        parts += [f"### `{line.__struct_config__.tag}`\n\n{_doc(line)}", _table(keys(line))]
    parts.append(f"Phases: {_names(schema.PHASES)}.\n\nCounters: {_names(schema.COUNTERS)}.")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _line_types() -> tuple[type[msgspec.Struct], ...]:
    return schema.Line.__args__


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _doc(thing: Any) -> str:
    return inspect.cleandoc(inspect.getdoc(thing) or "")


def _table(found: list[Key]) -> str:
    rows = ["| key | holds | | meaning |", "|---|---|---|---|"]
    for key in found:
        nullable = "nullable" if key.is_nullable else "required"
        rows.append(f"| `{key.path}` | {key.type.replace('|', 'or')} | {nullable} | {key.description} |")
    return "\n".join(rows)


def _struct_keys(info: types.Type, prefix: str) -> Iterator[Key]:
    assert isinstance(info, types.StructType)
    for item in info.fields:
        path = f"{prefix}{item.encode_name}"
        inner, nullable, description = _unwrap(item.type)
        yield Key(path, _type_name(inner), nullable, description or _struct_doc(inner))
        yield from _nested(inner, path)


def _nested(info: types.Type, path: str) -> Iterator[Key]:
    """Keys below a key that holds structs, directly, in a list or in a mapping."""
    if isinstance(info, types.StructType):
        yield from _struct_keys(info, f"{path}.")
    elif isinstance(info, types.ListType):
        yield from _nested(_unwrap(info.item_type)[0], f"{path}[]")
    elif isinstance(info, types.DictType):
        yield from _nested(_unwrap(info.value_type)[0], f"{path}.NAME")


def _unwrap(info: types.Type) -> tuple[types.Type, bool, str]:
    """The type without null and description, whether null is allowed, and the description."""
    description = ""
    if isinstance(info, types.Metadata):
        description = str((info.extra_json_schema or {}).get("description", ""))
        info = info.type
    if isinstance(info, types.UnionType):
        others = [kind for kind in info.types if not isinstance(kind, types.NoneType)]
        is_nullable = len(others) < len(info.types)
        return others[0] if len(others) == 1 else types.UnionType(tuple(others)), is_nullable, description
    return info, False, description


def _struct_doc(info: types.Type) -> str:
    if isinstance(info, types.ListType):
        info = _unwrap(info.item_type)[0]
    return _doc(info.cls).split("\n\n")[0].replace("\n", " ") if isinstance(info, types.StructType) else ""


def _type_name(info: types.Type) -> str:
    inner, nullable, _ = _unwrap(info)
    name = _plain_name(inner)
    return f"{name} | null" if nullable else name


def _plain_name(info: types.Type) -> str:
    if isinstance(info, types.StructType):
        return "object"
    if isinstance(info, types.ListType):
        return f"list of {_type_name(info.item_type)}"
    if isinstance(info, types.TupleType):
        return f"[{', '.join(_type_name(item) for item in info.item_types)}]"
    if isinstance(info, types.DictType):
        return f"object of {_type_name(info.value_type)}"
    if isinstance(info, types.UnionType):
        return " | ".join(sorted(_type_name(item) for item in info.types))
    names: dict[type, str] = {
        types.FloatType: "number",
        types.IntType: "integer",
        types.StrType: "string",
        types.BoolType: "true or false",
        types.AnyType: "any",
    }
    return names[type(info)]
