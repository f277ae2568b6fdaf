"""JSON files of transformers' Trainer: the state of a checkpoint, and the results that scripts save at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from effprof.analysis.foreign import examine_foreign
from effprof.errors import EffprofError
from effprof.runlog.importers.sniff import read_foreign, recognise

ENDING = {
    "epoch": 1.0,
    "total_flos": 1.5e15,
    "train_loss": 2.5,
    "train_runtime": 120.0,
    "train_samples_per_second": 8.0,
    "train_steps_per_second": 1.0,
}


def state(**more: Any) -> dict[str, Any]:
    history: list[dict[str, Any]] = [
        {"epoch": step / 10, "loss": 3 - step / 10, "step": step, "num_input_tokens_seen": 4096 * step}
        for step in range(1, 11)
    ]
    history.append({**ENDING, "step": 10})
    return {
        **{"log_history": history, "global_step": 10, "is_world_process_zero": True, "max_steps": 10},
        **{"train_batch_size": 4, "total_flos": 1.5e15, **more},
    }


def test_the_state_of_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps(state(), indent=2))
    log = read_foreign(str(path))
    assert (log.format, log.records) == ("hf-trainer", 10)
    assert log.columns["consumed_tokens"].tolist() == [4096 * step for step in range(1, 11)]
    assert (log.facts["micro_batch"], log.facts["total_flops"]) == (4, 1.5e15)
    assert examine_foreign(str(path)).analysis.efficiency.step_time_s.median is None, "it holds no times"


def test_numbers_that_no_float_holds_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "trainer_state.json"
    text = json.dumps(state(), indent=2)
    path.write_text(text.replace('"num_input_tokens_seen": 4096\n', f'"num_input_tokens_seen": 1{"0" * 400}\n'))
    log = read_foreign(str(path))
    assert log.records == 10
    assert [str(each) for each in log.columns["consumed_tokens"][:2]] == ["nan", "8192.0"]
    printed = tmp_path / "train.log"
    printed.write_text("".join(f"{{'loss': {step}{'0' * 400}, 'epoch': {step}}}\n" for step in range(1, 9)))
    with pytest.raises(EffprofError, match="no step of the Trainer"):
        read_foreign(str(printed))


def test_results_alone_are_the_whole_run_s_averages(tmp_path: Path) -> None:
    path = tmp_path / "all_results.json"
    path.write_text(json.dumps({**ENDING, "eval_loss": 2.0, "train_samples": 960}, indent=4))
    analysis = examine_foreign(str(path)).analysis
    assert analysis.source is not None
    assert (analysis.source.format, analysis.source.steps) == ("hf-trainer", 0)
    assert analysis.efficiency.step_time_s.median is None
    notes = {warning.code: warning.message for warning in analysis.warnings}
    assert "8 samples/s over 120 s" in notes["run_averages"]
    (tmp_path / "trainer_state.json").write_text(json.dumps(state()))
    assert recognise(str(path)) is None, "the state beside it says more"
