"""DistilBERT: BERT without token types and pooler."""

from __future__ import annotations

from effprof.workload.architecture import Architecture, Builder, Config
from effprof.workload.architectures._parts import HEAD, architecture_name, feed_forward, full_attention

MODEL_TYPES = ("distilbert",)


def build(config: Config) -> Architecture:
    """Key names are DistilBERT's own (`dim`, `n_layers`, `n_heads`, `hidden_dim`)."""
    builder = Builder(config, "", causal=False)
    builder.name = architecture_name(config, "DistilBertForMaskedLM", builder.notes)
    hidden, layers = config.number("dim", "hidden_size"), config.number("n_layers", "num_hidden_layers")
    heads, vocabulary = config.number("n_heads", "num_attention_heads"), config.number("vocab_size")
    builder.weights((vocabulary + config.number("max_position_embeddings")) * hidden + 2 * hidden + 4 * hidden * layers)
    full_attention(builder, hidden, heads, layers, bias=True)
    feed_forward(builder, hidden, config.number("hidden_dim"), gated=False, layers=layers, bias=True)
    name = builder.name
    if name.endswith("ForMaskedLM"):
        builder.linear(HEAD, hidden, hidden, bias=True)
        builder.weights(2 * hidden)
        builder.linear(HEAD, hidden, vocabulary, bias=True, is_tied=config.flag("tie_word_embeddings", True))
    elif name.endswith("ForSequenceClassification"):
        builder.linear(HEAD, hidden, hidden, bias=True, per="samples")
        builder.linear(HEAD, hidden, config.labels(), bias=True, per="samples")
    elif name.endswith("ForTokenClassification"):
        builder.linear(HEAD, hidden, config.labels(), bias=True)
    elif name.endswith("ForQuestionAnswering"):
        builder.linear(HEAD, hidden, 2, bias=True)
    elif not name.endswith("Model"):
        raise config.unsupported(f"the head of {name}")
    return builder.build()
