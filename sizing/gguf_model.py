"""From a GGUF file's header to the config and the tensors that vLLM would serve it with."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sizing.errors import ModelFileError, UnsupportedModelError
from sizing.gguf_header import GgufArray, GgufHeader
from sizing.headers import Tensor

# llama.cpp's name of an architecture, and the class that serves it
_CLASSES: Mapping[str, tuple[str, str]] = {
    "llama": ("LlamaForCausalLM", "llama"),
    "mistral3": ("MistralForCausalLM", "mistral"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
    "qwen3moe": ("Qwen3MoeForCausalLM", "qwen3_moe"),
    "gemma2": ("Gemma2ForCausalLM", "gemma2"),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text"),
    "phi3": ("Phi3ForCausalLM", "phi3"),
    "granite": ("GraniteForCausalLM", "granite"),
    "olmo2": ("Olmo2ForCausalLM", "olmo2"),
}
# config.json's key, and the metadata's behind the architecture's name
_NUMBERS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "vocab_size": "vocab_size",
    "num_experts": "expert_count",
    "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "sliding_window": "attention.sliding_window",
}
_GGUF: Mapping[str, object] = {"quant_method": "gguf"}


def gguf_config(header: GgufHeader, config: Mapping[str, object] | None, *, name: str) -> dict[str, object]:
    """A config.json for that file: the one beside it where there is one, else what its metadata tells.

    Raises:
        ModelFileError: metadata that is missing or impossible.
        UnsupportedModelError: an architecture whose metadata is not read here.
    """
    if config is not None:
        return {**config, "quantization_config": _GGUF}
    architecture = str(header.metadata.get("general.architecture"))
    if architecture not in _CLASSES:
        raise UnsupportedModelError(
            f"{name}: GGUF files of architecture {architecture} are not read yet; "
            f"put the model's config.json beside it (read as they are: {', '.join(_CLASSES)})"
        )
    served, model_type = _CLASSES[architecture]
    found: dict[str, object] = {"architectures": [served], "model_type": model_type, "quantization_config": _GGUF}
    for key, suffix in _NUMBERS.items():
        value = header.metadata.get(f"{architecture}.{suffix}")
        if value is not None:
            found[key] = _one(value, suffix, name)
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if "vocab_size" not in found and isinstance(tokens, GgufArray):
        found["vocab_size"] = tokens.length
    names = {tensor.name for tensor in header.tensors}
    found["tie_word_embeddings"] = "output.weight" not in names
    found["attention_bias"] = "blk.0.attn_q.bias" in names
    found["rope_scaling"] = _rope(header, architecture)
    if architecture == "llama" and "num_experts" in found:
        found["architectures"], found["model_type"] = ["MixtralForCausalLM"], "mixtral"
    return {**_head_dim(found), **found}


def _head_dim(found: Mapping[str, object]) -> dict[str, object]:
    """llama.cpp's own default, which not all of vLLM's families share."""
    hidden, heads = found.get("hidden_size"), found.get("num_attention_heads")
    if isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        return {"head_dim": hidden // heads}
    return {}


def _rope(header: GgufHeader, architecture: str) -> dict[str, object] | None:
    kind = header.metadata.get(f"{architecture}.rope.scaling.type")
    factor = header.metadata.get(f"{architecture}.rope.scaling.factor")
    if not isinstance(factor, int | float) or factor <= 0 or kind == "none":
        return None
    original = header.metadata.get(f"{architecture}.rope.scaling.original_context_length")
    rope: dict[str, object] = {"rope_type": kind or "linear", "factor": factor}
    return rope if original is None else {**rope, "original_max_position_embeddings": original}


def _one(value: object, key: str, name: str) -> object:
    """Some files give a number for each layer; vLLM's decoders of these families have one for all."""
    if not isinstance(value, GgufArray):
        return value
    if len(set(value.values)) != 1:
        raise UnsupportedModelError(f"{name}: its layers differ in {key}, which is not sized yet")
    return value.values[0]


def gguf_tensors(headers: Sequence[GgufHeader], *, name: str) -> list[Tensor]:
    """The tensors as vLLM holds them: the rows of what it fuses are padded to the widest of them.

    Raises:
        ModelFileError: no tensors, or two of one name.
    """
    tensors = [tensor for header in headers for tensor in header.tensors]
    if not tensors:
        raise ModelFileError(f"{name}: its GGUF header lists no tensors; download the file again")
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise ModelFileError(f"{name}: its GGUF files repeat each other's tensors; give the parts of one model")
    widest: dict[str, int] = {}
    for tensor in tensors:
        widest[_fused(tensor.name)] = max(widest.get(_fused(tensor.name), 0), _row_bytes(tensor))
    return [_padded(tensor, widest[_fused(tensor.name)]) for tensor in tensors]


def _fused(name: str) -> str:
    """vllm/model_executor/layers/quantization/gguf.py: _create_padded_weight_param."""
    for part in ("attn_q.weight", "attn_k.weight", "attn_v.weight"):
        name = name.replace(part, "attn_qkv.weight")
    return name.replace("ffn_gate.weight", "ffn_gate_up.weight").replace("ffn_up.weight", "ffn_gate_up.weight")


def _row_bytes(tensor: Tensor) -> int:
    rows = tensor.num_elements // tensor.shape[-1] if tensor.shape else 1
    return tensor.num_bytes // max(1, rows)


def _padded(tensor: Tensor, row_bytes: int) -> Tensor:
    if len(tensor.shape) < 2 or row_bytes == _row_bytes(tensor):
        return tensor
    return replace(tensor, num_bytes=row_bytes * (tensor.num_elements // tensor.shape[-1]))
