"""Models and files that the sizing tests share: published shapes, and safetensors files that are all header."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

from sizing.config_json import parse_config
from sizing.model import ModelShape

_CONFIGS = Path(__file__).with_name("data") / "configs.json"
_BYTES = {"BF16": 2, "F32": 4, "F16": 2, "F8_E4M3": 1, "I32": 4, "U8": 1}

SMOLLM2: dict[str, object] = {  # HuggingFaceTB/SmolLM2-135M-Instruct
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
}


def published_configs() -> dict[str, dict[str, object]]:
    """Facts of published `config.json` files, by Hub id."""
    configs: dict[str, dict[str, object]] = json.loads(_CONFIGS.read_text())
    return configs


def published(name: str, **changes: object) -> ModelShape:
    return parse_config({**published_configs()[name], **changes}, name=name)


def smollm2(**changes: object) -> ModelShape:
    return parse_config({**SMOLLM2, **changes}, name="SmolLM2-135M")


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """A valid header for tensors of these types and shapes, and none of the data it announces."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        size = _BYTES[dtype]
        for extent in shape:
            size *= extent
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    content = json.dumps(header).encode()
    path.write_bytes(len(content).to_bytes(8, "little") + content)


def smollm2_tensors(dtype: str = "BF16") -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors of SmolLM2-135M as Transformers names and saves them."""
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {"model.embed_tokens.weight": (dtype, (49152, 576))}
    for layer in range(30):
        prefix = f"model.layers.{layer}"
        shapes: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (576, 576),
            "self_attn.k_proj": (192, 576),
            "self_attn.v_proj": (192, 576),
            "self_attn.o_proj": (576, 576),
            "mlp.gate_proj": (1536, 576),
            "mlp.up_proj": (1536, 576),
            "mlp.down_proj": (576, 1536),
            "input_layernorm": (576,),
            "post_attention_layernorm": (576,),
        }
        tensors |= {f"{prefix}.{name}.weight": (dtype, shape) for name, shape in shapes.items()}
    tensors["model.norm.weight"] = (dtype, (576,))
    return tensors


def qwen3_tensors(config: Mapping[str, object]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors of a dense Qwen3 checkpoint as Transformers names and saves them."""

    def number(name: str) -> int:
        value = config[name]
        assert isinstance(value, int)
        return value

    hidden, wide, head = number("hidden_size"), number("intermediate_size"), number("head_dim")
    queries, keys = number("num_attention_heads") * head, number("num_key_value_heads") * head
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "self_attn.q_norm": (head,),
        "self_attn.k_norm": (head,),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    tensors = {
        f"model.layers.{index}.{name}.weight": ("BF16", shape)
        for index in range(number("num_hidden_layers"))
        for name, shape in layer.items()
    }
    ends = ("model.embed_tokens", "lm_head")
    tensors |= {f"{name}.weight": ("BF16", (number("vocab_size"), hidden)) for name in ends}
    return tensors | {"model.norm.weight": ("BF16", (hidden,))}


GGML_NUMBERS = {"F32": 0, "F16": 1, "Q8_0": 8, "Q4_K": 12, "Q6_K": 14}
SMOLLM2_METADATA: dict[str, object] = {  # as llama.cpp's converter writes it for SmolLM2-135M
    "general.architecture": "llama",
    "llama.block_count": 30,
    "llama.context_length": 8192,
    "llama.embedding_length": 576,
    "llama.feed_forward_length": 1536,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
    "llama.rope.freq_base": 100000.0,
    "tokenizer.ggml.tokens": [f"<{token}>" for token in range(49152)],
}


def smollm2_gguf_tensors(matrices: str, *, values: str | None = None) -> dict[str, tuple[str, tuple[int, ...]]]:
    """SmolLM2-135M under llama.cpp's names, all matrices of one type but perhaps the values'."""
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {"token_embd.weight": (matrices, (49152, 576))}
    for layer in range(30):
        shapes: dict[str, tuple[int, ...]] = {
            "attn_q": (576, 576),
            "attn_k": (192, 576),
            "attn_v": (192, 576),
            "attn_output": (576, 576),
            "ffn_gate": (1536, 576),
            "ffn_up": (1536, 576),
            "ffn_down": (576, 1536),
            "attn_norm": (576,),
            "ffn_norm": (576,),
        }
        for name, shape in shapes.items():
            kind = "F32" if len(shape) == 1 else values if values and name == "attn_v" else matrices
            tensors[f"blk.{layer}.{name}.weight"] = (kind, shape)
    return tensors | {"output_norm.weight": ("F32", (576,))}


def _gguf_text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _gguf_value(content: object) -> bytes:
    if isinstance(content, str):
        return struct.pack("<I", 8) + _gguf_text(content)
    if isinstance(content, float):
        return struct.pack("<If", 6, content)
    if isinstance(content, int):
        return struct.pack("<II", 4, content)
    if isinstance(content, list) and isinstance(content[0], str):
        return struct.pack("<IIQ", 9, 8, len(content)) + b"".join(_gguf_text(item) for item in content)
    if isinstance(content, list):
        return struct.pack("<IIQ", 9, 4, len(content)) + struct.pack(f"<{len(content)}I", *content)
    raise TypeError(content)


def gguf_bytes(metadata: Mapping[str, object], tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """A GGUF header (version 3) of these values and tensors, and none of the data it announces."""
    found = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, content in metadata.items():
        found += _gguf_text(key) + _gguf_value(content)
    for name, (kind, shape) in tensors.items():
        found += _gguf_text(name) + struct.pack("<I", len(shape))
        found += struct.pack(f"<{len(shape)}Q", *reversed(shape)) + struct.pack("<IQ", GGML_NUMBERS[kind], 0)
    return found
