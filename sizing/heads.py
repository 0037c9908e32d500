"""EAGLE and EAGLE-3 heads: what they keep and weigh, read from their own `config.json` and headers.

vllm/model_executor/models/llama_eagle.py, llama_eagle3.py and qwen3_eagle3.py. Both tables of the vocabulary are the
model's own where the head's files have none; an EAGLE-3 head brings an output table, often of a smaller vocabulary.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from sizing.config_json import kv_layers
from sizing.config_values import ConfigValues
from sizing.errors import UnsupportedModelError
from sizing.headers import Tensor, loaded_bytes
from sizing.held import Weight
from sizing.layers import Attention
from sizing.matrices import linear, mlp, norm
from sizing.model import ModelShape
from sizing.quantization_config import read_quantization
from sizing.rotary import rotary_bytes
from sizing.tensor_names import pieces_of
from sizing.weighing import kept_tensors, kv_share, unpacked_copy_bytes
from sizing.weights import Piece, held, pieces

HeadMethod = Literal["eagle", "eagle3"]

_OF_ANOTHER_KIND = re.compile(r"Deepseek|DeepSeek|MistralLarge3|Llama4|MiniCPM|Cohere")
_AUX_STATES = 3
_ASSUMED_LEN = 2048


def parse_head(
    values: Mapping[str, object], *, name: str, method: HeadMethod, tensors: Sequence[Tensor] | None = None
) -> ModelShape:
    """The head that a `config.json` describes, weighed by its headers where there are any.

    Raises:
        ModelFileError: a key is missing or impossible.
        UnsupportedModelError: a head of a kind that cannot be told from its config alone.
    """
    flat = _flattened(values)
    config = ConfigValues(name, flat)
    written = str((flat.get("architectures") or [""])[0])  # type: ignore[index]  # a list, or no list at all
    latent = bool(flat.get("kv_lora_rank"))
    layers = kv_layers(
        {
            "max_position_embeddings": _ASSUMED_LEN,
            "num_hidden_layers": 1,
            **flat,
            "architectures": ["DeepseekV3ForCausalLM" if latent else "LlamaForCausalLM"],
        },
        name=name,
    )
    aux = _aux_states(config) if method == "eagle3" else 0
    vocab = config.count_or_none("draft_vocab_size") or config.count("vocab_size")
    shape = replace(
        layers,
        hidden_size=config.count("hidden_size"),
        intermediate_size=config.count_or_none("intermediate_size") or 0,
        vocab_size=vocab,
        quantization=None if not flat.get("quantization_config") else layers.quantization,
        aux_hidden_states=aux,
        layers=layers.cache_layers,
        predictor=None,
    )
    buffers = rotary_bytes(config, shape)
    if tensors is not None:
        return _by_headers(shape, config, tensors, buffers)
    if latent or _OF_ANOTHER_KIND.search(written):
        raise UnsupportedModelError(
            f"{name}: what a head of {written or 'this kind'} weighs is not told by its config; "
            "give a folder or a repository with its safetensors"
        )
    normed = "Qwen3" in written and "vl" not in written
    weights = tuple(_weights(config, shape, method, normed=normed))
    quantization = read_quantization(config) if shape.quantization else None
    found = pieces(weights, shape.dtype_bytes, quantization, num_layers=shape.num_hidden_layers)
    if method == "eagle3":
        found.append(_number_table(config, vocab))
    return _weighed(replace(shape, blueprint=weights), found, buffers)


def _flattened(values: Mapping[str, object]) -> dict[str, object]:
    """A `speculators` checkpoint keeps the layers' sizes in a section of their own."""
    section = values.get("transformer_layer_config")
    return {**section, **values} if isinstance(section, dict) else dict(values)


def _aux_states(config: ConfigValues) -> int:
    eagle = config.section("eagle_config")
    named = config.values.get("eagle_aux_hidden_state_layer_ids") or eagle.get("eagle_aux_hidden_state_layer_ids")
    counted = config.count_or_none("num_aux_hidden_states")
    if eagle.get("use_aux_hidden_state") is False:
        return 0
    return counted or (len(named) if isinstance(named, list) and named else _AUX_STATES)


def _weights(config: ConfigValues, shape: ModelShape, method: HeadMethod, *, normed: bool) -> Iterator[Weight]:
    hidden = shape.hidden_size
    for index, (attention,) in enumerate(shape.cache_layers):
        if not isinstance(attention, Attention):
            raise TypeError(f"a head with {attention}")
        for part in _layer(config, shape, method, attention, first=index == 0):
            yield replace(part, name=f"layers.{index}.{part.name}", layer=index)
        if normed:
            yield replace(norm(f"layers.{index}.self_attn.qk_norm", 2 * attention.head_dim), layer=index)
    yield from _joint(config, shape) if method == "eagle3" else [Weight("fc", (hidden, 2 * hidden))]


def _joint(config: ConfigValues, shape: ModelShape) -> Iterator[Weight]:
    """What brings the model's hidden states to an EAGLE-3 head, and what it ends in."""
    hidden = shape.hidden_size
    read = shape.aux_hidden_states * config.count("target_hidden_size", default=hidden)
    if read:
        yield Weight("fc", (hidden, read))
    if config.section("eagle_config").get("norm_before_fc", config.values.get("norm_before_fc")):
        yield norm("input_norm", read)
    if config.values.get("fc_norm"):
        yield norm("fc_norm", read)
    yield norm("norm", hidden)
    yield Weight("lm_head", (shape.vocab_size, hidden), "output", linear=True)


def _layer(
    config: ConfigValues, shape: ModelShape, method: HeadMethod, attention: Attention, *, first: bool
) -> Iterator[Weight]:
    """EAGLE-3's first layer reads the token's embedding beside the hidden states."""
    hidden = shape.hidden_size
    queries, width = shape.num_attention_heads * attention.head_dim, attention.num_kv_heads * attention.head_dim
    into = 2 * hidden if method == "eagle3" and first else hidden
    yield linear("self_attn.q_proj", queries, into)
    yield linear("self_attn.k_proj", width, into, "kv")
    yield linear("self_attn.v_proj", width, into, "kv")
    yield linear("self_attn.o_proj", hidden, queries)
    if config.flag("attention_bias", default=False):
        yield Weight("self_attn.q_proj.bias", (queries,), "sharded")
        yield Weight("self_attn.kv_proj.bias", (2 * width,), "kv")
        yield norm("self_attn.o_proj.bias", hidden)
    yield from mlp("mlp", hidden, shape.intermediate_size)
    if method == "eagle3":
        yield norm("layernorm", hidden, times=3)
    else:  # the first layer's input is not normed
        yield norm("layernorm", hidden, times=1 if first else 2)


def _number_table(config: ConfigValues, vocab: int) -> Piece:
    """The model's number of each drafted token, 8 bytes each, where the head knows fewer of them."""
    return Piece("replicated", None, 8 * vocab if vocab != config.count("vocab_size") else 0)


def _by_headers(shape: ModelShape, config: ConfigValues, tensors: Sequence[Tensor], buffers: int) -> ModelShape:
    found: list[Piece] = []
    table_bytes = 0
    for tensor in kept_tensors(shape, config, tensors):
        name = f".{tensor.name}"
        if ".t2d" in name or "rotary_emb." in name:
            continue
        packed = shape.quantization is not None or ".d2t" in name
        num_bytes = loaded_bytes([tensor], dtype=shape.dtype, quantized=packed) + unpacked_copy_bytes(tensor, shape)
        if ".embed_tokens." in name:
            table_bytes = num_bytes
            continue
        whole = ".fc." in name or ".d2t" in name
        for piece in pieces_of(tensor, num_bytes, multimodal=False, kv_share=kv_share(shape)):
            layer = None if whole or piece.split == "output" or name.startswith(".norm.") else piece.layer or 0
            found.append(replace(piece, split="replicated" if whole else piece.split, layer=layer))
    return replace(_weighed(shape, found, buffers), table_bytes=table_bytes, weights_source="safetensors headers")


def _weighed(shape: ModelShape, found: Sequence[Piece], buffers: int) -> ModelShape:
    whole = replace(held(found, shape, buffers=buffers), latent=False)
    return replace(shape, weights_bytes=whole.weights_bytes, held=whole)
