"""The parameters of a decoder by name and shape, as its family's checkpoints have them, without reading one."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from sizing.architecture import ARCHITECTURES, LIKE_DEEPSEEK
from sizing.config_values import ConfigValues
from sizing.decoders import DECODERS, decoder_ends, decoder_layer, embedding_width, is_gated
from sizing.held import Split, Weight
from sizing.hybrids import HYBRIDS, hybrid_layer
from sizing.latent import norms_per_layer
from sizing.latent_matrices import latent_matrices
from sizing.layers import Attention, Indexer, Layer
from sizing.matrices import Parts, attention_matrices, experts, linear, mlp, norm, router, sole_attention
from sizing.model import ModelShape
from sizing.parameters import count_parameters
from sizing.recurrent_matrices import gated_delta

_COUNT_TOLERANCE = 0.01
_COUNTED = "counted_norms"
_BACKBONES = {"NemotronHForCausalLM", "MambaForCausalLM", "Mamba2ForCausalLM", "FalconMambaForCausalLM"}


def blueprint(config: ConfigValues, shape: ModelShape) -> tuple[Weight, ...]:
    """Every parameter vLLM holds for that decoder.

    Names are those of the checkpoint, so that a quantization's list of exceptions can be read against them. A family
    that is only counted gets layers that are all alike, but for the experts (see `is_spelt_out`), and so does a model
    with parameters that its family's layers do not have (per-layer embeddings).
    """
    family = _FAMILIES.get(shape.architecture) if shape.assumed is None else _read_off_keys(config)
    if family is not None:
        found = _built(config, shape, family)
        counted = count_parameters(shape).total
        if abs(sum(weight.num_elements for weight in found) - counted) <= _COUNT_TOLERANCE * counted:
            return found
    return _built(config, shape, _counted)


def _built(config: ConfigValues, shape: ModelShape, family: "_Family") -> tuple[Weight, ...]:
    table = (shape.vocab_size, embedding_width(config, shape.hidden_size))
    weights = [Weight("model.embed_tokens", table, _embedding_split(shape)), norm("model.norm", shape.hidden_size)]
    if not shape.tie_word_embeddings:
        weights.append(Weight("lm_head", table, "output"))
    if family is _of_decoders:
        weights += decoder_ends(shape.architecture, config)
    root = "backbone" if shape.architecture in _BACKBONES else "model"
    for index, caches in enumerate(shape.cache_layers):
        prefix = f"{root}.layers.{index}."
        for part in family(config, shape, index, caches):
            weights.append(replace(part, name=prefix + part.name, layer=index))
    return tuple(weights)


def _embedding_split(shape: ModelShape) -> Split:
    """Whisper's is a plain table, whole on every rank."""
    return "replicated" if shape.architecture == "WhisperForConditionalGeneration" else "embedding"


def layer_weights(config: ConfigValues, shape: ModelShape, index: int, caches: tuple[Layer, ...]) -> Iterable[Weight]:
    """One layer more of that decoder, such as its `index`-th, that keeps those caches; named within the layer."""
    spelt = is_spelt_out(shape)
    family = _FAMILIES.get(shape.architecture) if shape.assumed is None else _read_off_keys(config)
    return (family if family is not None and spelt else _counted)(config, shape, index, caches)


def is_spelt_out(shape: ModelShape) -> bool:
    """Whether each layer's own parameters are known, and not only how many there are in all."""
    return not any(_COUNTED in weight.name for weight in shape.blueprint)


def _counted(_: ConfigValues, shape: ModelShape, index: int, __: tuple[Layer, ...]) -> Parts:
    """One layer's part of what ParameterCount says; experts are in the last layers, as everywhere."""
    count, hidden, layers = count_parameters(shape), shape.hidden_size, shape.num_hidden_layers
    mixture = shape.expert_parameters * shape.num_experts
    matrices = count.sharded - count.vocab_rows * shape.vocab_size * hidden - mixture * shape.num_moe_layers
    rows = _nth_part(matrices // hidden, index, layers)
    yield linear("self_attn.q_proj", rows, hidden)
    yield linear("self_attn.k_proj", _nth_part(count.kv_projection // hidden, index, layers), hidden, "kv")
    left = matrices % hidden + count.kv_projection % hidden
    yield norm(_COUNTED, _nth_part(count.replicated - hidden + left, index, layers))
    if index >= layers - shape.num_moe_layers:
        inputs, width = shape.expert_input_size, shape.moe_intermediate_size
        yield from experts("mlp.experts", inputs, shape.num_experts, width, gated=shape.gated_experts)


def _nth_part(total: int, index: int, parts: int) -> int:
    return total * (index + 1) // parts - total * index // parts


def _plain(config: ConfigValues, shape: ModelShape, index: int, caches: tuple[Layer, ...]) -> Parts:
    """The decoders of architecture.ARCHITECTURES: what is biased and normed there is theirs to say."""
    spelt = ARCHITECTURES[shape.architecture]
    hidden, attention = shape.hidden_size, sole_attention(caches)
    queries, width = shape.num_attention_heads * attention.head_dim, attention.num_kv_heads * attention.head_dim
    yield from attention_matrices(shape, attention)
    if shape.attention_bias or spelt.bias == "qkv":
        yield Weight("self_attn.q_proj.bias", (queries,), "sharded")
        yield Weight("self_attn.kv_proj.bias", (2 * width,), "kv")
    if shape.attention_bias:
        yield norm("self_attn.o_proj.bias", hidden)
    if spelt.qk_norm != "none":
        normed = 2 * attention.head_dim if spelt.qk_norm == "head" else queries + width
        yield norm("self_attn.qk_norm", normed)
    yield norm("layernorm", hidden, times=2)
    if _is_mixture(config, shape, index):
        name = "block_sparse_moe" if shape.architecture == "MixtralForCausalLM" else "mlp"
        yield from experts(f"{name}.experts", hidden, shape.num_experts, shape.moe_intermediate_size)
        yield from router(f"{name}.gate", hidden, shape.num_experts, bias=False)
        return
    yield from mlp("mlp", hidden, shape.intermediate_size)
    if shape.mlp_bias:
        yield Weight("mlp.gate_up_proj.bias", (2 * shape.intermediate_size,), "sharded")
        yield norm("mlp.down_proj.bias", hidden)


def _of_unknown_name(config: ConfigValues, shape: ModelShape, index: int, caches: tuple[Layer, ...]) -> Parts:
    """As sizing.structure counts a plain decoder that it read off the keys."""
    hidden, attention = shape.hidden_size, sole_attention(caches)
    yield from attention_matrices(shape, attention)
    if config.values.get("attention_bias"):
        yield Weight("self_attn.q_proj.bias", (shape.num_attention_heads * attention.head_dim,), "sharded")
        yield Weight("self_attn.kv_proj.bias", (2 * attention.num_kv_heads * attention.head_dim,), "kv")
    yield norm("layernorm", hidden, times=2)
    if index < shape.num_hidden_layers - shape.num_moe_layers:
        yield from mlp("mlp", hidden, shape.intermediate_size, gated=is_gated(config))
        return
    width = shape.moe_intermediate_size
    shared = config.count_or_none("shared_expert_intermediate_size")
    shared = (
        shared or (config.count_or_none("n_shared_experts") or config.count_or_none("num_shared_experts") or 0) * width
    )
    yield from experts("mlp.experts", hidden, shape.num_experts, width)
    if shared:
        yield from mlp("mlp.shared_experts", hidden, shared)
    yield from router("mlp.gate", hidden, shape.num_experts, bias=False)


def _read_off_keys(config: ConfigValues) -> "_Family":
    """The layers that sizing.structure takes a model without a known architecture to have."""
    if config.values.get("linear_num_value_heads"):
        return gated_delta
    return _deepseek if config.values.get("kv_lora_rank") else _of_unknown_name


def _is_mixture(config: ConfigValues, shape: ModelShape, index: int) -> bool:
    if not shape.num_moe_layers:
        return False
    step = config.count("decoder_sparse_step", default=1)
    return index not in config.numbers("mlp_only_layers") and (index + 1) % step == 0


def _normed(norms: int, *, qk_norm: bool) -> Callable[[ConfigValues, ModelShape, int, tuple[Layer, ...]], Parts]:
    """Dense layers with `norms` norms as wide as the hidden states: Gemma 2 and 3, EXAONE 4."""

    def layer(_: ConfigValues, shape: ModelShape, __: int, caches: tuple[Layer, ...]) -> Parts:
        attention = sole_attention(caches)
        yield from attention_matrices(shape, attention)
        yield from mlp("mlp", shape.hidden_size, shape.intermediate_size)
        yield norm("layernorm", shape.hidden_size, times=norms)
        if qk_norm:
            yield norm("self_attn.qk_norm", 2 * attention.head_dim)

    return layer


def _gemma4(config: ConfigValues, shape: ModelShape, index: int, caches: tuple[Layer, ...]) -> Parts:
    hidden = shape.hidden_size
    words = config.words("layer_types")
    sliding = words[index] == "sliding_attention" if words else (index + 1) % 6 != 0
    if caches:
        attention = sole_attention(caches)
    else:  # it reads another layer's keys and values, but asks with heads of its own width
        width = shape.head_dim if sliding else config.count("global_head_dim", default=512)
        attention = Attention(1, width, width)
    yield from attention_matrices(shape, attention, keys=bool(caches))
    widened = 2 if not caches and config.flag("use_double_wide_mlp", default=False) else 1
    yield from mlp("mlp", hidden, widened * shape.intermediate_size)
    yield norm("layernorm", hidden, times=4)
    yield from _layer_embedding(config, shape, index)
    yield norm("layer_scalar", 1)
    yield norm("self_attn.qk_norm", (2 if caches else 1) * attention.head_dim)
    if shape.num_experts:
        yield from experts("experts", hidden, shape.num_experts, shape.moe_intermediate_size)
        yield from router("router.proj", hidden, shape.num_experts, bias=True)
        yield norm("router.norm", hidden, times=4)


def _layer_embedding(config: ConfigValues, shape: ModelShape, index: int) -> Parts:
    """What embeds each token for one layer; the table of all layers' and its projection stand with the first."""
    width, hidden = config.count_or_none("hidden_size_per_layer_input"), shape.hidden_size
    if not width:
        return
    if index == 0:
        vocab, across = config.count("vocab_size_per_layer_input", default=shape.vocab_size), shape.num_hidden_layers
        yield Weight("embed_tokens_per_layer", (vocab, across * width), "sharded")
        yield linear("per_layer_model_projection", across * width, hidden)
        yield norm("per_layer_projection_norm", width)
    yield linear("per_layer_input_gate", width, hidden, "replicated")
    yield linear("per_layer_projection", hidden, width, "replicated")
    yield norm("post_per_layer_input_norm", hidden)


def _gpt_oss(_: ConfigValues, shape: ModelShape, __: int, caches: tuple[Layer, ...]) -> Parts:
    hidden, attention, count = shape.hidden_size, sole_attention(caches), shape.num_experts
    heads, width = shape.num_attention_heads, shape.moe_intermediate_size
    yield from attention_matrices(shape, attention)
    yield Weight("self_attn.q_proj.bias", (heads * attention.head_dim + heads,), "sharded")  # and the sinks
    yield Weight("self_attn.kv_proj.bias", (2 * attention.num_kv_heads * attention.head_dim,), "kv")
    yield norm("self_attn.o_proj.bias", hidden)
    yield norm("layernorm", hidden, times=2)
    yield from experts("mlp.experts", hidden, count, width)
    yield Weight("mlp.experts.gate_up_proj_bias", (2 * width,), "experts", copies=count)
    yield Weight("mlp.experts.down_proj_bias", (hidden,), "replicated", copies=count)
    yield from router("mlp.router", hidden, count, bias=True)


def _llama4(config: ConfigValues, shape: ModelShape, index: int, caches: tuple[Layer, ...]) -> Parts:
    hidden = shape.hidden_size
    yield from attention_matrices(shape, sole_attention(caches))
    yield norm("layernorm", hidden, times=2)
    if (index + 1) % config.count("interleave_moe_layer_step", default=1):
        yield from mlp("feed_forward", hidden, shape.intermediate_size)
        return
    yield from experts("feed_forward.experts", hidden, shape.num_experts, shape.moe_intermediate_size)
    yield from mlp("feed_forward.shared_expert", hidden, shape.moe_intermediate_size)
    yield from router("feed_forward.router", hidden, shape.num_experts, bias=False)


def _minimax_m2(_: ConfigValues, shape: ModelShape, __: int, caches: tuple[Layer, ...]) -> Parts:
    hidden, attention = shape.hidden_size, sole_attention(caches)
    yield from attention_matrices(shape, attention)
    yield Weight("self_attn.q_norm", (shape.num_attention_heads * attention.head_dim,), "sharded")
    yield Weight("self_attn.k_norm", (attention.num_kv_heads * attention.head_dim,), "kv")
    yield norm("layernorm", hidden, times=2)
    yield from experts("block_sparse_moe.experts", hidden, shape.num_experts, shape.moe_intermediate_size)
    yield from router("block_sparse_moe.gate", hidden, shape.num_experts, bias=True)


def _of_decoders(config: ConfigValues, shape: ModelShape, index: int, _: tuple[Layer, ...]) -> Parts:
    yield from decoder_layer(shape.architecture, config, index)


def _deepseek(config: ConfigValues, shape: ModelShape, index: int, caches: tuple[Layer, ...]) -> Parts:
    hidden, query_rank = shape.hidden_size, config.count_or_none("q_lora_rank")
    yield from latent_matrices(config)
    yield norm("layernorm", hidden, times=norms_per_layer(config))
    if any(isinstance(cache, Indexer) for cache in caches) and query_rank is not None:
        index_heads, index_dim = config.count("index_n_heads"), config.count("index_head_dim")
        yield linear("self_attn.indexer.wq_b", index_heads * index_dim, query_rank, "replicated")
        yield linear("self_attn.indexer.wk", index_dim, hidden, "replicated")
        yield Weight("self_attn.indexer.weights_proj", (index_heads, hidden))
        yield norm("self_attn.indexer.k_norm", index_dim, times=2)
    first, step = config.count_or_none("first_k_dense_replace") or 0, config.count("moe_layer_freq", default=1)
    if not shape.num_experts or index < first or index % step:
        yield from mlp("mlp", hidden, config.count("intermediate_size"))
        return
    width, shared = shape.moe_intermediate_size, config.count_or_none("n_shared_experts") or 0
    yield from experts("mlp.experts", hidden, shape.num_experts, width)
    if shared:
        yield from mlp("mlp.shared_experts", hidden, shared * width)
    unbiased = config.values.get("topk_method") == "greedy" or config.values.get("model_type") == "deepseek_v2"
    yield from router("mlp.gate", hidden, shape.num_experts, bias=not unbiased)


_Family = Callable[[ConfigValues, ModelShape, int, tuple[Layer, ...]], Iterable[Weight]]
_FAMILIES: Mapping[str, _Family] = {
    **dict.fromkeys(
        (
            "LlamaForCausalLM",
            "LLaMAForCausalLM",
            "MistralForCausalLM",
            "Qwen2ForCausalLM",
            "MiMoForCausalLM",
            "Qwen3ForCausalLM",
            "Qwen3MoeForCausalLM",
            "MixtralForCausalLM",
            "Phi3ForCausalLM",
            "GraniteForCausalLM",
            "GemmaForCausalLM",
            "Olmo2ForCausalLM",
            "OlmoeForCausalLM",
        ),
        _plain,
    ),
    **dict.fromkeys(("Qwen3NextForCausalLM", "Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM"), gated_delta),
    **dict.fromkeys(
        ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM"), _deepseek
    ),
    **dict.fromkeys(LIKE_DEEPSEEK, _deepseek),
    **dict.fromkeys(DECODERS, _of_decoders),
    **dict.fromkeys(HYBRIDS, hybrid_layer),
    "Exaone4ForCausalLM": _normed(2, qk_norm=True),
    "Gemma2ForCausalLM": _normed(4, qk_norm=False),
    "Gemma3ForCausalLM": _normed(4, qk_norm=True),
    "Gemma4ForCausalLM": _gemma4,
    "GptOssForCausalLM": _gpt_oss,
    "Llama4ForCausalLM": _llama4,
    "MiniMaxM2ForCausalLM": _minimax_m2,
}
