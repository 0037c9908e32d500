"""One question per line of JSON: what `berth size --questions` and the sizing benchmark read.

A line names a model (`model`: a folder or a Hub id, or `config`: its config.json inline), a card (`gpu`, with
`gpu_total_gib` where it is not in the catalogue, or `detected`), and any of vLLM's flags under its own name. The short
names that start-up logs are collected under (`tp`, `gmu`, `kv_dtype`, ...) mean the same, and what such a row logged
(`kv_tokens`, `load_gib`, ...) is left alone: it is never part of an answer.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from sizing.adapter_settings import SETTINGS, read_adapters
from sizing.card_names import described_card
from sizing.config_json import kv_layers, parse_config
from sizing.drafters import Drafter
from sizing.errors import ModelNotFoundError, QuestionError, UnsupportedModelError
from sizing.gpu import AMPERE, GIB, Device, Link, compute_major
from sizing.heads import HeadMethod, parse_head
from sizing.memory import Corrections
from sizing.model import Dtype, ModelShape
from sizing.question import Question
from sizing.release import Engine, parse_release
from sizing.speculation import drafter, read_speculation
from sizing.weights import quantized

Row = Mapping[str, object]

_SHORT = {
    "tp": "tensor_parallel_size",
    "pp": "pipeline_parallel_size",
    "ep": "enable_expert_parallel",
    "gmu": "gpu_memory_utilization",
    "kv_dtype": "kv_cache_dtype",
    "quant": "quantization",
    "prefix_caching": "enable_prefix_caching",
    "vllm": "vllm_version",
    "dp": "data_parallel_size",
}
ASKED = frozenset(
    {
        *("id", "model", "config", "gpu", "gpu_total_gib", "gpu_free_gib", "link", "detected", "dtype"),
        *("count", "ngpu"),  # cards there are, and cards that were used
        *("quantization", "vllm_version", "engine", "tensor_parallel_size", "pipeline_parallel_size"),
        *("enable_expert_parallel", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size"),
        *("gpu_memory_utilization", "gmu_default", "kv_cache_memory_bytes", "kv_cache_dtype", "enforce_eager"),
        *("enable_prefix_caching", "revision", "lora", "speculative_config", "data_parallel_size"),
        *SETTINGS,
    }
)
_LOGGED = frozenset(
    {
        *("source", "note", "gpu_total_note", "blocks", "load_gib", "ckpt_gib", "consumed_gib"),
        *("act_gib", "nontorch_gib", "peak_torch_gib", "cg_est_gib", "cg_gib", "kv_gib", "kv_tokens"),
        *("kv_tokens_approx", "conc", "est_max_len", "kv_needed_gib", "outcome", "mla_align", "skip_mm_profiling"),
        *("config_known", "complete", "page_check", "unified_memory", "outlier", "certainty"),
    }
)
_DTYPES: dict[str, Dtype] = {
    **dict.fromkeys(("bf16", "bfloat16"), "bfloat16"),
    **dict.fromkeys(("fp16", "float16", "half"), "float16"),
    **dict.fromkeys(("fp32", "float32", "float"), "float32"),
}
# what logs and publishers write around a scheme's name: "fp8 (online)", "compressed-tensors w8a8", "fp8 block128"
_SCHEME_WORDS = re.compile(r"\(.*\)|^compressed-tensors\s|^modelopt\s|\b4bit\b|(?<=block)\d+")
_ASIDE = re.compile(r"\s*\([^)]*\)$")
_TOO_MUCH = 2**63
_MOST_GIB = 1_000_000.0
_LEAST_GIB = 0.01
_ROUNDING_GIB = 0.1


@dataclass(frozen=True)
class Sources:
    """Where a row's model and machine come from: the only I/O of a question."""

    load: Callable[[str, str | None], ModelShape]
    """By folder or Hub id, and revision."""
    machine: Callable[[], tuple[Device, int]]
    """The most numerous kind of card here, and how many there are."""
    configs: Mapping[str, Row] = field(default_factory=dict)
    """config.json by name, looked at before a model is loaded."""
    corrections: Corrections | None = None
    """What the user's own start-up logs say of the terms."""
    load_head: Callable[[str, str | None, HeadMethod], ModelShape] | None = None
    """An EAGLE head, by folder or Hub id, revision and kind; None: only those in `configs`."""
    shapes: dict[tuple[str | None, ...], ModelShape] = field(default_factory=dict, compare=False, repr=False)
    """Models that questions named before, by all that a question says of a model."""

    def remembered(self, key: tuple[str | None, ...], read: Callable[[], ModelShape]) -> ModelShape:
        """A model that many questions name is read once."""
        found = self.shapes.get(key)
        if found is None:
            found = self.shapes[key] = read()
        return found


def read_question(row: object, sources: Sources, *, cache_only: bool = False) -> Question:
    """The question that a row asks; `cache_only`: of a config that may lack what weights depend on.

    Raises:
        QuestionError: a key that is not known, a value that is not of its kind, or too little to go by.
        SizingError: as the model's own files say.
    """
    values = _values(row)
    if _flag(values, "lora") and not _flag(values, "enable_lora"):
        raise QuestionError(
            "lora says that there were adapters, not how many; say enable_lora, max_loras and max_lora_rank too"
        )
    device, count = _device(values, sources)
    major = compute_major(device.name)
    if major is not None and major < AMPERE and _dtype(values) == "bfloat16":  # check_if_supports_dtype
        raise QuestionError(f"{device.name} has no bfloat16, and vLLM refuses it there; use float16")
    release = parse_release(_text(values, "vllm_version"), _engine(values))
    stages = _count(values, "pipeline_parallel_size")
    stages = 1 if stages is None else stages
    tensor_parallel_size = _count(values, "tensor_parallel_size")
    used = _count(values, "ngpu")
    if tensor_parallel_size is None and used is not None:
        tensor_parallel_size = max(1, used // max(1, stages * (_count(values, "data_parallel_size") or 1)))
    utilization = _number(values, "gpu_memory_utilization")
    utilization = _number(values, "gmu_default") if utilization is None else utilization
    replicas = _count(values, "data_parallel_size")
    replicas = 1 if replicas is None else replicas
    model = _cached_only(values, sources) if cache_only else _model(values, sources)
    return Question(
        model=model,
        device=device,
        count=count if _says_how_many(values) else max(count, (tensor_parallel_size or 1) * stages * replicas),
        tensor_parallel_size=tensor_parallel_size,
        max_model_len=_model_len(values),
        max_num_seqs=_count(values, "max_num_seqs"),
        max_num_batched_tokens=_count(values, "max_num_batched_tokens"),
        gpu_memory_utilization=utilization,
        kv_cache_memory_bytes=_count(values, "kv_cache_memory_bytes"),
        kv_cache_dtype=_text(values, "kv_cache_dtype") or "auto",
        enforce_eager=_flag(values, "enforce_eager") or False,
        pipeline_parallel_size=stages,
        enable_expert_parallel=_flag(values, "enable_expert_parallel") or False,
        block_size=_count(values, "block_size"),
        enable_prefix_caching=_flag(values, "enable_prefix_caching"),
        data_parallel_size=replicas,
        speculative=_speculative(values, model, sources),
        adapters=read_adapters(values),
        release=release,
        corrections=sources.corrections,
    )


def _values(row: object) -> dict[str, object]:
    """The row under vLLM's names, nulls left out."""
    if not isinstance(row, dict):
        raise QuestionError('a question is a JSON object, such as {"model": "Qwen/Qwen3-8B", "gpu": "L40S"}')
    values: dict[str, object] = {}
    for key, value in row.items():
        name = _SHORT.get(key, key)
        if name not in ASKED and name not in _LOGGED:
            near = difflib.get_close_matches(str(key), [*ASKED, *_SHORT], n=1)
            raise QuestionError(f"{key!r} is not part of a question" + (f"; did you mean {near[0]!r}?" if near else ""))
        if value is not None and name in ASKED:
            if name in values and values[name] != value:
                raise QuestionError(f"{name} is said twice, as {values[name]!r} and as {value!r}; leave one out")
            values[name] = value
    return values


def _model(values: Row, sources: Sources) -> ModelShape:
    if values.get("config") is not None:
        return _read_model(values, sources)
    key = tuple(_text(values, said) for said in ("model", "revision", "quantization", "dtype"))
    return sources.remembered(key, lambda: _read_model(values, sources))


def _read_model(values: Row, sources: Sources) -> ModelShape:
    name, config = _text(values, "model"), values.get("config")
    if config is not None and not isinstance(config, dict):
        raise QuestionError("config is not a JSON object; give the model's config.json itself")
    if not name and config is None:
        raise QuestionError('the question names no model; give "model" (a folder or a Hub id) or "config"')
    found = config if config is not None else _known_config(name or "", sources.configs)
    if found is not None:
        model = _parsed(found, name or "inline config", packed_as=_text(values, "quantization"))
    else:
        ref, revision = name or "", _text(values, "revision")
        model = sources.remembered((ref, revision), lambda: sources.load(ref, revision))
    scheme = _text(values, "quantization")
    if scheme is not None and model.quantization is None:
        model = quantized(model, _SCHEME_WORDS.sub("", scheme.lower()).strip())
    dtype = _dtype(values)
    return model if dtype is None else model.served_as(dtype)


def _speculative(values: Row, model: ModelShape, sources: Sources) -> Drafter | None:
    if values.get("speculative_config") is None:
        return None

    def load(ref: str, revision: str | None, head: HeadMethod | None) -> ModelShape:
        if head is None:
            return _model({"model": ref, "revision": revision}, sources)
        return sources.remembered((ref, revision, head), lambda: _read_head(ref, revision, head, sources))

    try:
        return drafter(read_speculation(values["speculative_config"]), model, load)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"the draft model of speculative_config: {error}") from error


def _read_head(ref: str, revision: str | None, head: HeadMethod, sources: Sources) -> ModelShape:
    found = _known_config(ref, sources.configs)
    if found is not None:
        return parse_head(found, name=ref, method=head)
    if sources.load_head is None:
        raise ModelNotFoundError(f"{ref} is not among the configs given; add its config.json")
    return sources.load_head(ref, revision, head)


def _known_config(name: str, configs: Mapping[str, Row]) -> Row | None:
    """By the name as it is, or without what is said behind it in parentheses: "Qwen/QwQ-32B (GGUF Q4_K_M)"."""
    return configs.get(name) or configs.get(_ASIDE.sub("", name))


def _cached_only(values: Row, sources: Sources) -> ModelShape:
    """What the KV cache depends on, where a config is at hand; else the whole model."""
    name = _text(values, "model") or "inline config"
    config = values.get("config")
    found = config if isinstance(config, dict) else _known_config(name, sources.configs)
    if found is None:
        return _model(values, sources)
    model = kv_layers({key: value for key, value in found.items() if key != "quantization_config"}, name=name)
    dtype = _dtype(values)
    return model if dtype is None else replace(model, dtype=dtype)


def _parsed(config: Row, name: str, *, packed_as: str | None) -> ModelShape:
    """A config's model. One that names a quantization without its details is read as the row says it is packed."""
    try:
        return parse_config(config, name=name)
    except UnsupportedModelError:
        section = config.get("quantization_config")
        if packed_as is None or not isinstance(section, dict) or not all(isinstance(v, str) for v in section.values()):
            raise
        return parse_config({key: value for key, value in config.items() if key != "quantization_config"}, name=name)


def _dtype(values: Row) -> Dtype | None:
    """None for `auto`, and where a row says "fp16/bf16" because its log did not."""
    text = _text(values, "dtype")
    if text is None or text == "auto" or "/" in text:
        return None
    if text not in _DTYPES:
        raise QuestionError(f"dtype {text!r} is not served; use auto, bfloat16, float16 or float32")
    return _DTYPES[text]


def _device(values: Row, sources: Sources) -> tuple[Device, int]:
    count = _count(values, "count")
    count = _count(values, "ngpu") if count is None else count
    if _flag(values, "detected"):
        device, here = sources.machine()
        if count is not None and count > here:
            raise QuestionError(
                f"count is {count}, but this machine has {here} of {device.name}; name a card with --gpu"
            )
        return device, here if count is None else count
    name, total_gib = _text(values, "gpu") or None, _gib(values, "gpu_total_gib")
    if name is None and total_gib is None:
        raise QuestionError('the question names no card; give "gpu" (such as H200), "gpu_total_gib", or "detected"')
    processor = name is not None and name.lower() in ("cpu", "processor")
    if processor and total_gib is None:
        raise QuestionError(
            f'gpu is {name!r}, but how much memory a processor has is not known; give gpu_total_gib, or "detected"'
        )
    device = Device("cpu", "CPU", 0, 0) if processor else described_card(name or "unnamed card", total_gib)
    if total_gib is not None:
        total = int(total_gib * GIB)
        device = replace(device, memory_bytes=total, free_bytes=total)
    free_gib = _gib(values, "gpu_free_gib", least=0.0)
    if free_gib is not None:
        if free_gib > device.memory_bytes / GIB + _ROUNDING_GIB:
            raise QuestionError(
                f"gpu_free_gib is {free_gib:g}, more than the {device.memory_bytes / GIB:.2f} GiB of {device.name}; "
                "give what others leave of it"
            )
        device = replace(device, free_bytes=min(device.memory_bytes, int(free_gib * GIB)))
    return replace(device, link=_link(values, device.link)), 1 if count is None else count


def _says_how_many(values: Row) -> bool:
    return any(_count(values, key) is not None for key in ("count", "ngpu")) or bool(_flag(values, "detected"))


def _link(values: Row, default: Link) -> Link:
    text = _text(values, "link")
    if text is None:
        return default
    for link in ("none", "pcie", "nvlink", "xgmi"):
        if text == link:
            return link
    raise QuestionError(f"link {text!r} is not known; use none, pcie, nvlink or xgmi")


def _engine(values: Row) -> Engine | None:
    text = _text(values, "engine")
    if text is None:
        return None
    if text == "V0":
        return "V0"
    if text == "V1":
        return "V1"
    raise QuestionError(f"engine {text!r} is not known; use V0 or V1")


def _text(values: Row, key: str) -> str | None:
    value = values.get(key)
    if value is not None and not isinstance(value, str):
        raise QuestionError(f"{key} is {value!r}; it has to be text")
    return value


def _number(values: Row, key: str) -> float | None:
    value = values.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise QuestionError(f"{key} is {value!r}; it has to be a number")
    if not abs(value) < _TOO_MUCH:  # nor is it NaN
        raise QuestionError(f"{key} is {'not a number' if value != value else 'too large'}; give one that can be meant")
    return float(value)


def _gib(values: Row, key: str, least: float = _LEAST_GIB) -> float | None:
    value = _number(values, key)
    if value is not None and not least <= value <= _MOST_GIB:
        raise QuestionError(f"{key} is {value:g}; it has to be a number of GiB from {least:g} to {_MOST_GIB:,.0f}")
    return value


def _model_len(values: Row) -> int | None:
    """vLLM's `auto`, or -1, asks for the longest context that fits, which is answered where none is asked for too."""
    return None if values.get("max_model_len") in ("auto", -1) else _count(values, "max_model_len")


def _count(values: Row, key: str) -> int | None:
    value = _number(values, key)
    if value is not None and value != int(value):
        raise QuestionError(f"{key} is {value!r}; it has to be a whole number")
    return None if value is None else int(value)


def _flag(values: Row, key: str) -> bool | None:
    value = values.get(key)
    if value is not None and not isinstance(value, bool):
        raise QuestionError(f"{key} is {value!r}; it has to be true or false")
    return value
