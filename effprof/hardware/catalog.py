"""What each chip can do at most: the catalogue of dense peaks, and the lookup by what a runtime reports."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from importlib import resources
from types import MappingProxyType

from effprof.errors import EffprofError
from effprof.hardware.names import ChipName, parse_name
from effprof.hardware.slices import VirtualGpu, mig_units, parse_virtual_gpu, scale

# Column of accelerators.csv → key of `Accelerator.peak_tflops`.
DTYPE_COLUMNS = {
    "fp64_tflops": "fp64",
    "fp64_tensor_tflops": "fp64_tensor",
    "fp32_tflops": "fp32",
    "tf32_tflops": "tf32",
    "fp16_tflops": "fp16",
    "bf16_tflops": "bf16",
    "fp8_tflops": "fp8",
    "int8_tops": "int8",
    "fp4_tflops": "fp4",
}
# What a runtime reports over the nominal size x 1e9: people type the nominal size (1.0), drivers report GiB under
# the name of GB less a reserve (80 "GB" → 85.0e9 … 85.9e9 bytes), or less than nominal with ECC in GDDR (0.98).
_REPORTED_OVER_NOMINAL = (1.0, 1.0625, 1.0689, 1.0737)
_LEAST_REPORTED, _MOST_REPORTED = 0.93, 1.085
_SAME_FIT = 0.008  # sizes that fit this much worse than the best are ruled out
PEAK_HINT = "give the chip's dense peak: --peak-tflops on the command line, peak_tflops= in Python"


@dataclass(frozen=True)
class Accelerator:
    """One row of the catalogue. Peaks are dense TFLOP/s (TOP/s for int8), of the device the runtime shows.

    `peak_tflops` has only the dtypes whose rate is known; `basis` says how it is known ("datasheet", "derived",
    "third party", "announced"; "scaled" and "shared" are parts of a chip); `memory_bytes` is the nominal size (80 GB =
    80e9), a little less than drivers report.
    A chip of which the runtime shows `runtime_devices_per_chip` devices has the whole chip's figures here.
    """

    vendor: str
    name: str
    patterns: tuple[str, ...]
    architecture: str
    compute_capability: str
    compute_units: int | None
    peak_tflops: Mapping[str, float]
    memory_bytes: int | None
    memory_bandwidth_bytes_per_s: float | None
    interconnect: str
    interconnect_bytes_per_s: float | None
    tdp_w: float | None
    source: str
    basis: str
    notes: str
    name_is_enough: bool = True
    runtime_devices_per_chip: int = 1

    @cached_property
    def names(self) -> tuple[ChipName, ...]:
        """Every name this row answers to: its own and the runtime's."""
        return tuple(parse_name(text) for text in (self.name, *self.patterns))


class UnknownAccelerator(EffprofError):
    """No row answers to what was reported; `candidates` are the nearest names, for a person to choose from."""

    def __init__(self, message: str, candidates: Sequence[str] = (), hint: str = "") -> None:
        near = f"; nearest in the catalogue: {', '.join(candidates)}" if candidates else ""
        super().__init__(message, hint or f"{PEAK_HINT}{near}")
        self.candidates = tuple(candidates)


class AmbiguousAccelerator(EffprofError):
    """Several rows answer; `candidates` names them and the hint says which argument tells them apart."""

    def __init__(self, message: str, candidates: Sequence[str], hint: str) -> None:
        super().__init__(message, hint)
        self.candidates = tuple(candidates)


@lru_cache(maxsize=1)
def load() -> tuple[Accelerator, ...]:
    """All rows of the package's accelerators.csv."""
    table = resources.files(__package__).joinpath("accelerators.csv").read_text(encoding="utf-8")
    return tuple(_accelerator(row) for row in csv.DictReader(io.StringIO(table)))


def _accelerator(row: Mapping[str, str]) -> Accelerator:
    def scaled(column: str, factor: float = 1.0) -> float | None:
        return float(row[column]) * factor if row[column] else None

    memory = scaled("memory_gb", 1e9)
    return Accelerator(
        vendor=row["vendor"],
        name=row["name"],
        patterns=tuple(filter(None, row["runtime_names"].split("|"))),
        architecture=row["architecture"],
        compute_capability=row["compute_capability"],
        compute_units=int(row["compute_units"]) if row["compute_units"] else None,
        peak_tflops=MappingProxyType({key: float(row[c]) for c, key in DTYPE_COLUMNS.items() if row[c]}),
        memory_bytes=round(memory) if memory else None,
        memory_bandwidth_bytes_per_s=scaled("memory_bandwidth_gb_per_s", 1e9),
        interconnect=row["interconnect"],
        interconnect_bytes_per_s=scaled("interconnect_gb_per_s", 1e9),
        tdp_w=scaled("tdp_w"),
        source=row["source"],
        basis=row["basis"],
        notes=row["notes"],
        name_is_enough=row["name_is_enough"] == "yes",
        runtime_devices_per_chip=int(row["runtime_devices_per_chip"]),
    )


@dataclass(frozen=True)
class _Evidence:
    """What is known about the device besides its name."""

    memory_bytes: float | None = None
    compute_units: int | None = None
    power_limit_w: float | None = None


def lookup(
    name: str,
    *,
    memory_bytes: float | None = None,
    compute_units: int | None = None,
    power_limit_w: float | None = None,
    vendor: str | None = None,
) -> Accelerator:
    """Find the row of a device by the name its runtime reports, or by what a person calls it.

    Exact names come first, then names that differ only in a memory size, then descriptions ("h100 sxm") all of
    whose words belong to one chip; a word that belongs to no chip ("Laptop") makes the name unknown. Memory size,
    compute units and power limit then choose among chips that share the name, and contradict a wrong one.

    Args:
        name: e.g. "NVIDIA H100 80GB HBM3", "A100-80GB", "AMD Instinct MI250X/MI250", "... MIG 3g.40gb".
        memory_bytes: total memory as reported or as sold.
        compute_units: SMs, CUs or cores, as the runtime counts them.
        power_limit_w: the board's power limit.
        vendor: restricts the search, e.g. "NVIDIA".

    Raises:
        UnknownAccelerator: no chip fits, or a slice whose share of the chip is not known.
        AmbiguousAccelerator: several chips fit.
    """
    query = parse_name(name)
    evidence = _Evidence(memory_bytes, compute_units, power_limit_w)
    if query.slice_profile is not None:
        return _lookup_slice(query, evidence, vendor)
    if guest := parse_virtual_gpu(name):
        return _lookup_guest(guest, query.text, evidence)
    if query.memory_gb is not None and evidence.memory_bytes is None:
        described = replace(evidence, memory_bytes=query.memory_gb * 1e9)
    else:
        described = evidence
    wanted = vendor or query.vendor
    rows = [row for row in load() if wanted is None or row.vendor.casefold().startswith(wanted.casefold().split()[0])]
    named: list[Accelerator] = []
    # a size inside an exact name may be another memory's (GH200 480GB), so only the reported one counts there
    for matches, known in (
        (_has_catalogue_name, evidence),
        (_has_exact_name, evidence),
        (_has_sizeless_name, described),
        (_has_short_name, described),
        (_is_described, described),
    ):
        pool = [row for row in rows if matches(row, query)]
        if pool and matches is not _has_catalogue_name and not any(row.name_is_enough for row in pool):
            # such a name is also what people call the chip's siblings
            pool += [row for row in rows if row not in pool and _is_described(row, query)]
            known = described
        fitting = _fit(pool, known, named_in_full=matches is _has_catalogue_name)
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise _ambiguous(query, fitting)
        named += [row for row in pool if row not in named]
    if partition := _partition(named, evidence):
        return partition
    raise _unknown(query, named, described)


def _has_catalogue_name(row: Accelerator, query: ChipName) -> bool:
    return bool(query.words) and row.names[0].words == query.words


def _has_exact_name(row: Accelerator, query: ChipName) -> bool:
    return bool(query.words) and any(name.words == query.words for name in row.names)


def _has_sizeless_name(row: Accelerator, query: ChipName) -> bool:
    return bool(query.words) and any(name.words == query.model_words for name in row.names)


def _has_short_name(row: Accelerator, query: ChipName) -> bool:
    """ "4090" is the RTX 4090, not the RTX 4090 D."""
    return query.names_a_chip and any(
        tuple(word for word in name.model_words if word not in ("rtx", "rx")) == query.model_words for name in row.names
    )


def _is_described(row: Accelerator, query: ChipName) -> bool:
    return query.names_a_chip and _vocabulary()[(row.vendor, row.name)].issuperset(query.model_words)


@lru_cache(maxsize=1)
def _vocabulary() -> dict[tuple[str, str], frozenset[str]]:
    """The words that may describe each row; a runtime name that several rows share describes none of them."""
    owners: dict[tuple[str, ...], int] = {}
    for row in load():
        for words in {name.words for name in row.names}:
            owners[words] = owners.get(words, 0) + 1
    found = {}
    for row in load():
        names = [row.names[0], *(name for name in row.names[1:] if owners[name.words] == 1)]
        every = {word for name in names for word in name.model_words}
        found[(row.vendor, row.name)] = frozenset(every.union(parse_name(f"{row.vendor} {row.architecture}").words))
    return found


def _fit(pool: Iterable[Accelerator], known: _Evidence, named_in_full: bool = False) -> list[Accelerator]:
    """The rows of a pool that nothing known contradicts, best supported only."""
    rows = [row for row in pool if named_in_full or row.name_is_enough or _is_supported(row, known)]
    if known.compute_units is not None:
        rows = [row for row in rows if _has_units(row, known.compute_units)]
    if known.memory_bytes is not None:
        misfit = {row.name: _memory_misfit(row, known.memory_bytes) for row in rows}
        sized = [row for row in rows if misfit[row.name] is not None]
        least = min((value for value in misfit.values() if value is not None), default=0.0)
        close = [row for row in sized if (misfit[row.name] or 0.0) <= least + _SAME_FIT]
        # memory is soldered on in other sizes, and soft slices shrink what is reported, while the chip's count of
        # compute units stays: a unique chip that has the count is believed over the size
        agrees = known.compute_units is not None and len(rows) == 1 and rows[0].compute_units is not None
        rows = close if close or not agrees else rows
    if known.power_limit_w is not None and len(rows) > 1:
        distance = {row.name: abs((row.tdp_w or 0.0) / known.power_limit_w - 1) for row in rows}
        least = min(distance.values())
        if least <= 0.1:
            rows = [row for row in rows if distance[row.name] <= least + 0.02]
    return rows


def _is_supported(row: Accelerator, known: _Evidence) -> bool:
    """Whether something besides the name speaks for a row whose name is not enough."""
    if known.memory_bytes is not None:
        return _memory_misfit(row, known.memory_bytes) is not None
    return known.compute_units is not None and row.compute_units == known.compute_units


def _has_units(row: Accelerator, count: int) -> bool:
    if row.compute_units is None or row.compute_units == count:
        return True
    # RDNA runtimes count work-group processors of two compute units each
    return row.architecture.startswith("RDNA") and row.compute_units == 2 * count


def _memory_misfit(row: Accelerator, reported_bytes: float) -> float | None:
    """How far a reported size is from what this row would report; None where it cannot be this row's."""
    if row.memory_bytes is None:
        return 0.05
    ratio = reported_bytes / row.memory_bytes
    if row.vendor == "Apple" and ratio < 1:  # unified memory in many sizes; the row has the largest
        return 0.05
    if not _LEAST_REPORTED <= ratio <= _MOST_REPORTED:
        return None
    return min(abs(ratio - expected) for expected in _REPORTED_OVER_NOMINAL)


def _lookup_slice(query: ChipName, evidence: _Evidence, vendor: str | None) -> Accelerator:
    """A MIG slice: the chip it is cut from, scaled by compute units, or a refusal."""
    whole_name = query.text[: query.text.upper().index("MIG")].strip(" -/")
    return _slice(lookup(whole_name, vendor=vendor), query.text, query.slice_profile or "", evidence)


def _lookup_guest(guest: VirtualGpu, text: str, evidence: _Evidence) -> Accelerator:
    """A virtual GPU: a MIG slice, or turns on a whole chip, whose peak is then nobody's alone."""
    whole = lookup(guest.chip, vendor="NVIDIA")
    if guest.profile is not None:
        return _slice(whole, text, guest.profile, evidence)
    note = "a virtual GPU takes turns on the whole chip: the peak is the chip's, also while another guest has it"
    return replace(
        whole,
        name=f"{whole.name}, virtual GPU",
        memory_bytes=round(evidence.memory_bytes or guest.memory_bytes),
        basis="shared",
        notes=f"{note}; {whole.notes}" if whole.notes else note,
    )


def _slice(whole: Accelerator, text: str, profile: str, evidence: _Evidence) -> Accelerator:
    """The part of `whole` that a MIG profile has: by the units that the runtime counts, else by the driver's listing.

    Raises:
        UnknownAccelerator: neither is known, or the runtime's count can't be this slice's.
    """
    listed = mig_units(whole.name, whole.compute_units, profile)
    units = evidence.compute_units or listed
    if units is None or whole.compute_units is None or not 0 < units < whole.compute_units + (listed == units):
        raise UnknownAccelerator(
            f"{text!r} is a slice (MIG) of a {whole.name}: it does not have that chip's peak",
            hint="pass the slice's own compute units (compute_units=, --compute-units) to scale the chip's peak by, "
            f"or {PEAK_HINT}",
        )
    gigabytes = parse_name(f"MIG {profile}").slice_memory_gb
    share = gigabytes * 1e9 / whole.memory_bytes if gigabytes and whole.memory_bytes else None
    return scale(whole, units, f"MIG {profile}".strip(), share, evidence.memory_bytes)


def _partition(named: Sequence[Accelerator], known: _Evidence) -> Accelerator | None:
    """An AMD chip split into equal partitions (DPX, QPX, CPX) reports the whole chip's name and fewer units."""
    units = known.compute_units
    for row in named:
        if row.vendor == "AMD" and units and row.compute_units and units < row.compute_units:
            parts, rest = divmod(row.compute_units, units)
            if rest == 0 and row.name_is_enough:
                return scale(row, units, f"partition 1/{parts}", 1 / parts, known.memory_bytes)
    return None


def _ambiguous(query: ChipName, rows: Sequence[Accelerator]) -> AmbiguousAccelerator:
    deciders = []
    if len({row.memory_bytes for row in rows}) > 1:
        deciders.append("memory size (memory_bytes=, --memory-gb)")
    if len({row.compute_units for row in rows}) > 1:
        deciders.append("compute units (compute_units=, --compute-units)")
    if len({row.tdp_w for row in rows}) > 1:
        deciders.append("power limit (power_limit_w=, --power-limit-w)")
    how = ", or the ".join(deciders)
    how = f"the {how} tells them apart, or a full name does" if how else "use one of these names"
    names = [row.name for row in rows]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return AmbiguousAccelerator(f"{query.text!r} could be any of: {shown}", names, f"{how}; or {PEAK_HINT}")


def _unknown(query: ChipName, named: Sequence[Accelerator], known: _Evidence) -> EffprofError:
    if named and not any((known.memory_bytes, known.compute_units)):
        return AmbiguousAccelerator(
            f"{query.text!r} alone does not tell which chip it is; of that name the catalogue has "
            + ", ".join(row.name for row in named),
            [row.name for row in named],
            f"pass the memory size (memory_bytes=, --memory-gb) or compute units too, or {PEAK_HINT}",
        )
    if named:
        facts = [f"{known.memory_bytes / 1e9:.4g} GB"] if known.memory_bytes else []
        facts += [f"{known.compute_units} compute units"] if known.compute_units else []
        what = " and ".join(facts) or "what is known of it"
        sizes = ", ".join(f"{row.name} ({_describe_size(row)})" for row in named[:4])
        return UnknownAccelerator(
            f"{query.text!r} with {what} is not in the catalogue; of that name it has {sizes}",
            [row.name for row in named],
            hint=f"a slice, a partition or another chip? {PEAK_HINT}",
        )
    if "laptop" in query.words or "mobile" in query.words:
        return UnknownAccelerator(
            f"{query.text!r} is not in the catalogue: a laptop part has other clocks than its desktop namesake",
            _nearest(query),
        )
    return UnknownAccelerator(f"{query.text!r} is not in the catalogue of accelerators", _nearest(query))


def _describe_size(row: Accelerator) -> str:
    parts = [f"{row.memory_bytes / 1e9:g} GB"] if row.memory_bytes else []
    parts += [f"{row.compute_units} units"] if row.compute_units else []
    return ", ".join(parts) or "size not published"


def _nearest(query: ChipName, count: int = 5) -> list[str]:
    """Names in the catalogue that look most like the one asked for, best first."""
    if not query.words:
        return []
    text = " ".join(query.words)

    def likeness(row: Accelerator) -> float:
        spelling = max(difflib.SequenceMatcher(None, text, " ".join(name.words)).ratio() for name in row.names)
        words = _vocabulary()[(row.vendor, row.name)]
        begins = any(word.startswith(part) for part in query.model_words if len(part) >= 3 for word in words)
        return spelling + 0.5 * begins

    ranked = sorted(((likeness(row), row.name) for row in load()), key=lambda pair: -pair[0])
    return [name for score, name in ranked[:count] if score >= 0.6]
