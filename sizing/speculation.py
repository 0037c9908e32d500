"""vLLM's `speculative_config` as it is asked about: read from an object or JSON text, and made a Drafter."""

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sizing.drafters import WEIGHTLESS, Drafter, head_drafter, prediction_drafter, small_drafter
from sizing.errors import QuestionError
from sizing.heads import HeadMethod
from sizing.model import ModelShape
from sizing.weights import quantized

_SIZED = ("mtp", "eagle", "eagle3", "draft_model", *WEIGHTLESS)
_NOT_SIZED = ("medusa", "mlp_speculator", "dflash", "dspark", "extract_hidden_states", "custom_class")
_SUFFIX_TOKENS = 24  # config/speculative.py: suffix_decoding_max_tree_depth
_TEXTS = ("method", "model", "revision", "quantization", "draft_sample_method")
_OTHERS = (  # of vLLM's, without weight in this sum
    *("num_speculative_tokens", "enforce_eager", "moe_backend", "attention_backend", "code_revision"),
    *("index_share_for_mtp_iteration", "disable_padded_drafter_batch", "disable_eagle_block_drop", "max_model_len"),
    *("use_local_argmax_reduction", "prompt_lookup_max", "prompt_lookup_min"),
    *("suffix_decoding_max_tree_depth", "suffix_decoding_max_cached_requests", "suffix_decoding_max_spec_factor"),
    *("suffix_decoding_min_token_prob", "rejection_sample_method", "synthetic_acceptance_rates"),
    *("synthetic_acceptance_length", "enable_adaptive_verification", "draft_tensor_parallel_size"),
)
_UNSIZED_KEYS = (
    *("kv_cache_dtype", "parallel_drafting", "use_heterogeneous_vocab", "num_speculative_tokens_per_batch_size"),
    "draft_load_config",
)

LoadDraft = Callable[[str, str | None, HeadMethod | None], ModelShape]
"""A draft model, or an EAGLE head of that kind, by folder or Hub id and revision."""


@dataclass(frozen=True)
class Speculation:
    """What a `speculative_config` says, as far as memory depends on it."""

    method: str
    num_speculative_tokens: int | None = None
    """None: as many as the method's own default."""
    model: str | None = None
    revision: str | None = None
    quantization: str | None = None
    probabilistic: bool = False


def read_speculation(value: object) -> Speculation:
    """An object, or the JSON text that vLLM's flag takes.

    Raises:
        QuestionError: not such an object, a key or method that is not known or not sized, or too little said.
    """
    values = _object(value)
    texts = {key: _text(values, key) for key in _TEXTS}
    model = texts["model"]
    method = _method(texts["method"], model)
    tokens = values.get("num_speculative_tokens")
    if tokens is None and method == "suffix":
        depth = values.get("suffix_decoding_max_tree_depth")
        tokens = _SUFFIX_TOKENS if depth is None else depth
    if tokens is None and method != "mtp":  # whose model says how many
        raise QuestionError(
            f"speculative_config has no num_speculative_tokens, which {method} needs; add such as "
            '"num_speculative_tokens": 3'
        )
    if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or not 0 < tokens <= 1024):
        raise QuestionError(f"num_speculative_tokens is {tokens!r}; it has to be a whole number from 1 to 1024")
    if model is None and method in ("eagle", "eagle3", "draft_model"):
        raise QuestionError(
            f'speculative_config names no model, which {method} drafts with; add "model" (a folder or a Hub id)'
        )
    if model is not None and method == "mtp":
        raise QuestionError(
            "a checkpoint of prediction layers alone is not sized yet; leave model out for those of the model itself"
        )
    probabilistic = texts["draft_sample_method"] == "probabilistic"
    return Speculation(method, tokens, model, texts["revision"], texts["quantization"], probabilistic)


def drafter(asked: Speculation, model: ModelShape, load: LoadDraft) -> Drafter:
    """What drafts for that model.

    Raises:
        QuestionError: it cannot draft for it.
        SizingError: as the draft model's own files say.
    """
    tokens = asked.num_speculative_tokens or 0
    if asked.method in WEIGHTLESS:
        return Drafter(asked.method, tokens)
    if asked.method == "mtp":
        return prediction_drafter(model, asked.num_speculative_tokens, probabilistic=asked.probabilistic)
    name = asked.model or ""
    if asked.method == "draft_model":
        small = load(name, asked.revision, None)
        small = quantized(small, asked.quantization) if asked.quantization and not small.quantization else small
        return small_drafter(model, small, tokens, probabilistic=asked.probabilistic)
    method: HeadMethod = "eagle3" if asked.method == "eagle3" else "eagle"
    head = load(name, asked.revision, method)
    return head_drafter(model, head, method, tokens, probabilistic=asked.probabilistic)


def _object(value: object) -> Mapping[str, object]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise QuestionError(f"speculative_config is not JSON ({error}); write {_EXAMPLE}") from error
    if not isinstance(value, dict):
        raise QuestionError(f"speculative_config is {value!r}, no JSON object; write {_EXAMPLE}")
    values = {str(key).replace("-", "_"): said for key, said in value.items() if said is not None}
    for key in values:
        if key in _UNSIZED_KEYS and values[key] is not False:
            raise QuestionError(f"{key} in speculative_config is not sized yet; leave it out")
        if key not in (*_TEXTS, *_OTHERS, *_UNSIZED_KEYS):
            near = difflib.get_close_matches(key, [*_TEXTS, *_OTHERS], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"write {_EXAMPLE}"
            raise QuestionError(f"{key!r} is not part of a speculative_config; {hint}")
    if values.get("draft_tensor_parallel_size") == 1:
        raise QuestionError(
            "a draft model whole on every rank is not sized yet; leave draft_tensor_parallel_size out to divide it"
        )
    return values


_EXAMPLE = '{"method": "mtp", "num_speculative_tokens": 1}'


def _text(values: Mapping[str, object], key: str) -> str | None:
    value = values.get(key)
    if value is not None and not isinstance(value, str):
        raise QuestionError(f"{key} in speculative_config is {value!r}; it has to be text")
    return value or None


def _method(said: str | None, model: str | None) -> str:
    """As vLLM finds it out where it is not said (config/speculative.py: __post_init__)."""
    if said is None:
        return _by_name(model)
    found = said.strip("[]")
    if found in _SIZED:
        return found
    if found.endswith("_mtp"):  # the names of single models' classes, which vLLM takes for the same
        return "mtp"
    sized = ", ".join(_SIZED)
    if found in _NOT_SIZED:
        raise QuestionError(f"drafting by {found} is not sized yet; sized are {sized}")
    near = difflib.get_close_matches(found, [*_SIZED, *_NOT_SIZED], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; use one of {sized}"
    raise QuestionError(f"{said!r} is no method of speculative_config{hint}")


def _by_name(model: str | None) -> str:
    if model is None:
        raise QuestionError(f"speculative_config names neither a method nor a model; write {_EXAMPLE}")
    name = model.lower()
    if name in ("ngram", "[ngram]"):
        return "ngram"
    if "eagle-" in name:
        return "eagle"
    if "eagle3" in name:
        return "eagle3"
    for unsized in ("dflash", "dspark"):
        if unsized in name:
            return _method(unsized, model)
    return "draft_model"
