"""The keys that scripts rely on: a golden file that may grow, a document that cannot lag behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from effprof.analysis.analyze import analyze, examine
from effprof.analysis.compare import Comparison, compare
from effprof.analysis.model import Analysis
from effprof.analysis.schema_doc import keys
from effprof.reports import json as json_report
from effprof.runlog.reader import open_run

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "data" / "analysis"

# From the design, letter by letter.
CONTRACT = """
schema run.id run.path run.framework run.world_size run.attempts run.started_at run.ended
efficiency.mfu.value efficiency.mfu.ci95 efficiency.mfu.convention efficiency.mfu.dtype
efficiency.mfu.peak_flops_per_s efficiency.mfu.peak_source efficiency.mfu_wall.value efficiency.hfu.value
efficiency.conventions.exact.flops_per_step efficiency.conventions.megatron.flops_per_token
efficiency.conventions.palm.mfu efficiency.conventions.6n.flops_per_step
efficiency.steps.total efficiency.steps.steady efficiency.tokens_per_step efficiency.padding_share
efficiency.step_time_s.median efficiency.step_time_s.p95 efficiency.step_time_s.ci95
efficiency.tokens_per_s.median efficiency.tokens_per_s.p5 efficiency.tokens_per_s.ci95
efficiency.tokens_per_s_per_device.median efficiency.samples_per_s.median
account.basis account.wall_s account.lines kernel_account memory
moe.layers[].name moe.layers[].tokens_per_expert moe.layers[].imbalance moe.layers[].dropped_share moe.imbalance
ranks[].account.lines hardware findings warnings[].code warnings[].message
"""


def assert_only_grown(golden: Path, document: type[msgspec.Struct]) -> None:
    now = [key.line for key in keys(document)]
    before = golden.read_text().splitlines()
    gone = [line for line in before if line not in now]
    assert not gone, f"keys of a published schema were renamed, removed or changed: {gone}"
    new = [line for line in now if line not in before]
    assert not new, f"add the new keys to {golden.name}: {new}"


def test_published_keys_stay() -> None:
    assert_only_grown(GOLDEN / "analysis_1_keys.txt", Analysis)
    assert_only_grown(GOLDEN / "compare_1_keys.txt", Comparison)


def test_the_design_s_keys_are_there() -> None:
    paths = {key.path for key in keys(Analysis)}
    missing = set(CONTRACT.split()) - paths
    assert not missing, missing


def found_paths(value: Any, prefix: str = "") -> set[str]:
    if isinstance(value, dict):
        below = (found_paths(item, f"{prefix}.{key}" if prefix else key) for key, item in value.items())
        return {prefix, *(path for paths in below for path in paths)}
    if isinstance(value, list):
        return {prefix, *(path for item in value for path in found_paths(item, f"{prefix}[]"))}
    return {prefix}


def test_what_is_printed_has_the_keys(simple_run: Any) -> None:
    printed = msgspec.json.decode(json_report.render(analyze(open_run(str(simple_run.path)))))
    paths = found_paths(printed)
    optional = (
        "moe.",
        "operators.",
        "ranks[].account",
        "warnings[]",
        "rank_spread.",
        "findings[]",
        "not_evaluated[]",
        "source.",
        "hardware.telemetry[]",
        "timeline.",
        "kernel_account.",
        "memory.account.",
        "memory.predictions[]",
        "memory.out_of_memory.",
    )
    for key in keys(Analysis):
        if not key.path.startswith(optional):
            assert key.path in paths, key.path
    assert printed["efficiency"]["conventions"]["6n"]["mfu"] > 0


def test_documents_read_back_as_their_types(simple_run: Any) -> None:
    examined = examine(open_run(str(simple_run.path)))
    assert msgspec.json.decode(json_report.render(examined.analysis), type=Analysis) == examined.analysis
    comparison = compare([examined, examined])
    assert msgspec.json.decode(json_report.render_comparison(comparison), type=Comparison) == comparison
