"""From an architecture to FLOPs: the linear model that a run's steps are evaluated with, and a report for one length.

All figures are training FLOPs (forward and backward, a multiply-add is two) with every parameter trained. Conventions:

- exact: attention counts the query-key pairs that the mask leaves, T(T+1)/2 of a causal sequence of length T.
- megatron: T/2 pairs per token where attention is causal, T where it is not; windows are ignored
  (Megatron-LM, `num_floating_point_operations`).
- palm: T pairs per token (PaLM, arXiv:2204.02311, appendix B); torchtitan's figure is this one.
- 6n: 6 × active parameters × tokens, embedding and head included, a tied one once (arXiv:2001.08361).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from effprof.errors import EffprofError
from effprof.workload.architecture import Architecture, Term
from effprof.workload.model import CONVENTIONS, FlopsModel

SCHEMA = "effprof.flops/1"


def flops_model(architecture: Architecture) -> FlopsModel:
    """Training FLOPs per unit of each counter, for every convention."""
    if architecture.positions_per_sample is None:
        parameters = {"tokens": 6.0 * architecture.parameters_active}
    else:
        parameters = {"samples": 6.0 * architecture.parameters_active * architecture.positions_per_sample}
    return FlopsModel(
        conventions={
            "exact": _add_up((term.per, term.flops) for term in architecture.terms),
            "megatron": _add_up(_masked_term(term, 0.5) for term in architecture.terms),
            "palm": _add_up(_masked_term(term, 1.0) for term in architecture.terms),
            "6n": parameters,
        },
        window=architecture.window,
        causal=architecture.causal,
        notes=architecture.notes,
    )


def counts_for(
    architecture: Architecture, samples: int, seq: int | None = None, target_seq: int | None = None
) -> dict[str, float]:
    """Counters of a batch without padding: `samples` sequences of `seq` tokens (and `target_seq` in the decoder)."""
    if architecture.positions_per_sample is not None:
        return {"samples": samples, "positions": samples * architecture.positions_per_sample}
    if seq is None:
        raise EffprofError(f"{architecture.family} needs a sequence length", "Pass --seq.")
    if architecture.is_encoder_decoder:
        target = seq if target_seq is None else target_seq
        return {
            "samples": samples,
            "positions": samples * (seq + target),
            "tokens": samples * (seq + target),
            "loss_tokens": samples * target,
            "source_tokens": samples * seq,
            "target_tokens": samples * target,
            "pairs": samples * pairs_of(target, causal=True),
            "square_pairs": samples * target**2,
            "source_pairs": samples * seq**2,
            "source_square_pairs": samples * seq**2,
            "cross_pairs": samples * seq * target,
        }
    return {
        "samples": samples,
        "positions": samples * seq,
        "tokens": samples * seq,
        "loss_tokens": samples * seq,
        "pairs": samples * pairs_of(seq, causal=architecture.causal),
        "window_pairs": samples * pairs_of(seq, causal=architecture.causal, window=architecture.window),
        "square_pairs": samples * seq**2,
    }


def pairs_of(length: int, *, causal: bool, window: int | None = None) -> int:
    """Query-key pairs of one sequence: T² without a mask, Σ min(i + 1, window) under a causal one."""
    if not causal:
        return length * length
    reach = length if window is None else min(window, length)
    return reach * (reach + 1) // 2 + (length - reach) * reach


@dataclass(frozen=True)
class FlopsReport:
    """The answer of `effprof flops`. `flops_per_token` is None for models that take no tokens; in an encoder-decoder
    a token is a source or a target token."""

    architecture: Architecture
    seq: int | None
    target_seq: int | None
    flops_per_sample: float
    flops_per_token: Mapping[str, float] | None
    by_convention: Mapping[str, float]
    breakdown: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """The report as plain values, schema effprof.flops/1."""
        architecture = self.architecture
        return {
            "schema": SCHEMA,
            "model_type": architecture.family,
            "architecture": architecture.name,
            "params": {"total": architecture.parameters_total, "active": architecture.parameters_active},
            "seq": self.seq,
            "target_seq": self.target_seq,
            "positions_per_sample": architecture.positions_per_sample,
            "causal": architecture.causal,
            "window": architecture.window,
            "flops_per_token": None if self.flops_per_token is None else dict(self.flops_per_token),
            "flops_per_sample": self.flops_per_sample,
            "flops_per_sample_by_convention": dict(self.by_convention),
            "breakdown": dict(self.breakdown),
            "notes": list(architecture.notes),
        }


def report(architecture: Architecture, seq: int | None = None, target_seq: int | None = None) -> FlopsReport:
    """Training FLOPs of one unpadded sequence, or image, in every convention, and the exact ones by part of the model.

    Args:
        seq: tokens of the sequence (of the source, in an encoder-decoder); unused by models that take no tokens.
        target_seq: tokens of the target in an encoder-decoder; `seq` by default.

    Raises:
        EffprofError: a length is missing, not positive, or does not apply.
    """
    for name, length in (("--seq", seq), ("--target-seq", target_seq)):
        if length is not None and length <= 0:
            raise EffprofError(f"{name} is {length}; a sequence has at least one token")
    if target_seq is not None and not architecture.is_encoder_decoder:
        raise EffprofError(f"{architecture.family} has no decoder of its own, so --target-seq does not apply")
    counts = counts_for(architecture, 1, seq, target_seq)
    model = flops_model(architecture)
    totals = {name: model.evaluate(counts, name) or 0.0 for name in CONVENTIONS}
    tokens = counts.get("tokens")
    is_fixed = architecture.positions_per_sample is not None
    return FlopsReport(
        architecture=architecture,
        seq=None if is_fixed else seq,
        target_seq=(target_seq or seq) if architecture.is_encoder_decoder else None,
        flops_per_sample=totals["exact"],
        flops_per_token=None if tokens is None else {name: total / tokens for name, total in totals.items()},
        by_convention=totals,
        breakdown=_breakdown(architecture, counts),
    )


def _breakdown(architecture: Architecture, counts: Mapping[str, float]) -> dict[str, float]:
    parts: dict[str, float] = {}
    for term in architecture.terms:
        parts[term.group] = parts.get(term.group, 0.0) + term.flops * counts[term.per]
    return parts


def _masked_term(term: Term, causal_share: float) -> tuple[str, float]:
    if not term.square:
        return term.per, term.flops
    return term.square, term.flops * (causal_share if term.is_causal else 1.0)


def _add_up(terms: Any) -> dict[str, float]:
    total: dict[str, float] = {}
    for counter, flops in terms:
        total[counter] = total.get(counter, 0.0) + flops
    return total
