"""The tables of positions that vLLM keeps on every rank: cosines and sines, in no checkpoint."""

from collections.abc import Mapping

from sizing.config_values import ConfigValues
from sizing.layers import Attention, Latent
from sizing.model import DTYPE_BYTES, ModelShape

# what every published file of this family says whose model reads more than it was first trained to; the 1B does not
_GEMMA3_ROPE: Mapping[str, object] = {"rope_type": "linear", "factor": 8.0}
_GEMMA3_LEN = 32_768
# vllm/model_executor/layers/rotary_embedding/mrope.py: room for the positions of images. Qwen3's wrappers ask for
# none of it since vLLM 0.32 (models/qwen3_vl.py: mrope_positions_factor), where earlier ones had it too.
_MROPE_LENGTHS = 4
_WITHOUT_ROTATION = ("JambaForCausalLM", "NemotronHForCausalLM", "WhisperForConditionalGeneration")
_MROPE_FAMILIES = ("qwen2_vl", "qwen2_5_vl")
_MROPE_WITHOUT_ROOM = ("qwen3_vl", "qwen3_5")


def rotary_bytes(config: ConfigValues, shape: ModelShape) -> int:
    """Bytes of all tables (vllm/model_executor/layers/rotary_embedding): layers of one kind share one.

    A table has a row for each position that the config allows, however short `--max-model-len` is.
    """
    if config.values.get("position_embedding_type") == "nope" or shape.architecture in _WITHOUT_ROTATION:
        return 0
    positions = config.count("max_position_embeddings", default=shape.max_model_len)
    sections = _sections(config, shape)
    elements = 0
    for width, rope in zip(_widths(config, shape), sections, strict=False):
        elements += width * _rows(rope, positions)
    if _has_room_for_images(config, shape):
        elements *= _MROPE_LENGTHS
    width = DTYPE_BYTES["float32"] if shape.architecture == "GptOssForCausalLM" else shape.dtype_bytes
    return elements * width


def _has_room_for_images(config: ConfigValues, shape: ModelShape) -> bool:
    if shape.model_type.startswith(_MROPE_FAMILIES):
        return True
    sections = config.section("rope_parameters", "rope_scaling").get("mrope_section")
    return sections is not None and not shape.model_type.startswith(_MROPE_WITHOUT_ROOM)


def _sections(config: ConfigValues, shape: ModelShape) -> list[Mapping[str, object]]:
    """The rope parameters of each kind of layer, in the order of `_widths`."""
    rope: Mapping[str, object] = config.section("rope_parameters", "rope_scaling")
    kinds: list[Mapping[str, object]] = [
        value for _, value in sorted(rope.items(), reverse=True) if isinstance(value, dict)
    ]
    if kinds:  # "sliding_attention" before "full_attention"
        return kinds
    if shape.architecture.startswith("Gemma3"):  # only the full layers are stretched
        long = config.count("max_position_embeddings", default=2 * _GEMMA3_LEN) > _GEMMA3_LEN
        if long and not {"rope_parameters", "rope_scaling"} & config.values.keys():
            rope = _GEMMA3_ROPE
        return [{}, rope]
    return [rope] * 2


def _widths(config: ConfigValues, shape: ModelShape) -> list[int]:
    """Elements in a row of each table: the rotated part of a head, for each kind of head or of base."""
    heads = {layer for caches in shape.cache_layers for layer in caches}
    if any(isinstance(layer, Latent) for layer in heads):
        return [config.count("qk_rope_head_dim")]
    kinds = sorted({(layer.window is None, layer.head_dim) for layer in heads if isinstance(layer, Attention)})
    if not shape.architecture.startswith(("Gemma3", "Gemma4")):  # only those turn windowed layers by another base
        kinds = kinds[-1:]
    return [_rotated(config, head_dim) for _, head_dim in kinds]


def _rotated(config: ConfigValues, head_dim: int) -> int:
    rope = config.section("rope_parameters", "rope_scaling")
    share = rope.get("partial_rotary_factor") or config.values.get("partial_rotary_factor")
    if share is None and config.values.get("rotary_dim"):
        return config.count("rotary_dim")
    if share is None and "linear_num_value_heads" in config.values:
        share = 0.25  # the class of Qwen3-Next and Qwen3.5 turns a quarter of each head
    return int(head_dim * share) if isinstance(share, int | float) and 0 < share <= 1 else head_dim


def _rows(rope: Mapping[str, object], positions: int) -> int:
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    factor, original = rope.get("factor"), rope.get("original_max_position_embeddings")
    factor = factor if isinstance(factor, int | float) and factor > 0 else 1
    if kind in ("yarn", "deepseek_yarn", "deepseek_llama_scaling") and isinstance(original, int):
        positions = round(original * factor)
    elif kind in ("linear", "dynamic"):
        positions = round(positions * factor)
    elif kind in ("longrope", "su") and isinstance(original, int):
        positions += original  # a short table and a long one
    return positions
