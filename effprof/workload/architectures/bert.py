"""BERT and RoBERTa: bidirectional encoders with learned positions, and the heads that they are trained with."""

from __future__ import annotations

from effprof.workload.architecture import Architecture, Builder, Config
from effprof.workload.architectures._parts import HEAD, architecture_name, feed_forward, full_attention

MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "camembert")
_PREFIXES = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert"}


def build(config: Config) -> Architecture:
    """The head follows the class in `architectures`: masked LM, sequence, token or span labels, or the bare encoder."""
    if config.flag("is_decoder", False) or config.flag("add_cross_attention", False):
        raise config.unsupported("is_decoder or add_cross_attention")
    builder = Builder(config, "", causal=False)
    builder.name = architecture_name(config, f"{_PREFIXES[config.family]}ForMaskedLM", builder.notes)
    hidden, layers = config.number("hidden_size"), config.number("num_hidden_layers")
    heads, vocabulary = config.number("num_attention_heads"), config.number("vocab_size")
    rows = vocabulary + config.number("max_position_embeddings") + config.number_or("type_vocab_size", 2)
    builder.weights(rows * hidden + 2 * hidden + 4 * hidden * layers)
    full_attention(builder, hidden, heads, layers, bias=True)
    feed_forward(builder, hidden, config.number("intermediate_size"), gated=False, layers=layers, bias=True)
    _head(builder, hidden, vocabulary)
    return builder.build()


def _head(builder: Builder, hidden: int, vocabulary: int) -> None:
    config, name = builder.config, builder.name
    is_bert = config.family == "bert"
    is_tied = config.flag("tie_word_embeddings", True)
    if name.endswith("ForMaskedLM"):
        builder.linear(HEAD, hidden, hidden, bias=True)
        builder.weights(2 * hidden)
        builder.linear(HEAD, hidden, vocabulary, bias=True, is_tied=is_tied)
    elif name == "BertForPreTraining":
        builder.linear(HEAD, hidden, hidden, bias=True)
        builder.weights(2 * hidden)
        builder.linear(HEAD, hidden, vocabulary, bias=True, is_tied=is_tied)
        builder.linear(HEAD, hidden, hidden, bias=True, per="samples")
        builder.linear(HEAD, hidden, 2, bias=True, per="samples")
    elif name.endswith("ForSequenceClassification"):
        # BERT's pooler or RoBERTa's classification head: one dense layer on the first position
        builder.linear(HEAD, hidden, hidden, bias=True, per="samples")
        builder.linear(HEAD, hidden, config.labels(), bias=True, per="samples")
    elif name.endswith("ForTokenClassification"):
        builder.linear(HEAD, hidden, config.labels(), bias=True)
    elif name.endswith("ForQuestionAnswering"):
        builder.linear(HEAD, hidden, 2, bias=True)
    elif name.endswith("Model"):
        # the pooler exists, but a loss on the hidden states never reaches it
        builder.weights(hidden * hidden + hidden)
        builder.notes.append("the pooler's parameters are counted, its FLOPs (one position per sample) are not")
    else:
        raise config.unsupported(f"the head of {name}" + ("" if is_bert else " yet"))
