"""A model's `quantization_config`, method by method: what it packs and what it leaves."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sizing.config_values import ConfigValues
from sizing.errors import ModelFileError, UnsupportedModelError
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
from sizing.quantization import Quantization, targeted
from sizing.schemes import SCHEMES

_UNLISTED_MIXTURE = Quantization(
    "modelopt_mixed",
    (((r"re:.*(mlp|experts|feed_forward)\.",), NVFP4), ((), FP8_TENSOR)),
    match="wildcard",
    assumed="its config.json does not list which layers are in FP8 and which in NVFP4, so NVFP4 is taken for the "
    "feed-forward layers and FP8 for the others",
)


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
                bits = str(algo.get("num_bits"))  # as text, since a broken file may have anything there
                algo = {"8": "fp8", "4": "nvfp4"}.get(bits) if algo.get("type") == "float" else None
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
        """The first of these lists that has words in it; expressions among them have been tried."""
        for key in keys:
            value = self.values.get(key)
            if isinstance(value, list) and value:
                return tuple(self.expression(key, str(word)) for word in value)
        return ()

    def expression(self, key: str, word: str) -> str:
        if word.startswith("re:"):
            try:
                re.compile(word.removeprefix("re:"))
            except re.error as error:
                raise self.impossible(key, word, f"is no regular expression ({error})") from error
        return word

    def number(self, key: str, default: int) -> int:
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.impossible(key, value, "must be a whole number")
        return value

    def block(self, key: str, value: object) -> tuple[int, int]:
        """Outputs and inputs."""
        if isinstance(value, list) and len(value) == 2 and all(isinstance(side, int) and side > 0 for side in value):
            return value[0], value[1]
        raise self.impossible(key, value, "must be two positive whole numbers")

    def impossible(self, key: str, value: object, why: str) -> ModelFileError:
        return ModelFileError(
            f"{self.name}: its quantization_config says {key} = {value!r}, which {why}; "
            "use the config.json as its publisher ships it"
        )

    def fp8(self, method: str) -> Quantization:
        block = self.values.get("weight_block_size")
        number_format = FP8_CHANNEL if method == "fbgemm_fp8" else FP8_TENSOR
        if block is not None:
            number_format = replace(FP8_BLOCK, block=self.block("weight_block_size", block))
        return Quantization(method, (((), number_format),), self.words("ignored_layers", "modules_to_not_convert"))

    def compressed_tensors(self) -> Quantization:
        groups = self.values.get("config_groups")
        found = []
        for group in groups.values() if isinstance(groups, dict) else ():
            targets = group.get("targets") if isinstance(group, dict) else None
            weights = group.get("weights") if isinstance(group, dict) else None
            if isinstance(weights, dict):
                listed = targets if isinstance(targets, list) else ()
                targets = tuple(self.expression("targets", str(target)) for target in listed)
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
        takes_output = not any(targeted(pattern, ("lm_head",)) for pattern in ignore) and any(
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
                if strategy == "block":
                    return replace(FP8_BLOCK, block=self.block("block_structure", block))
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
            return replace(_UNLISTED_MIXTURE, ignore=ignore or ("lm_head",))
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
