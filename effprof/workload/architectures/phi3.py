"""Phi-3 and Phi-4: Llama with fused projections, which changes nothing here, and an optional window."""

from __future__ import annotations

from effprof.workload.architecture import Architecture, Config
from effprof.workload.architectures._parts import llama_like

MODEL_TYPES = ("phi3",)


def build(config: Config) -> Architecture:
    """The window, where the config has one, holds for all layers."""
    windows = [config.get("sliding_window")] * config.number("num_hidden_layers")
    return llama_like(config, "Phi3ForCausalLM", windows=windows)
