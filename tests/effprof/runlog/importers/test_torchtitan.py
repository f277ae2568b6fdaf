"""torchtitan's line in its versions and prefixes, and what it prints before."""

from __future__ import annotations

from pathlib import Path

import pytest

from effprof.analysis.foreign import Given, examine_foreign
from effprof.runlog.importers.sniff import read_foreign

HEAD = """[rank0]:[titan] 2025-04-02 10:00:00,000 - root - INFO - \
Building 2-D device mesh with ['dp_shard', 'tp'], [4, 2]
[rank0]:[titan] 2025-04-02 10:00:00,000 - root - INFO - CUDA capacity: NVIDIA H100 80GB HBM3 with 79.10GiB memory
[rank0]:[titan] 2025-04-02 10:00:01,000 - root - INFO - Model llama3 8B size: 8,030,261,248 total parameters
[rank0]:[titan] 2025-04-02 10:00:02,000 - root - INFO - Training starts at step 1, with local batch size 2, \
global batch size 8, sequence length 8192, total steps 1000 (warmup 200).
"""
PREFIXES = {
    "own": "[rank0]:[titan] 2025-04-02 10:00:{0:02},000 - root - INFO - ",
    "coloured": "[rank0]:\x1b[36m[titan]\x1b[0m 2025-04-02 10:00:{0:02},000 - root - INFO - \x1b[31m",
    "argonne": "[2025-09-11 14:09:{0:02},954794][I][components/metrics:437:log] ",
}
FIELDS = {
    "2025": "step: {0:2}  loss: 10.8595  grad_norm:  3.2105  memory: 47.28GiB(59.77%)  tps: 6,697  tflops: 387.9  "
    "mfu: 39.22%",
    "no-flops": "step: {0:2}  loss: 10.8595  memory:  0.00GiB(0.00%)  tps: 6,697",
    "2024": "step: {0:2}  loss: 10.8595  memory: 47.28GiB(59.77%)  wps: 6,697  mfu: 39.22%",
}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("fields", FIELDS)
def test_a_line_of_each_version(tmp_path: Path, prefix: str, fields: str) -> None:
    path = tmp_path / "log"
    path.write_text(HEAD + "".join((PREFIXES[prefix] + FIELDS[fields]).format(step) + "\n" for step in range(1, 13)))
    log = read_foreign(str(path))
    assert (log.format, log.records) == ("torchtitan", 12)
    assert log.columns["tokens_per_s_per_device"].tolist() == [6697] * 12
    assert (log.facts["world_size"], log.facts["sequence_length"], log.facts["global_batch"]) == (8, 8192, 8)
    if fields == "2025":
        assert log.columns["mfu"][0] == pytest.approx(0.3922)
        assert log.columns["memory_bytes"][0] == pytest.approx(47.28 * 2**30)


def test_step_time_follows_from_the_rate_and_the_batch(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(HEAD + "".join((PREFIXES["own"] + FIELDS["2025"]).format(step) + "\n" for step in range(1, 13)))
    efficiency = examine_foreign(str(path)).analysis.efficiency
    assert efficiency.tokens_per_s.median == pytest.approx(8 * 6697)
    assert efficiency.step_time_s.median == pytest.approx(8 * 8192 / (8 * 6697))


def test_a_claim_on_another_peak_is_explained(tmp_path: Path) -> None:
    """torchtitan divides by an A100's 312 TFLOP/s where it does not know the chip."""
    model = {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    }
    path = tmp_path / "log"
    fields = FIELDS["2025"].replace("39.22", "124.33")
    path.write_text(HEAD + "".join((PREFIXES["own"] + fields).format(step) + "\n" for step in range(1, 13)))
    analysis = examine_foreign(str(path), Given(model=model)).analysis
    assert analysis.source is not None
    assert analysis.source.claimed.mfu == pytest.approx(1.2433)
    assert analysis.efficiency.mfu.value is not None
    assert 0.3 < analysis.efficiency.mfu.value < 0.4
    why = next(warning.message for warning in analysis.warnings if warning.code == "claimed_mfu_differs")
    assert "312 TFLOP/s, the dense peak is 989" in why
