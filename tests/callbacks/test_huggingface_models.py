"""EfficiencyCallback on real transformers models with random weights: FLOPs, padding, packing and expert load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import tiny_lightning
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from effprof.analysis.analyze import analyze
from effprof.callbacks import EfficiencyCallback
from effprof.reports import json as json_report
from effprof.reports import markdown, terminal
from effprof.runlog.reader import open_run
from effprof.workload.architecture import from_hf_config
from effprof.workload.flops import flops_model

WIDTH = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "use_cache": False,
}
ROWS, LENGTH = 4, 24
LENGTHS = (24, 20, 9, 3)  # real tokens per row, padded on the right


class Wrapped(pl.LightningModule):
    """A transformers model in a LightningModule, as people write it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.model(**batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def llama() -> tuple[Any, Any]:
    config = LlamaConfig(**WIDTH)
    return config, LlamaForCausalLM(config)


def mixtral() -> tuple[Any, Any]:
    config = MixtralConfig(**WIDTH, num_local_experts=4, num_experts_per_tok=2, sliding_window=None)
    return config, MixtralForCausalLM(config)


def padded(steps: int) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    batches = []
    for _ in range(steps):
        ids = torch.randint(3, WIDTH["vocab_size"], (ROWS, LENGTH))
        mask = (torch.arange(LENGTH)[None, :] < torch.tensor(LENGTHS)[:, None]).long()
        labels = torch.where(mask == 1, ids, -100)
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return batches


def fit(directory: Path, model: Any, batches: list[Any], **settings: Any) -> Any:
    torch.set_num_threads(1)
    cb = EfficiencyCallback(peak_tflops=0.5, telemetry=False, run_dir=directory / "run", **settings)
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    tiny_lightning.trainer(directory, [cb], max_steps=len(batches)).fit(Wrapped(model), loader)
    return open_run(str(directory / "run"))


@pytest.mark.parametrize("make", [llama, mixtral])
def test_flops_follow_the_tokens_and_pairs_that_padding_leaves(tmp_path: Path, make: Any) -> None:
    config, model = make()
    run = fit(tmp_path, model, padded(8))
    architecture = from_hf_config(config.to_dict() | {"architectures": [type(model).__name__]})
    per_unit = flops_model(architecture).conventions["exact"]
    tokens = sum(LENGTHS)
    pairs = sum(length * (length + 1) // 2 for length in LENGTHS)
    expected = per_unit["tokens"] * tokens + per_unit["pairs"] * pairs
    result = analyze(run)
    assert result.efficiency.conventions.exact.flops_per_step == pytest.approx(expected)
    assert result.efficiency.tokens_per_step == tokens
    assert result.efficiency.padding_share == pytest.approx(1 - tokens / (ROWS * LENGTH))
    assert result.efficiency.conventions.palm.flops_per_step == pytest.approx(
        per_unit["tokens"] * tokens + per_unit["pairs"] * tokens * LENGTH
    )
    counts = run.record.flops.counts
    assert abs(counts["difference"]) < 1e-3
    assert run.record.flops.source == "closed_form"


def test_packed_documents_do_less_attention_than_one_long_one(tmp_path: Path) -> None:
    config, model = llama()

    def packed(lengths: list[int]) -> list[Any]:
        ids = torch.randint(3, WIDTH["vocab_size"], (1, sum(lengths)))
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        return [{"input_ids": ids, "labels": ids, "position_ids": positions}] * 6

    def flops(name: str, lengths: list[int]) -> float:
        (tmp_path / name).mkdir()
        value = analyze(fit(tmp_path / name, model, packed(lengths))).efficiency.conventions.exact.flops_per_step
        assert value is not None
        return value

    per_pair = flops_model(from_hf_config(config.to_dict())).conventions["exact"]["pairs"]
    # 48 tokens: one document has 48*49/2 pairs, four of 12 have 4 * 12*13/2
    assert flops("long", [48]) - flops("short", [12] * 4) == pytest.approx(per_pair * (48 * 49 / 2 - 4 * 12 * 13 / 2))


def test_expert_load_reaches_the_analysis_and_every_report(tmp_path: Path) -> None:
    _, model = mixtral()
    run = fit(tmp_path, model, padded(12), experts_every_n_steps=4)
    result = analyze(run)
    assert result.moe is not None
    assert len(result.moe.layers) == 2
    for layer in result.moe.layers:
        assert len(layer.tokens_per_expert) == 4
        assert layer.imbalance is not None
        assert layer.imbalance >= 1
    samples = run.attempts[0].ranks[0].experts
    assert [sample.step for sample in samples] == [2, 4, 8, 12]
    for sample in samples:
        # every position goes to two experts, padding too
        assert [sum(counts) for counts in sample.tokens_per_expert] == [2 * ROWS * LENGTH] * 2
    assert "experts" in terminal.render(result)
    assert "xpert" in markdown.render(result)
    assert json.loads(json_report.render(result))["moe"]["layers"][0]["imbalance"] == result.moe.layers[0].imbalance


def test_lora_counts_only_the_backward_that_is_computed(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    _, model = llama()
    (tmp_path / "full").mkdir()
    (tmp_path / "lora").mkdir()
    full = analyze(fit(tmp_path / "full", model, padded(4))).efficiency.conventions.exact.flops_per_step
    adapted = get_peft_model(llama()[1], LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    run = fit(tmp_path / "lora", adapted, padded(4))
    lora = analyze(run).efficiency.conventions.exact.flops_per_step
    assert full is not None
    assert lora is not None
    # forward and input gradients remain, weight gradients of the frozen matrices do not
    assert 0.6 < lora / full < 0.75
    assert run.record.flops.source == "operation_count"
