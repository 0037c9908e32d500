"""What drafts tokens for a model, read from `config.json`: prediction layers of its own, a head, or a small model."""

from collections.abc import Mapping

from sizing.config_json import kv_layers
from sizing.config_values import ConfigValues
from sizing.engine_cache import Drafter
from sizing.errors import QuestionError
from sizing.layers import Compressed, keeps_whole_context

_PREDICTION_KEYS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules")


def mtp_drafter(values: Mapping[str, object], *, name: str, num_speculative_tokens: int) -> Drafter:
    """The prediction layers that a model brings itself (`--speculative-config '{"method": "mtp"}'`).

    Each keeps what a decoder layer of its place does: Step's by `layer_types`, DeepSeek V4's a window alone, and
    elsewhere what the last layer with attention of the whole context keeps (vllm/model_executor/models/*_mtp.py).

    Raises:
        QuestionError: the model has none.
    """
    text = values["text_config"] if isinstance(values.get("text_config"), dict) else values
    config = ConfigValues(name, text if isinstance(text, Mapping) else values)
    counts = (config.count_or_none(key) for key in _PREDICTION_KEYS)
    count = next((count for count in counts if count), 0)
    if not count:
        raise QuestionError(f"{name} has no prediction layers of its own; speculate with another method")
    shape = kv_layers(values, name=name)
    words, kept = config.words("layer_types") or [], [caches for caches in shape.cache_layers if caches]
    of_its_kind = dict(zip(words, shape.cache_layers, strict=False))
    whole = [caches for caches in kept if any(keeps_whole_context(layer) for layer in caches)]
    last = whole[-1] if whole else kept[-1]
    if isinstance(last[0], Compressed):
        last = last[:1]
    further = words[shape.num_hidden_layers :][:count]
    layers = [of_its_kind[word] for word in further] if len(further) == count else [last] * count
    return Drafter("mtp", num_speculative_tokens, tuple(layers))


def drafter(values: Mapping[str, object], *, name: str, method: str, num_speculative_tokens: int) -> Drafter:
    """A head or a small model that drafts, by its own `config.json`: EAGLE, EAGLE-3 or `draft_model`."""
    return Drafter(method, num_speculative_tokens, kv_layers(values, name=name).cache_layers)
