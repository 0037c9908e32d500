"""Windows of plain decoders: which layers vLLM gives one, read from `config.json`."""

from sizing.architecture import Architecture
from sizing.config_values import ConfigValues
from sizing.errors import UnsupportedModelError
from sizing.layers import Attention, Layers
from sizing.model import ModelShape

_QWEN_MAX_WINDOW_LAYERS = 28  # transformers/models/qwen2/configuration_qwen2.py


def windows(config: ConfigValues, architecture: Architecture, shape: ModelShape) -> Layers:
    """The layers of a plain decoder; empty where all of them keep every token.

    vLLM takes `layer_types` at their word. Without them, a window is every layer's (engine/arg_utils.py).

    Raises:
        UnsupportedModelError: a mixture that vLLM does not serve, or not in a way that is known here.
    """
    window = _window(config, architecture)
    if window is None:
        return ()
    sliding = _sliding(config, architecture, shape.num_hidden_layers)
    if not any(sliding):
        return ()
    if not all(sliding) and architecture.layer_types != "each":
        raise UnsupportedModelError(
            f"{shape.name}: {shape.architecture} with sliding_attention layers beside full ones is not sized yet"
            + (", and vLLM refuses it" if architecture.layer_types == "same" else "")
        )
    heads, head_dim = shape.num_key_value_heads, shape.head_dim
    return tuple((Attention(heads, head_dim, head_dim, window if slides else None),) for slides in sliding)


def _window(config: ConfigValues, architecture: Architecture) -> int | None:
    """The window's size; 0 and null turn it off."""
    if architecture.window == "use_sliding_window" and not config.flag("use_sliding_window", default=False):
        return None
    if "sliding_window" not in config.values:
        return architecture.default_window
    return config.count_or_none("sliding_window")


def _sliding(config: ConfigValues, architecture: Architecture, num_layers: int) -> list[bool]:
    words = config.words("layer_types")
    if words is not None:
        if len(words) != num_layers:
            raise config.impossible("layer_types", f"must name a type for each of {num_layers} layers")
        return [word == "sliding_attention" for word in words]
    if architecture.layer_types == "same":  # Qwen's config class derives them
        full = config.count_or_none("max_window_layers")
        full = _QWEN_MAX_WINDOW_LAYERS if full is None and config.values.get("max_window_layers") is None else full or 0
        return [layer >= full for layer in range(num_layers)]
    return [True] * num_layers
