"""What published logs claim, made again by their tools' own way of counting, and the exact figure beside it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from effprof.workload.architecture import from_hf_config

SCRIPT = Path(__file__).resolve().parents[4] / "benchmarks" / "claims_table.py"
# exact MFU of logs whose claim is another, share of the dense peak
EXACT_MFU = {
    "maxtext_deepseek2_16b_v5p4.log": 0.2939,
    "maxtext_dpo_qwen3_notebook.log": 0.1404,
    "internevo_7b_a100x8.log": 0.5765,
    "megatron_deepspeed_bloom176b_a100x384_spike.log": 0.3522,
    "megatron_deepspeed_104b_lossscale_drop.log": 0.1961,
    "torchtitan_aurora_xpu24.log": 0.1372,
    "wordplay_polaris_a100x8_mfu_neg.log": 0.0415,
}
# parameters as the logs print them, or as their models are published
PARAMETERS = {
    "llama2-6-layers": 1_476_448_256,
    "auroragpt-2b": 1_986_054_144,
    "llama-3.2-1b": 1_235_814_400,
    "bloom-176b": 176_247_271_424,
    "deepseek-v2-lite": 15_706_484_224,
}


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("claims_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["claims_table"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


TABLE = load_script()
CLAIMING = [case for case in TABLE.CASES if "claimed" not in case.why and not case.log.startswith(("olmo", "hf_"))]


@pytest.mark.parametrize("case", CLAIMING, ids=lambda case: case.log)
def test_a_claim_is_made_again_by_the_tool_s_own_counting(case: object) -> None:
    log = case.log  # type: ignore[attr-defined]
    if not (TABLE.LOGS / log).exists():
        pytest.skip(f"{TABLE.LOGS / log} is not here: other people's logs lie beside the repository only")
    result = TABLE.evaluate(case)
    assert result.difference == pytest.approx(0, abs=TABLE.TOLERANCE)
    if log in EXACT_MFU:
        assert result.analysis.efficiency.mfu.value == pytest.approx(EXACT_MFU[log], rel=2e-3)
    differs = [warning for warning in result.analysis.warnings if warning.code == "claimed_mfu_differs"]
    assert bool(differs) is (log != "maxtext_deepseek2_16b_v5p4.log")
    if log == "maxtext_dpo_qwen3_notebook.log":
        assert "a third more" in differs[0].message
    if log == "torchtitan_aurora_xpu24.log":
        assert "it divides by 298.3 TFLOP/s, the dense peak is 419.4" in differs[0].message


def test_every_published_log_is_in_the_table_or_in_the_list_beneath_it() -> None:
    if not TABLE.LOGS.is_dir():
        pytest.skip(f"{TABLE.LOGS} is not here: other people's logs lie beside the repository only")
    assert TABLE.unlisted() == []


@pytest.mark.parametrize(("model", "parameters"), PARAMETERS.items())
def test_the_models_have_the_parameters_that_are_published(model: str, parameters: int) -> None:
    config = TABLE.read_model(model)
    assert config["_source"]
    assert from_hf_config(config).parameters_total == parameters
