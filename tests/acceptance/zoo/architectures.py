"""Tiny models of the architectures that AutoModelForSequenceClassification knows."""

import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from tests.acceptance.zoo.corpus import PLAIN_TEXTS
from tests.acceptance.zoo.specimens import (
    LABELS,
    MAX_LENGTH,
    Expected,
    Refused,
    Served,
    Specimen,
    change_json,
)
from tests.acceptance.zoo.tokenizers import KINDS, TokenIds, Vocabularies, is_missing

# Positions that any of them has: more than MAX_LENGTH, and what RoBERTa's families leave unused.
_POSITIONS = 128
# Sizes under every name that configurations have for them; those of the class are set.
_SIZES: Mapping[str, Any] = {
    "hidden_size": 32,
    "d_model": 32,
    "dim": 32,
    "n_embd": 32,
    "emb_dim": 32,
    "embedding_size": 32,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_attention_heads": 4,
    "num_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "d_kv": 8,
    "intermediate_size": 64,
    "hidden_dim": 64,
    "ffn_dim": 64,
    "d_ff": 64,
    "d_inner": 64,
    "dff": 64,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": _POSITIONS,
    "n_positions": _POSITIONS,
    "max_seq_len": _POSITIONS,
    "type_vocab_size": 2,
    "initializer_range": 0.15,
    "init_std": 0.15,
    "embed_init_std": 0.15,
    "initializer_factor": 1.0,
}
# Mixtures of experts: four, of which two compute each token.
_EXPERTS: Mapping[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
# Latent attention, whose sizes are its own.
_LATENT: Mapping[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_SAVED = "tokenizer of 4.57"
_BIAS_STD = 0.05
# Many checkpoints have an embedding of padding that is not zero.
_PADDING_STD = 0.3
_MAX_SCALE = 100.0


@dataclass(frozen=True)
class Architecture:
    """A model type, the tokenizer that goes with it, and sizes other than the usual ones."""

    model_type: str
    tokenizer: str
    sizes: Mapping[str, Any] = field(default_factory=dict)
    expected: Expected = field(default_factory=Served)
    alternative: Expected | None = None
    name: str = ""
    # A saved tokenizer in tests/acceptance/zoo/transformers_4, instead of one of ours.
    saved: bool = False
    # What the tokenizer's configuration says.
    max_length: int = MAX_LENGTH

    @property
    def title(self) -> str:
        return self.name or self.model_type


_REFORMER: Mapping[str, Any] = {
    "attn_layers": ["local", "lsh"],
    "attention_head_size": 8,
    "feed_forward_size": 64,
    "axial_pos_embds": False,
    "local_attn_chunk_length": 8,
    "lsh_attn_chunk_length": 8,
    "num_buckets": 4,
}


def _long_rope(positions: int) -> dict[str, Any]:
    """Return rotary positions that are other ones for texts of more than so many tokens."""
    return {
        "original_max_position_embeddings": positions,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [2.0, 3.0, 4.0, 5.0],
            "original_max_position_embeddings": positions,
        },
    }


_SAME_FOR_ALL = Refused("model|weights", "same .*(all|every|each)", "")
# Their input is more than a text, as the tokenizer says.
_MORE_THAN_TEXT = Refused("tokenizer|model", "box|table|html|node|xpath|layout|pair", "")
_ANSWERS_VARY = Refused(
    "model", "answers otherwise when the same text is asked again", "deterministic|--max-length"
)
_LACKS_PACKAGE = "needs a package that is not installed.*{}"
ARCHITECTURES: Sequence[Architecture] = (
    Architecture("albert", "albert", {"embedding_size": 16}),
    Architecture("arcee", "llama"),
    Architecture("bart", "bart"),
    Architecture("bert", "bert"),
    Architecture("bert", "bert-cased", name="bert, cased"),
    Architecture("bert", "bert-left", name="bert, padded on the left"),
    Architecture("bert", "own-wordpiece", name="bert, own WordPiece with token types"),
    Architecture("bert", "own-words", name="bert, own words"),
    Architecture("bert", "bertweet-normal", name="bert, BERTweet's tokenizer"),
    Architecture("bert", "japanese-character", name="bert, Japanese characters"),
    Architecture("bert", "japanese-mecab", name="bert, Japanese words"),
    Architecture("bert", "clip", name="bert, CLIP's tokenizer"),
    Architecture("bert", "byt5", name="bert, bytes"),
    # Its first token, which is classified, sees none of the text.
    Architecture("bert", "bert", {"is_decoder": True}, _SAME_FOR_ALL, name="bert, as a decoder"),
    Architecture(
        "bert",
        "bert",
        {"max_position_embeddings": 1600},
        Served(max_length=1600, engine="onnx"),
        name="bert, 1,600 positions",
        max_length=1600,
    ),
    Architecture(
        "bert",
        "bert",
        {"chunk_size_feed_forward": 8},
        Refused("model", "cannot be computed", "transformers"),
        name="bert, feed forward in chunks",
    ),
    Architecture("big_bird", "big_bird", {"attention_type": "original_full"}),
    Architecture(
        "big_bird",
        "big_bird",
        {"block_size": 4, "num_random_blocks": 1, "max_position_embeddings": 256},
        _ANSWERS_VARY,
        name="big_bird, sparse attention",
    ),
    Architecture("bigbird_pegasus", "t5", {"attention_type": "original_full"}),
    Architecture("biogpt", "biogpt"),
    Architecture("bloom", "gpt2-left", {"hidden_size": 32, "n_head": 4}),
    Architecture("camembert", "camembert"),
    # transformers pools four characters at a time, and fails on shorter texts, which are not
    # compared.
    Architecture(
        "canine", "canine", {"local_transformer_stride": 32, "num_hash_buckets": _POSITIONS}
    ),
    Architecture("convbert", "convbert", {"conv_kernel_size": 3, "head_ratio": 2}),
    Architecture("ctrl", "ctrl"),
    Architecture("data2vec-text", "roberta"),
    Architecture(
        "deberta",
        "deberta",
        {
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
    Architecture(
        "deberta-v2",
        "deberta-v2",
        {
            "relative_attention": True,
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
    Architecture(
        "deberta-v2",
        "deberta-v2-punct",
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 2},
        name="deberta-v2, split by punctuation",
    ),
    Architecture(
        "deepseek_v3",
        "llama",
        {**_EXPERTS, **_LATENT, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1},
    ),
    Architecture("diffllama", "llama"),
    Architecture("distilbert", "distilbert"),
    Architecture("doge", "llama"),
    Architecture("electra", "electra", {"embedding_size": 16}),
    Architecture("ernie", "bert"),
    Architecture("esm", "esm", {"position_embedding_type": "rotary", "token_dropout": False}),
    Architecture("eurobert", "roberta", {"classifier_pooling": "mean"}),
    Architecture("exaone4", "gpt2-pad", {"sliding_window": 16, "sliding_window_pattern": 2}),
    Architecture("falcon", "gpt2-pad"),
    Architecture("flaubert", "flaubert"),
    Architecture("fnet", "fnet", {"type_vocab_size": 4}),
    Architecture("funnel", "funnel", {"block_sizes": [1, 1], "d_head": 8, "type_vocab_size": 3}),
    Architecture("gemma", "gemma"),
    Architecture("gemma2", "gemma", {"query_pre_attn_scalar": 8, "sliding_window": 16}),
    Architecture("gemma3_text", "gemma", {"query_pre_attn_scalar": 8, "sliding_window": 16}),
    Architecture("glm", "gpt2-left"),
    Architecture("glm4", "gpt2-left"),
    Architecture("gpt2", "gpt2"),
    Architecture("gpt2", "gpt2-left", name="gpt2, padded on the left"),
    # It adds an embedding for types of 0, and none where it is given no types.
    Architecture("gpt2", "bert", name="gpt2, BERT's tokenizer"),
    Architecture("gpt_bigcode", "gpt2-pad"),
    Architecture(
        "gpt_neo",
        "gpt2-pad",
        {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    ),
    Architecture("gpt_neox", "gpt2-pad"),
    Architecture("gpt_oss", "gpt2-pad", {**_EXPERTS, "sliding_window": 16}),
    Architecture("gptj", "gpt2-pad", {"rotary_dim": 4}),
    Architecture("gte", "xlm-roberta", {"type_vocab_size": 1}),
    Architecture("helium", "llama"),
    Architecture("hunyuan_v1_dense", "llama"),
    Architecture("ibert", "roberta"),
    Architecture(
        "jamba",
        "llama",
        {
            **_EXPERTS,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 4,
            "use_mamba_kernels": False,
        },
    ),
    Architecture("jetmoe", "llama", {**_EXPERTS, "kv_channels": 8}),
    Architecture("jina_embeddings_v3", "xlm-roberta", {"type_vocab_size": 1}),
    Architecture(
        "layoutlmv3",
        "layoutlmv3",
        {
            "max_2d_position_embeddings": 64,
            "coordinate_size": 6,
            "shape_size": 4,
            "input_size": 32,
            "patch_size": 16,
            "visual_embed": False,
        },
        _MORE_THAN_TEXT,
    ),
    Architecture(
        "markuplm",
        "markuplm",
        {"xpath_unit_hidden_size": 4, "max_depth": 4},
        _MORE_THAN_TEXT,
    ),
    Architecture("tapas", "tapas", {}, _MORE_THAN_TEXT),
    Architecture("layoutlm", "layoutlm", {"max_2d_position_embeddings": 64}),
    Architecture("lilt", "roberta", {"hidden_size": 48, "max_2d_position_embeddings": 64}),
    Architecture("llama", "llama"),
    Architecture("llama", "llama-legacy", name="llama, legacy tokenizer"),
    Architecture(
        "llama",
        "llama",
        {"max_position_embeddings": 2048},
        Served(max_length=2048),
        name="llama, 2,048 positions",
        max_length=2048,
    ),
    Architecture(
        "llama",
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
        name="llama, yarn",
    ),
    Architecture("longformer", "longformer", {"attention_window": [8, 8]}),
    Architecture("luke", "luke", {"entity_emb_size": 16, "entity_vocab_size": 6}),
    Architecture("mbart", "mbart"),
    Architecture("megatron-bert", "bert"),
    Architecture("minicpm3", "llama", _LATENT),
    Architecture(
        "minimax",
        "llama",
        {
            **_EXPERTS,
            "layer_types": ["linear_attention", "full_attention"],
            "block_size": 16,
        },
    ),
    Architecture("ministral", "llama", {"sliding_window": 16}),
    Architecture("mistral", "llama", {"sliding_window": 16}),
    Architecture("mixtral", "llama", _EXPERTS),
    Architecture(
        "mobilebert",
        "mobilebert",
        {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    ),
    Architecture("modernbert", "roberta", {"local_attention": 16}),
    Architecture(
        "modernbert",
        "roberta",
        {"local_attention": 16, "max_position_embeddings": 2048},
        Served(max_length=2048),
        name="modernbert, 2,048 positions",
        max_length=2048,
    ),
    Architecture("modernbert-decoder", "gpt2-pad", {"local_attention": 16}),
    Architecture("mpnet", "mpnet"),
    Architecture("mpt", "gpt2-pad"),
    # Without its CUDA kernel transformers takes attention for zero, and all texts for equal.
    Architecture("mra", "roberta", {"type_vocab_size": 1}, _SAME_FOR_ALL),
    Architecture("mt5", "t5"),
    Architecture("mvp", "bart"),
    Architecture("nemotron", "llama"),
    Architecture("nomic_bert", "bert"),
    Architecture(
        "nystromformer",
        "albert",
        {"num_landmarks": 4, "segment_means_seq_len": 4, "conv_kernel_size": 3},
    ),
    Architecture("olmo", "gpt2-pad"),
    Architecture("olmo2", "gpt2-pad"),
    Architecture("olmo3", "gpt2-pad", {"sliding_window": 16}),
    Architecture("openai-gpt", "openai-gpt"),
    Architecture("opt", "gpt2-pad", {"word_embed_proj_dim": 32}),
    Architecture(
        "perceiver",
        "perceiver",
        {
            "num_latents": 8,
            "d_latents": 32,
            "num_self_attends_per_block": 2,
            "num_self_attention_heads": 4,
            "num_cross_attention_heads": 4,
        },
    ),
    Architecture("persimmon", "llama"),
    Architecture("phi", "gpt2-pad"),
    Architecture("phi3", "llama"),
    # The longest text of a batch decides how all of its positions are encoded.
    Architecture("phi3", "llama", _long_rope(32), name="phi3, long positions from 32"),
    Architecture(
        "phi3",
        "llama",
        _long_rope(300) | {"max_position_embeddings": 600},
        Served(max_length=600),
        name="phi3, long positions from 300",
        max_length=600,
    ),
    Architecture("phimoe", "llama", _EXPERTS),
    Architecture("plbart", "xlm-roberta"),
    Architecture("qwen2", "qwen2"),
    Architecture("qwen2_moe", "qwen2", _EXPERTS),
    Architecture("qwen3", "qwen2"),
    Architecture(
        "qwen3_5_text",
        "qwen2",
        {
            "layer_types": ["linear_attention", "full_attention"],
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
    ),
    Architecture("qwen3_moe", "qwen2", _EXPERTS),
    Architecture("reformer", "reformer", _REFORMER, _ANSWERS_VARY),
    Architecture("reformer", "reformer", {**_REFORMER, "hash_seed": 7}, name="reformer, seeded"),
    Architecture("rembert", "rembert", {"input_embedding_size": 16, "output_embedding_size": 24}),
    Architecture("roberta", "roberta"),
    Architecture("roberta", "roberta-prefix", name="roberta, with a space before the text"),
    Architecture("roberta", "phobert", {"type_vocab_size": 1}, name="roberta, PhoBERT's tokenizer"),
    Architecture("roberta", "own-bpe", name="roberta, own BPE"),
    Architecture("roberta", "bertweet", {"type_vocab_size": 1}, name="roberta, BERTweet"),
    Architecture("roberta-prelayernorm", "roberta"),
    Architecture(
        "roc_bert",
        "roc_bert",
        {
            "shape_vocab_size": 40,
            "shape_embed_dim": 8,
            "pronunciation_vocab_size": 30,
            "pronunciation_embed_dim": 8,
        },
        Served(truth="transformers"),
        Refused("tokenizer|model", "shape|pronunciation", ""),
    ),
    Architecture("roformer", "roformer", {"embedding_size": 16}, Served(truth="transformers")),
    Architecture("seed_oss", "gpt2-pad"),
    Architecture("smollm3", "gpt2-pad"),
    Architecture("squeezebert", "squeezebert"),
    Architecture("stablelm", "gpt2-pad"),
    Architecture("starcoder2", "gpt2-pad"),
    Architecture("t5", "t5", {"decoder_start_token_id": 0}),
    Architecture("t5", "byt5", {"decoder_start_token_id": 0}, name="t5, bytes"),
    Architecture("ultrabert", "bert", {"prediction_head_size": 32, "sliding_window": 16}),
    Architecture("umt5", "t5"),
    Architecture("xlm", "xlm"),
    Architecture("xlm-roberta", "xlm-roberta"),
    Architecture("xlm-roberta", "own-unigram", name="xlm-roberta, own Unigram"),
    Architecture("xlm-roberta-xl", "xlm-roberta"),
    Architecture("xlnet", "xlnet", {"d_head": 8}),
    Architecture(
        "xmod", "xlm-roberta", {"languages": ["en_XX", "de_DE"], "default_language": "en_XX"}
    ),
    Architecture("yoso", "albert", {"type_vocab_size": 1}),
    Architecture(
        "yoso",
        "albert",
        {"type_vocab_size": 1, "use_expectation": False},
        Refused("model", "answers otherwise|cannot be computed", ""),
        name="yoso, sampled",
    ),
    Architecture(
        "zamba2",
        "llama",
        {
            "layers_block_type": ["linear_attention", "hybrid"],
            "n_mamba_heads": 4,
            "mamba_d_state": 4,
            "chunk_size": 16,
            "adapter_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    # Tokenizers as transformers 4.57 saved them, which 5 rebuilds.
    Architecture("albert", "albert", {"embedding_size": 16}, name="albert of 4.57", saved=True),
    Architecture("bert", "bert", name="bert of 4.57", saved=True),
    Architecture("bert", "bert-own", name="bert of 4.57 with its own normaliser", saved=True),
    Architecture(
        "big_bird",
        "big_bird",
        {"attention_type": "original_full"},
        name="big_bird of 4.57",
        saved=True,
    ),
    Architecture("camembert", "camembert", name="camembert of 4.57", saved=True),
    Architecture(
        "deberta-v2", "deberta-v2", {"type_vocab_size": 0}, name="deberta-v3 of 4.57", saved=True
    ),
    Architecture(
        "deberta-v2",
        "deberta-v2-punct",
        {"type_vocab_size": 0},
        name="deberta-v2 of 4.57, split by punctuation",
        saved=True,
    ),
    Architecture("fnet", "fnet", {"type_vocab_size": 4}, name="fnet of 4.57", saved=True),
    Architecture(
        "funnel",
        "funnel",
        {"block_sizes": [1, 1], "d_head": 8, "type_vocab_size": 3},
        name="funnel of 4.57",
        saved=True,
    ),
    Architecture("bert", "own-wordpiece", name="bert of 4.57, own WordPiece", saved=True),
    Architecture("gpt2", "gpt2", name="gpt2 of 4.57", saved=True),
    Architecture("qwen2", "qwen2", name="qwen2 of 4.57", saved=True),
    Architecture("deberta", "deberta", {"type_vocab_size": 0}, name="deberta of 4.57", saved=True),
    Architecture("gemma", "gemma", name="gemma of 4.57", saved=True),
    Architecture("llama", "llama", name="llama of 4.57", saved=True),
    Architecture("llama", "llama-legacy", name="llama of 4.57, legacy", saved=True),
    Architecture("mbart", "mbart", name="mbart of 4.57", saved=True),
    Architecture("mpnet", "mpnet", name="mpnet of 4.57", saved=True),
    Architecture(
        "rembert",
        "rembert",
        {"input_embedding_size": 16, "output_embedding_size": 24},
        name="rembert of 4.57",
        saved=True,
    ),
    Architecture("roberta", "roberta", name="roberta of 4.57", saved=True),
    Architecture("t5", "t5", {"decoder_start_token_id": 0}, name="t5 of 4.57", saved=True),
    Architecture("xlm-roberta", "xlm-roberta", name="xlm-roberta of 4.57", saved=True),
    Architecture("xlnet", "xlnet", {"d_head": 8}, name="xlnet of 4.57", saved=True),
)


def specimens(vocabularies: Vocabularies) -> list[Specimen]:
    """Return a specimen of each architecture; those with saved tokenizers are in a group."""
    return [
        Specimen(
            architecture.title,
            partial(build, architecture, vocabularies),
            _expected(architecture),
            _SAVED if architecture.saved else "architecture",
            alternative=architecture.alternative,
        )
        for architecture in ARCHITECTURES
    ]


def _expected(architecture: Architecture) -> Expected:
    if architecture.saved and isinstance(architecture.expected, Served):
        return replace(architecture.expected, truth="4.57")
    if not is_missing(KINDS[architecture.tokenizer]):
        return architecture.expected
    package = KINDS[architecture.tokenizer].needs
    return Refused("tokenizer", _LACKS_PACKAGE.format(package), "Install it")


def find(name: str) -> Architecture:
    """Return an architecture by its title."""
    return next(architecture for architecture in ARCHITECTURES if architecture.title == name)


def build(
    architecture: Architecture,
    vocabularies: Vocabularies,
    folder: Path,
    labels: Sequence[str] = LABELS,
) -> None:
    """Save a seeded model whose answers differ from text to text, and its tokenizer."""
    if architecture.saved:
        ids = vocabularies.copy_saved(architecture.tokenizer, folder)
    else:
        ids = vocabularies.save(architecture.tokenizer, folder)
    transformers: Any = import_module("transformers")
    config = _config(architecture, ids, labels)
    with torch.random.fork_rng():
        torch.manual_seed(zlib.crc32(architecture.title.encode()))
        network = transformers.AutoModelForSequenceClassification.from_config(
            config, dtype=torch.float32
        ).eval()
        _vary(network)
    if not is_unreadable(architecture):
        # What transformers cannot compute is for registration to refuse.
        with suppress(RuntimeError, ValueError, AttributeError):
            _spread(network, _encoder(folder), len(labels))
    network.save_pretrained(folder)
    if architecture.saved:
        change_json(folder / "config.json", transformers_version="4.57.6")
    if architecture.max_length != MAX_LENGTH:
        change_json(folder / "tokenizer_config.json", model_max_length=architecture.max_length)


def is_unreadable(architecture: Architecture) -> bool:
    """Return whether its tokenizer cannot be loaded here."""
    return not architecture.saved and is_missing(KINDS[architecture.tokenizer])


def _config(architecture: Architecture, ids: TokenIds, labels: Sequence[str]) -> Any:  # noqa: ANN401
    """Return the configuration, with all that its class has of the usual sizes."""
    mapping: Any = import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    cls = mapping[architecture.model_type]
    special = {f"{name}_token_id": index for name, index in ids.special.items()}
    usual = {**_SIZES, "vocab_size": ids.size, **special}
    names = {attribute.name for attribute in fields(cls)}
    return cls(
        **{name: value for name, value in usual.items() if name in names}
        | dict(architecture.sizes),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )


def _encoder(folder: Path) -> Callable[[str], dict[str, torch.Tensor]]:
    transformers: Any = import_module("transformers")
    if (folder / "tokenizer.json").exists():
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        names = ["input_ids", "attention_mask"]
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        names = list(tokenizer.model_input_names)

    def encode(text: str) -> dict[str, torch.Tensor]:
        encoded = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
        return {name: encoded[name] for name in names if name in encoded}

    return encode


@torch.no_grad()
def _vary(network: torch.nn.Module) -> None:
    """Shift biases, norms and padding's embeddings from the values that they all start with."""
    for parameter in network.parameters():
        if parameter.dim() <= 1:
            parameter.add_(torch.randn_like(parameter) * _BIAS_STD)
    for module in network.modules():
        if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
            row = module.weight[module.padding_idx]
            row.copy_(torch.randn_like(row) * _PADDING_STD)


@torch.no_grad()
def _spread(
    network: torch.nn.Module, encode: Callable[[str], dict[str, torch.Tensor]], labels: int
) -> None:
    """Scale the last layer so that logits differ from text to text by about 1."""
    layers = [
        module
        for module in network.modules()
        if isinstance(module, torch.nn.Linear) and module.out_features == labels
    ]
    last = layers[-1]
    inputs: list[torch.Tensor] = []
    hook = last.register_forward_hook(
        lambda _module, args, _output: inputs.append(args[0].reshape(-1, args[0].shape[-1])[-1])
    )
    texts = PLAIN_TEXTS[2:14]
    for text in texts:
        network(**encode(text))
    hook.remove()
    # What all texts have in common would let one label win always.
    mean = torch.stack(inputs).mean(0)
    last.weight -= torch.outer(last.weight @ mean, mean) / mean.dot(mean).clamp(min=1e-12)
    logits = torch.cat([network(**encode(text)).logits for text in texts])
    spread = float(logits.std(dim=0).mean())
    last.weight *= min(_MAX_SCALE, max(1 / _MAX_SCALE, 1 / max(spread, 1e-9)))


def copy(title: str, vocabularies: Vocabularies, folder: Path) -> None:
    """Copy the model of an architecture, which is built once."""
    architecture = find(title)
    built = vocabularies.build_once(f"model-{title}", partial(build, architecture, vocabularies))
    shutil.copytree(built, folder, dirs_exist_ok=True)
