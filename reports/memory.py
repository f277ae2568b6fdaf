"""The memory account as rows and sentences that the terminal and the Markdown report share."""

from __future__ import annotations

from effprof.analysis.memory_model import MEMORY_LINES, MemoryPrediction
from effprof.analysis.model import Analysis
from effprof.reports.text import clean, gibibytes, percent

HEADERS = ("memory at its peak", "size", "share")
_NAMES = {"cached_free": "cached, free", "non_torch": "beside the allocator"}
_BASES = {
    "allocator": "the allocator's peak",
    "tracker": "tensors of one tracked step and the process's peak",
    "fake_copy": "predicted tensors (rehearsed on a fake copy) and the process's peak",
    "predicted": "predicted tensors (rehearsed on a fake copy)",
}
_SOURCES = {"closed_form": "in closed form", "fake_copy": "on a fake copy"}
_SMALL_SHARE = 0.0005


def rows(analysis: Analysis) -> list[tuple[str, str, str]]:
    """(line, size, share of the peak) of the account, in its fixed order; nothing without one."""
    account = analysis.memory.account
    if account is None:
        return []
    peak = account.peak_bytes or 1
    return [
        (line_label(name), gibibytes(account.lines[name]), percent(account.lines[name] / peak))
        for name in MEMORY_LINES
        if name in account.lines and abs(account.lines[name]) / peak >= _SMALL_SHARE
    ]


def line_label(line: str) -> str:
    """What reports call a line of the account."""
    return _NAMES.get(line, line)


def basis_text(analysis: Analysis) -> str:
    """What the account's peak is."""
    account = analysis.memory.account
    return "" if account is None else f"{gibibytes(account.peak_bytes)}: {_BASES.get(account.basis, account.basis)}"


def prediction_text(analysis: Analysis) -> str:
    """Predicted peaks of tensors, each beside the measured one."""
    return " · ".join(_prediction(each) for each in analysis.memory.predictions)


def failure_texts(analysis: Analysis) -> list[str]:
    """What filled the memory when it ran out."""
    failure = analysis.memory.out_of_memory
    if failure is None:
        return []
    parts = [
        (f"{gibibytes(failure.requested_bytes)} asked for", failure.requested_bytes),
        (f"states {_size(failure.states_bytes)}", failure.states_bytes),
        (f"in tensors {_size(failure.allocated_bytes)}", failure.allocated_bytes),
        (f"reserved {_size(failure.reserved_bytes)}", failure.reserved_bytes),
        (f"free on the device {_size(failure.device_free_bytes)}", failure.device_free_bytes),
        (f"process {_size(failure.process_rss_bytes)} resident", failure.process_rss_bytes),
        (f"available on the host {_size(failure.host_available_bytes)}", failure.host_available_bytes),
    ]
    known = " · ".join(text for text, size in parts if size is not None)
    texts = [f"rank {failure.rank}: {clean(failure.message)}", known]
    largest = " · ".join(
        f"{each.number} × {clean(each.shape, 60)} {gibibytes(each.bytes)}" for each in failure.largest[:4]
    )
    if largest:
        texts.append(f"largest tensors still held: {largest}")
    return [text for text in texts if text]


def _prediction(prediction: MemoryPrediction) -> str:
    text = f"{gibibytes(prediction.peak_bytes)} predicted {_SOURCES.get(prediction.source, prediction.source)}"
    if prediction.peak_at:
        text += f" ({clean(prediction.peak_at)})"
    if prediction.ratio is not None:
        text += f", {prediction.ratio:.2f} × measured"
    return text


def _size(size: int | None) -> str:
    return "" if size is None else gibibytes(size)
