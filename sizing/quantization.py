"""Which of a model's weights a quantization takes, and in which format: from its config section or by its name."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from sizing.config_values import ConfigValues
from sizing.errors import QuestionError, UnsupportedModelError
from sizing.ggml import MIXTURES, Mixture
from sizing.held import Weight
from sizing.model import KvCacheDtype
from sizing.number_format import (
    FP8_BLOCK,
    FP8_CHANNEL,
    FP8_TENSOR,
    INT8_CHANNEL,
    MXFP4,
    MXFP8,
    NF4,
    NF4_SINGLE,
    NVFP4,
    NumberFormat,
    integers,
)

Match = Literal["module", "substring", "wildcard", "target"]


@dataclass(frozen=True)
class Quantization:
    """One way of packing a model's linear layers.

    Embeddings, norms, routers and convolutions stay in the served type everywhere; the output layer does unless
    `takes_output` is set or the mixture has a type for it.
    """

    method: str
    """As vLLM names it."""
    groups: tuple[tuple[tuple[str, ...], NumberFormat], ...]
    """Targets and their format; the first that fits is taken. No targets: every linear layer."""
    ignore: tuple[str, ...] = ()
    match: Match = "module"
    experts_only: bool = False
    takes_output: bool = False
    mixture: Mixture | None = None
    """Of GGUF types, which then says for each weight what it is."""
    assumed: str | None = None
    """What the config leaves open and was filled in, in a sentence."""

    def format_of(self, weight: Weight) -> NumberFormat | None:
        """None where that weight stays in the served type."""
        if not weight.linear and not (self.takes_output and weight.split == "output"):
            return None
        if self.experts_only and weight.split != "experts":
            return None
        spellings = _spellings(weight.name)
        if any(_fits(pattern, spellings, self.match) for pattern in self.ignore):
            return None
        for targets, number_format in self.groups:
            if not targets or any(_targeted(target, spellings) for target in targets):
                return number_format
        return None


def _spellings(name: str) -> tuple[str, ...]:
    """The module as its own class names it, and as the wrappers around it do."""
    inner = name.removeprefix("model.")
    return (name, f"language_model.{name}", f"model.language_model.{inner}")


def _fits(pattern: str, spellings: Sequence[str], match: Match) -> bool:
    if match == "target":
        return _targeted(pattern, spellings)
    if match == "wildcard":  # ModelOpt's: a wildcard, or part of the name
        return any(fnmatchcase(name, pattern) or pattern in name for name in spellings)
    if match == "substring":
        return any(pattern in name for name in spellings)
    return any(name == pattern or name.startswith(f"{pattern}.") or _of_expert(name, pattern) for name in spellings)


def _of_expert(name: str, pattern: str) -> bool:
    """A list that names each expert names the first of them, which speaks for all."""
    return name.replace(".*.", ".0.") == pattern


def _targeted(target: str, spellings: Sequence[str]) -> bool:
    """compressed-tensors: a module class, a regular expression after `re:`, or a name."""
    if target in ("Linear", "FusedMoE", "MoEGEMM"):
        return True
    if target.startswith("re:"):
        expression = re.compile(target.removeprefix("re:"))
        return any(expression.match(name.replace(".*.", ".0.")) for name in spellings)
    return any(name == target or name.endswith(f".{target}") or _of_expert(name, target) for name in spellings)


def quantization_method(config: ConfigValues) -> tuple[str | None, KvCacheDtype]:
    """The method's name as vLLM normalises it, and the KV cache type that the checkpoint asks for."""
    section = config.section("quantization_config", "compression_config")
    if not section:
        return None, "auto"
    inner = section.get("quantization")
    inner = inner if isinstance(inner, dict) else {}
    method = _method(section, inner)
    if method is None:
        raise UnsupportedModelError(
            f"{config.name}: its quantization_config names no quant_method, so its KV cache type is unknown; "
            "use the config.json as its publisher ships it"
        )
    if method == "compressed-tensors":
        return method, "fp8" if section.get("kv_cache_scheme") else "auto"
    if method.startswith("modelopt"):
        return method, _modelopt_kv_cache(config, [inner, section])
    return method, "auto"


def _method(section: Mapping[str, object], inner: Mapping[str, object]) -> str | None:
    method = str(section.get("quant_method") or "").lower().replace("compressed_tensors", "compressed-tensors")
    algorithm = str(inner.get("quant_algo") or section.get("quant_algo") or "").upper()
    if method in ("", "modelopt") and algorithm:  # ModelOpt before 0.31 keeps it in a file of its own
        named = {"FP8": "modelopt", "NVFP4": "modelopt_fp4", "MIXED_PRECISION": "modelopt_mixed"}.get(algorithm)
        return named or method or None
    return method or None


def _modelopt_kv_cache(config: ConfigValues, sections: Sequence[Mapping[str, object]]) -> KvCacheDtype:
    """vllm/utils/torch_utils.py: get_kv_cache_quant_algo_string."""
    for key in ("kv_cache_scheme", "kv_cache_quant_algo"):
        for section in sections:
            algo = section.get(key)
            if not algo:
                continue
            if isinstance(algo, dict):
                algo = {8: "fp8", 4: "nvfp4"}.get(algo.get("num_bits", 0)) if algo.get("type") == "float" else None
            if str(algo).lower() == "fp8":
                return "fp8"
            raise UnsupportedModelError(
                f"{config.name}: its checkpoint asks for a {algo} KV cache, which is not sized yet; "
                "sized today are the served type and fp8"
            )
    return "auto"


def read_quantization(config: ConfigValues) -> Quantization:
    """What the config's own section says it packs.

    Raises:
        UnsupportedModelError: a method or a format that is not known here.
    """
    method, _ = quantization_method(config)
    outer = config.section("quantization_config", "compression_config")
    inner = outer.get("quantization")
    section = _Section(config.name, {**outer, **inner} if isinstance(inner, dict) else outer)
    match method:
        case "fp8" | "fbgemm_fp8":
            return section.fp8(str(method))
        case "compressed-tensors":
            return section.compressed_tensors()
        case "awq" | "gptq" | "auto-round" | "auto_round" | "inc" | "intel/auto-round":
            return section.integers(str(method))
        case "bitsandbytes":
            return section.bitsandbytes()
        case "mxfp4" | "gpt_oss_mxfp4":
            return replace(SCHEMES["mxfp4"], ignore=section.words("modules_to_not_convert"))
        case "modelopt" | "modelopt_fp4" | "modelopt_mixed":
            return section.modelopt(str(method))
        case "quark":
            return section.quark()
    raise section.unknown(f"weights quantized with {method}")


@dataclass(frozen=True)
class _Section:
    """A `quantization_config`, read method by method."""

    name: str
    values: Mapping[str, object]

    def unknown(self, what: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{self.name}: {what} are only known from safetensors headers, and there are none; "
            "size the repository or the folder that holds them"
        )

    def words(self, *keys: str) -> tuple[str, ...]:
        """The first of these lists that has words in it."""
        for key in keys:
            value = self.values.get(key)
            if isinstance(value, list) and value:
                return tuple(str(word) for word in value)
        return ()

    def number(self, key: str, default: int) -> int:
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise UnsupportedModelError(
                f"{self.name}: its quantization_config says {key} = {value!r}, which must be a whole number; "
                "use the config.json as its publisher ships it"
            )
        return value

    def fp8(self, method: str) -> Quantization:
        block = self.values.get("weight_block_size")
        number_format = FP8_CHANNEL if method == "fbgemm_fp8" else FP8_TENSOR
        if isinstance(block, list) and len(block) == 2 and all(isinstance(side, int) and side > 0 for side in block):
            number_format = replace(FP8_BLOCK, block=(block[0], block[1]))
        return Quantization(method, (((), number_format),), self.words("ignored_layers", "modules_to_not_convert"))

    def compressed_tensors(self) -> Quantization:
        groups = self.values.get("config_groups")
        found = []
        for group in groups.values() if isinstance(groups, dict) else ():
            targets = group.get("targets") if isinstance(group, dict) else None
            weights = group.get("weights") if isinstance(group, dict) else None
            if isinstance(weights, dict):
                targets = tuple(str(target) for target in targets) if isinstance(targets, list) else ()
                found.append((targets, self._packed(weights)))
        assumed = None
        if not found:
            named = {
                "float-quantized": FP8_CHANNEL,
                "int-quantized": INT8_CHANNEL,
                "nvfp4-pack-quantized": NVFP4,
                "mxfp4-pack-quantized": MXFP4,
            }.get(str(self.values.get("format")))
            if named is None:
                raise self.unknown(f"weights of format {self.values.get('format')} without config_groups")
            found, assumed = (
                [((), named)],
                f"its config.json lists no layers, so all linear ones are taken as {named.name}",
            )
        # a group may name layers and another all the rest: names come first, as vLLM looks them up
        found.sort(key=lambda group: "Linear" in group[0])
        ignore = self.words("ignore") or (("lm_head",) if assumed else ())
        takes_output = not any(_targeted(pattern, ("lm_head",)) for pattern in ignore) and any(
            target.startswith("re:") and re.match(target[3:], "lm_head") for targets, _ in found for target in targets
        )
        return Quantization("compressed-tensors", tuple(found), ignore, "target", False, takes_output, assumed=assumed)

    def _packed(self, weights: Mapping[str, object]) -> NumberFormat:
        bits, strategy, kind = weights.get("num_bits"), weights.get("strategy"), weights.get("type")
        size = weights.get("group_size")
        size = size if isinstance(size, int) else -1
        match kind, bits:
            case "float", 8:
                block = weights.get("block_structure")
                if strategy == "block" and isinstance(block, list) and len(block) == 2:
                    return replace(FP8_BLOCK, block=(int(block[0]), int(block[1])))
                return FP8_TENSOR if strategy == "tensor" else MXFP8 if strategy == "group" else FP8_CHANNEL
            case "float", 4:
                return NVFP4 if size == 16 else MXFP4
            case "int", 8 if strategy != "group":
                return INT8_CHANNEL
            case "int", int() if bits in (2, 3, 4, 8):
                ordered = weights.get("actorder") not in (True, "group", "dynamic")
                return integers(bits, size, zero_points=weights.get("symmetric") is False, ordered=ordered)
        raise self.unknown(f"weights of type {kind} with {bits} bits")

    def integers(self, method: str) -> Quantization:
        """AWQ, GPTQ and AutoRound, which writes either's layout."""
        bits, size = (
            self.number("bits", self.number("w_bit", 4)),
            self.number("group_size", self.number("q_group_size", 128)),
        )
        if bits not in (2, 3, 4, 8):
            raise self.unknown(f"weights of {bits} bits")
        awq = method == "awq" or "awq" in str(self.values.get("packing_format") or "")
        number_format = integers(
            bits,
            size,
            # vLLM's kernels take GPTQ's fixed zero point as given and drop the table
            zero_points=awq and self.values.get("zero_point") is not False,
            ordered=self.values.get("desc_act") is not True,
        )
        ignore = self.words("modules_to_not_convert", "modules_to_not_quantize")
        dynamic = self.values.get("dynamic")
        if isinstance(dynamic, dict):  # GPTQModel: a minus before the expression leaves those out
            ignore += tuple("re:.*" + str(key)[2:].lstrip("^") for key in dynamic if str(key).startswith("-:"))
            return Quantization(method, (((), number_format),), ignore, "target", takes_output=self._output())
        return Quantization(method, (((), number_format),), ignore, "substring", takes_output=self._output())

    def _output(self) -> bool:
        return self.values.get("lm_head") is True

    def bitsandbytes(self) -> Quantization:
        skipped = self.words("llm_int8_skip_modules")
        if self.values.get("load_in_8bit") is True:
            return replace(SCHEMES["bnb-int8"], ignore=skipped, match="substring")
        number_format = NF4 if self.values.get("bnb_4bit_use_double_quant", True) is not False else NF4_SINGLE
        return Quantization("bitsandbytes", (((), number_format),), skipped, "substring")

    def modelopt(self, method: str) -> Quantization:
        ignore = self.words("ignore", "exclude_modules")
        formats = {"FP8": FP8_TENSOR, "NVFP4": NVFP4, "MXFP8": MXFP8, "FP8_PB_WO": FP8_BLOCK}
        if method == "modelopt_mixed":
            return self._mixed(formats, ignore)
        named = formats.get(str(self.values.get("quant_algo")).upper())
        if named is None:
            raise self.unknown(f"weights quantized with ModelOpt's {self.values.get('quant_algo')}")
        assumed = None if ignore else "its config.json lists no exceptions, so every linear layer is taken as quantized"
        # vLLM takes the output layer too where the list leaves it in
        return Quantization(
            method, (((), named),), ignore or ("lm_head",), "wildcard", takes_output=True, assumed=assumed
        )

    def _mixed(self, formats: Mapping[str, NumberFormat], ignore: tuple[str, ...]) -> Quantization:
        listed = self.values.get("quantized_layers")
        if not isinstance(listed, dict) or not listed:
            raise self.unknown("weights of mixed precision without a list of layers")
        by_format: dict[NumberFormat, list[str]] = {}
        for layer, how in listed.items():
            algorithm = str(how.get("quant_algo")).upper() if isinstance(how, dict) else ""
            if algorithm not in formats:
                raise self.unknown(f"weights quantized with ModelOpt's {algorithm or how}")
            by_format.setdefault(formats[algorithm], []).append(str(layer))
        groups = tuple((tuple(layers), number_format) for number_format, layers in by_format.items())
        return Quantization("modelopt_mixed", groups, ignore, "wildcard")

    def quark(self) -> Quantization:
        overall = self.values.get("global_quant_config")
        weight = overall.get("weight") if isinstance(overall, dict) else None
        weight = weight[0] if isinstance(weight, list) and weight else weight
        kind = (str(weight.get("dtype")), str(weight.get("qscheme"))) if isinstance(weight, dict) else ("", "")
        formats = {
            ("fp8_e4m3", "per_tensor"): FP8_TENSOR,
            ("fp8_e4m3", "per_channel"): FP8_CHANNEL,
            ("int8", "per_tensor"): INT8_CHANNEL,
            ("int8", "per_channel"): INT8_CHANNEL,
            ("fp4", "per_group"): MXFP4,
        }
        if kind not in formats or self.values.get("layer_quant_config"):
            raise self.unknown(f"weights quantized by Quark as {kind[0]} {kind[1]}")
        return Quantization("quark", (((), formats[kind]),), self.words("exclude"), "target")


def _all(method: str, number_format: NumberFormat, *, experts_only: bool = False) -> Quantization:
    return Quantization(method, (((), number_format),), experts_only=experts_only)


_INT4 = integers(4, 128, zero_points=False)
SCHEMES: Mapping[str, Quantization] = {
    "fp8": _all("fp8", FP8_TENSOR),
    "fp8-block": _all("fp8", FP8_BLOCK),
    "fp8-channel": _all("compressed-tensors", FP8_CHANNEL),
    "w8a8-fp8": _all("compressed-tensors", FP8_CHANNEL),
    "w8a8-int8": _all("compressed-tensors", INT8_CHANNEL),
    "awq": _all("awq", integers(4, 128, zero_points=True)),
    "gptq": _all("gptq", _INT4),
    "gptq-int8": _all("gptq", integers(8, 128, zero_points=False)),
    "w4a16": _all("compressed-tensors", _INT4),
    "nvfp4": _all("modelopt_fp4", NVFP4),
    "modelopt-fp8": _all("modelopt", FP8_TENSOR),
    "mxfp4": _all("mxfp4", MXFP4, experts_only=True),
    "mxfp8": _all("modelopt", MXFP8),
    "bitsandbytes": _all("bitsandbytes", NF4),
    "bnb-int8": _all("bitsandbytes", replace(INT8_CHANNEL, name="INT8")),
    **{f"gguf-{name}": Quantization("gguf", (), mixture=mixture) for name, mixture in MIXTURES.items()},
}
"""What can be asked for by name, for a config that says nothing: each packs all linear layers unless it says less.
Groups are of 128, as nearly all published checkpoints have them."""

_ALIASES = {
    "awq-marlin": "awq",
    "awq-int4": "awq",
    "gptq-marlin": "gptq",
    "gptq-int4": "gptq",
    "int4": "w4a16",
    "w4a16-int4": "w4a16",
    "w8a8": "w8a8-int8",
    "int8": "w8a8-int8",
    "compressed-tensors-int8": "w8a8-int8",
    "compressed-tensors-fp8": "fp8-channel",
    "compressed-tensors-int4": "w4a16",
    "fp8-dynamic": "fp8-channel",
    "fp8-static": "fp8",
    "fp8-per-tensor": "fp8",
    "fp8-per-channel": "fp8-channel",
    "fp8-per-block": "fp8-block",
    "int8-per-channel": "w8a8-int8",
    "fbgemm-fp8": "fp8-channel",
    "modelopt": "modelopt-fp8",
    "modelopt-fp4": "nvfp4",
    "modelopt-nvfp4": "nvfp4",
    "gpt-oss-mxfp4": "mxfp4",
    "bnb": "bitsandbytes",
    "bnb-nf4": "bitsandbytes",
    "bnb-4bit": "bitsandbytes",
    "nf4": "bitsandbytes",
    "bnb-8bit": "bnb-int8",
}


def named_quantization(scheme: str, *, model: str) -> Quantization:
    """A quantization by name: vLLM's `--quantization` values, and what publishers put into a model's name.

    Raises:
        QuestionError: no such scheme is known; the message lists those that are.
    """
    name = re.sub(r"[\s_]+", "-", scheme.strip().lower())
    if name.startswith("gguf-"):
        name = "gguf-" + name.removeprefix("gguf-").replace("-", "_")
    found = SCHEMES.get(_ALIASES.get(name, name))
    if found is None:
        raise QuestionError(
            f"{model}: quantization {scheme!r} is not known; known are {', '.join(sorted({*SCHEMES, *_ALIASES}))}"
        )
    return found
