"""The parameters of a decoder by name and shape, as its family's checkpoints have them, without reading one."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from sizing.architecture import ARCHITECTURES
from sizing.config_values import ConfigValues
from sizing.held import Split, Weight
from sizing.layers import Attention, Indexer, Layer, Recurrent
from sizing.model import ModelShape

Parts = Iterator[Weight]


def blueprint(config: ConfigValues, shape: ModelShape) -> tuple[Weight, ...]:
    """Every parameter vLLM holds for that decoder; empty for a family whose layers are not spelt out here.

    Names are those of the checkpoint, so that a quantization's list of exceptions can be read against them.
    """
    family = _FAMILIES.get(shape.architecture) if shape.assumed is None else _read_off_keys(config)
    if family is None:
        return ()
    weights = [_table("model.embed_tokens", shape, "embedding"), _norm("model.norm", shape.hidden_size)]
    if not shape.tie_word_embeddings:
        weights.append(_table("lm_head", shape, "output"))
    for index, caches in enumerate(shape.cache_layers):
        prefix = f"model.layers.{index}."
        for part in family(config, shape, index, caches):
            weights.append(replace(part, name=prefix + part.name, layer=index))
    return tuple(weights)


def _table(name: str, shape: ModelShape, split: Split) -> Weight:
    return Weight(name, (shape.vocab_size, shape.hidden_size), split)


def _norm(name: str, width: int, *, times: int = 1) -> Weight:
    return Weight(name, (width,), copies=times)


def _linear(name: str, out: int, into: int, split: Split = "sharded", *, copies: int = 1) -> Weight:
    return Weight(name, (out, into), split, linear=True, copies=copies)


def _attention(shape: ModelShape, attention: Attention, *, gate: bool = False, keys: bool = True) -> Parts:
    """Query, key, value and output projections; `gate`: the query's is doubled by an output gate."""
    queries = shape.num_attention_heads * attention.head_dim
    width = attention.num_kv_heads * attention.head_dim
    yield _linear("self_attn.q_proj", queries * (2 if gate else 1), shape.hidden_size)
    if keys:
        yield _linear("self_attn.k_proj", width, shape.hidden_size, "kv")
        yield _linear("self_attn.v_proj", width, shape.hidden_size, "kv")
    yield _linear("self_attn.o_proj", shape.hidden_size, queries)


def _mlp(name: str, hidden: int, width: int) -> Parts:
    yield _linear(f"{name}.gate_proj", width, hidden)
    yield _linear(f"{name}.up_proj", width, hidden)
    yield _linear(f"{name}.down_proj", hidden, width)


def _experts(name: str, hidden: int, count: int, width: int) -> Parts:
    yield _linear(f"{name}.*.gate_proj", width, hidden, "experts", copies=count)
    yield _linear(f"{name}.*.up_proj", width, hidden, "experts", copies=count)
    yield _linear(f"{name}.*.down_proj", hidden, width, "experts", copies=count)


def _router(name: str, hidden: int, count: int, *, bias: bool) -> Parts:
    """vLLM gives no quantization to routers."""
    yield Weight(name, (count, hidden))
    if bias:
        yield Weight(f"{name}.e_score_correction_bias", (count,))


def _sole_attention(caches: tuple[Layer, ...]) -> Attention:
    attention = caches[0]
    if not isinstance(attention, Attention):
        raise TypeError(f"a layer of {attention} in a family that has only attention")
    return attention


def _plain(config: ConfigValues, shape: ModelShape, index: int, caches: tuple[Layer, ...]) -> Parts:
    """The decoders of architecture.ARCHITECTURES: what is biased and normed there is theirs to say."""
    spelt = ARCHITECTURES[shape.architecture]
    hidden, attention = shape.hidden_size, _sole_attention(caches)
    queries, width = shape.num_attention_heads * attention.head_dim, attention.num_kv_heads * attention.head_dim
    yield from _attention(shape, attention)
    if shape.attention_bias or spelt.bias == "qkv":
        yield Weight("self_attn.q_proj.bias", (queries,), "sharded")
        yield Weight("self_attn.kv_proj.bias", (2 * width,), "kv")
    if shape.attention_bias:
        yield _norm("self_attn.o_proj.bias", hidden)
    if spelt.qk_norm != "none":
        normed = 2 * attention.head_dim if spelt.qk_norm == "head" else queries + width
        yield _norm("self_attn.qk_norm", normed)
    yield _norm("layernorm", hidden, times=2)
    if _is_mixture(config, shape, index):
        name = "block_sparse_moe" if shape.architecture == "MixtralForCausalLM" else "mlp"
        yield from _experts(f"{name}.experts", hidden, shape.num_experts, shape.moe_intermediate_size)
        yield from _router(f"{name}.gate", hidden, shape.num_experts, bias=False)
        return
    yield from _mlp("mlp", hidden, shape.intermediate_size)
    if shape.mlp_bias:
        yield Weight("mlp.gate_up_proj.bias", (2 * shape.intermediate_size,), "sharded")
        yield _norm("mlp.down_proj.bias", hidden)


def _of_unknown_name(config: ConfigValues, shape: ModelShape, index: int, caches: tuple[Layer, ...]) -> Parts:
    """As sizing.structure counts a plain decoder that it read off the keys."""
    hidden, attention = shape.hidden_size, _sole_attention(caches)
    yield from _attention(shape, attention)
    if config.values.get("attention_bias"):
        yield Weight("self_attn.q_proj.bias", (shape.num_attention_heads * attention.head_dim,), "sharded")
        yield Weight("self_attn.kv_proj.bias", (2 * attention.num_kv_heads * attention.head_dim,), "kv")
    yield _norm("layernorm", hidden, times=2)
    if index < shape.num_hidden_layers - shape.num_moe_layers:
        yield from _mlp("mlp", hidden, shape.intermediate_size)
        return
    width, shared = shape.moe_intermediate_size, config.count_or_none("n_shared_experts") or 0
    yield from _experts("mlp.experts", hidden, shape.num_experts, width)
    if shared:
        yield from _mlp("mlp.shared_experts", hidden, shared * width)
    yield from _router("mlp.gate", hidden, shape.num_experts, bias=False)


def _read_off_keys(config: ConfigValues) -> "_Family":
    """The layers that sizing.structure takes a model without a known architecture to have."""
    if config.values.get("linear_num_value_heads"):
        return _gated_delta
    return _deepseek if config.values.get("kv_lora_rank") else _of_unknown_name


def _is_mixture(config: ConfigValues, shape: ModelShape, index: int) -> bool:
    if not shape.num_moe_layers:
        return False
    step = config.count("decoder_sparse_step", default=1)
    return index not in config.numbers("mlp_only_layers") and (index + 1) % step == 0


def _normed(norms: int, *, qk_norm: bool) -> Callable[[ConfigValues, ModelShape, int, tuple[Layer, ...]], Parts]:
    """Dense layers with `norms` norms as wide as the hidden states: Gemma 2 and 3, EXAONE 4."""

    def layer(_: ConfigValues, shape: ModelShape, __: int, caches: tuple[Layer, ...]) -> Parts:
        attention = _sole_attention(caches)
        yield from _attention(shape, attention)
        yield from _mlp("mlp", shape.hidden_size, shape.intermediate_size)
        yield _norm("layernorm", shape.hidden_size, times=norms)
        if qk_norm:
            yield _norm("self_attn.qk_norm", 2 * attention.head_dim)

    return layer


def _gemma4(config: ConfigValues, shape: ModelShape, index: int, caches: tuple[Layer, ...]) -> Parts:
    hidden = shape.hidden_size
    words = config.words("layer_types")
    sliding = words[index] == "sliding_attention" if words else (index + 1) % 6 != 0
    if caches:
        attention = _sole_attention(caches)
    else:  # it reads another layer's keys and values, but asks with heads of its own width
        width = shape.head_dim if sliding else config.count("global_head_dim", default=512)
        attention = Attention(1, width, width)
    yield from _attention(shape, attention, keys=bool(caches))
    yield from _mlp("mlp", hidden, shape.intermediate_size)
    yield _norm("layernorm", hidden, times=4)
    yield _norm("layer_scalar", 1)
    yield _norm("self_attn.qk_norm", (2 if caches else 1) * attention.head_dim)
    if shape.num_experts:
        yield from _experts("experts", hidden, shape.num_experts, shape.moe_intermediate_size)
        yield from _router("router.proj", hidden, shape.num_experts, bias=True)
        yield _norm("router.norm", hidden, times=4)


def _gpt_oss(_: ConfigValues, shape: ModelShape, __: int, caches: tuple[Layer, ...]) -> Parts:
    hidden, attention, count = shape.hidden_size, _sole_attention(caches), shape.num_experts
    heads, width = shape.num_attention_heads, shape.moe_intermediate_size
    yield from _attention(shape, attention)
    yield Weight("self_attn.q_proj.bias", (heads * attention.head_dim + heads,), "sharded")  # and the sinks
    yield Weight("self_attn.kv_proj.bias", (2 * attention.num_kv_heads * attention.head_dim,), "kv")
    yield _norm("self_attn.o_proj.bias", hidden)
    yield _norm("layernorm", hidden, times=2)
    yield from _experts("mlp.experts", hidden, count, width)
    yield Weight("mlp.experts.gate_up_proj_bias", (2 * width,), "experts", copies=count)
    yield Weight("mlp.experts.down_proj_bias", (hidden,), "replicated", copies=count)
    yield from _router("mlp.router", hidden, count, bias=True)


def _llama4(config: ConfigValues, shape: ModelShape, index: int, caches: tuple[Layer, ...]) -> Parts:
    hidden = shape.hidden_size
    yield from _attention(shape, _sole_attention(caches))
    yield _norm("layernorm", hidden, times=2)
    if (index + 1) % config.count("interleave_moe_layer_step", default=1):
        yield from _mlp("feed_forward", hidden, shape.intermediate_size)
        return
    yield from _experts("feed_forward.experts", hidden, shape.num_experts, shape.moe_intermediate_size)
    yield from _mlp("feed_forward.shared_expert", hidden, shape.moe_intermediate_size)
    yield from _router("feed_forward.router", hidden, shape.num_experts, bias=False)


def _minimax_m2(_: ConfigValues, shape: ModelShape, __: int, caches: tuple[Layer, ...]) -> Parts:
    hidden, attention = shape.hidden_size, _sole_attention(caches)
    yield from _attention(shape, attention)
    yield Weight("self_attn.q_norm", (shape.num_attention_heads * attention.head_dim,), "sharded")
    yield Weight("self_attn.k_norm", (attention.num_kv_heads * attention.head_dim,), "kv")
    yield _norm("layernorm", hidden, times=2)
    yield from _experts("block_sparse_moe.experts", hidden, shape.num_experts, shape.moe_intermediate_size)
    yield from _router("block_sparse_moe.gate", hidden, shape.num_experts, bias=True)


def _deepseek(config: ConfigValues, shape: ModelShape, index: int, caches: tuple[Layer, ...]) -> Parts:
    hidden, heads = shape.hidden_size, shape.num_attention_heads
    rank, rope = config.count("kv_lora_rank"), config.count("qk_rope_head_dim")
    nope, value = config.count("qk_nope_head_dim"), config.count("v_head_dim")
    query_rank = config.count_or_none("q_lora_rank")
    if query_rank is None:
        yield _linear("self_attn.q_proj", heads * (nope + rope), hidden)
    else:
        yield _linear("self_attn.q_a_proj", query_rank, hidden, "replicated")
        yield _linear("self_attn.q_b_proj", heads * (nope + rope), query_rank)
        yield _norm("self_attn.q_a_layernorm", query_rank)
    yield _linear("self_attn.kv_a_proj_with_mqa", rank + rope, hidden, "replicated")
    yield _linear("self_attn.kv_b_proj", heads * (nope + value), rank)
    yield _linear("self_attn.o_proj", hidden, heads * value)
    yield _norm("self_attn.kv_a_layernorm", rank)
    yield _norm("layernorm", hidden, times=2)
    if any(isinstance(cache, Indexer) for cache in caches) and query_rank is not None:
        index_heads, index_dim = config.count("index_n_heads"), config.count("index_head_dim")
        yield _linear("self_attn.indexer.wq_b", index_heads * index_dim, query_rank, "replicated")
        yield _linear("self_attn.indexer.wk", index_dim, hidden, "replicated")
        yield Weight("self_attn.indexer.weights_proj", (index_heads, hidden))
        yield _norm("self_attn.indexer.k_norm", index_dim, times=2)
    first, step = config.count_or_none("first_k_dense_replace") or 0, config.count("moe_layer_freq", default=1)
    if not shape.num_experts or index < first or index % step:
        yield from _mlp("mlp", hidden, config.count("intermediate_size"))
        return
    width, shared = shape.moe_intermediate_size, config.count_or_none("n_shared_experts") or 0
    yield from _experts("mlp.experts", hidden, shape.num_experts, width)
    if shared:
        yield from _mlp("mlp.shared_experts", hidden, shared * width)
    unbiased = config.values.get("topk_method") == "greedy" or config.values.get("model_type") == "deepseek_v2"
    yield from _router("mlp.gate", hidden, shape.num_experts, bias=not unbiased)


def _gated_delta(config: ConfigValues, shape: ModelShape, _: int, caches: tuple[Layer, ...]) -> Parts:
    hidden = shape.hidden_size
    if isinstance(caches[0], Recurrent):
        yield from _delta_net(config, hidden)
    else:
        attention = _sole_attention(caches)
        yield from _attention(shape, attention, gate=True)
        yield _norm("self_attn.qk_norm", 2 * attention.head_dim)
    yield _norm("layernorm", hidden, times=2)
    if not shape.num_experts:
        yield from _mlp("mlp", hidden, shape.intermediate_size)
        return
    yield from _experts("mlp.experts", hidden, shape.num_experts, shape.moe_intermediate_size)
    yield from _mlp("mlp.shared_expert", hidden, config.count("shared_expert_intermediate_size"))
    yield from _router("mlp.gate", hidden, shape.num_experts, bias=False)
    yield Weight("mlp.shared_expert_gate", (1, hidden))


def _delta_net(config: ConfigValues, hidden: int) -> Parts:
    key_dim, value_dim = (
        config.count("linear_key_head_dim", default=128),
        config.count("linear_value_head_dim", default=128),
    )
    heads = config.count("linear_num_value_heads", default=32)
    keys, values = config.count("linear_num_key_heads", default=16) * key_dim, heads * value_dim
    yield _linear("linear_attn.in_proj_qkv", 2 * keys + values, hidden)
    yield _linear("linear_attn.in_proj_z", values, hidden)
    yield _linear("linear_attn.out_proj", hidden, values)
    # too narrow for any format's blocks, and left alone by every published quantization
    yield Weight("linear_attn.in_proj_ba", (2 * heads, hidden), "sharded")
    yield Weight(
        "linear_attn.conv1d", (2 * keys + values, config.count("linear_conv_kernel_dim", default=4)), "sharded"
    )
    yield Weight("linear_attn.A_log", (2 * heads,), "sharded")  # and the bias of the time steps
    yield _norm("linear_attn.norm", value_dim)


def _nemotron_h(config: ConfigValues, shape: ModelShape, index: int, caches: tuple[Layer, ...]) -> Parts:
    hidden = shape.hidden_size
    yield _norm("norm", hidden)
    if not caches:
        yield _linear("mixer.up_proj", shape.intermediate_size, hidden)
        yield _linear("mixer.down_proj", hidden, shape.intermediate_size)
    elif isinstance(caches[0], Attention):
        yield from _attention(shape, caches[0])
    else:
        heads = config.count("mamba_num_heads")
        mixer = _Mixer(
            heads,
            heads * config.count("mamba_head_dim"),
            config.count("n_groups"),
            config.count("ssm_state_size"),
            config.count("conv_kernel") + int(config.flag("use_conv_bias", default=True)),
        )
        yield from mixer.weights("mixer", hidden)


def _granite_hybrid(config: ConfigValues, shape: ModelShape, _: int, caches: tuple[Layer, ...]) -> Parts:
    hidden = shape.hidden_size
    if isinstance(caches[0], Attention):
        yield from _attention(shape, caches[0])
    else:
        mixer = _Mixer(
            config.count("mamba_n_heads"),
            config.count("mamba_expand") * hidden,
            config.count("mamba_n_groups"),
            config.count("mamba_d_state"),
            config.count("mamba_d_conv") + int(config.flag("mamba_conv_bias", default=True)),
        )
        yield from mixer.weights("mamba", hidden)
    yield from _mlp("shared_mlp", hidden, config.count("shared_intermediate_size"))
    if shape.num_experts:
        yield from _experts("block_sparse_moe.experts", hidden, shape.num_experts, shape.moe_intermediate_size)
        yield from _router("block_sparse_moe.router", hidden, shape.num_experts, bias=False)
    yield _norm("layernorm", hidden, times=2)


@dataclass(frozen=True)
class _Mixer:
    """A Mamba-2 mixer. A sole group of states is repeated on every rank, several are dealt out."""

    heads: int
    inner: int
    groups: int
    state_size: int
    per_channel: int
    """Numbers of the convolution for each channel."""

    def weights(self, name: str, hidden: int) -> Parts:
        grouped, split = 2 * self.groups * self.state_size, _groups_split(self.groups)
        yield _linear(f"{name}.in_proj", 2 * self.inner + self.heads, hidden)
        yield _linear(f"{name}.in_proj", grouped, hidden, split)
        yield _linear(f"{name}.out_proj", hidden, self.inner)
        yield Weight(f"{name}.conv1d", (self.inner, self.per_channel), "sharded")
        yield Weight(f"{name}.conv1d", (grouped, self.per_channel), split)
        yield Weight(f"{name}.A_log", (3 * self.heads,), "sharded")
        yield Weight(f"{name}.norm", (self.inner,), "sharded")


def _groups_split(groups: int) -> Split:
    return "replicated" if groups == 1 else "sharded"


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
    **dict.fromkeys(("Qwen3NextForCausalLM", "Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM"), _gated_delta),
    **dict.fromkeys(
        ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM"), _deepseek
    ),
    "Exaone4ForCausalLM": _normed(2, qk_norm=True),
    "Gemma2ForCausalLM": _normed(4, qk_norm=False),
    "Gemma3ForCausalLM": _normed(4, qk_norm=True),
    "Gemma4ForCausalLM": _gemma4,
    "GptOssForCausalLM": _gpt_oss,
    "GraniteMoeHybridForCausalLM": _granite_hybrid,
    "Llama4ForCausalLM": _llama4,
    "MiniMaxM2ForCausalLM": _minimax_m2,
    "NemotronHForCausalLM": _nemotron_h,
}
