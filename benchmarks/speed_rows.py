"""Measured runs from a file of rows: one JSON object per run, and the config.json of every model by its Hub id."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import ConfigError
from sizing.cards import card
from sizing.config_json import parse_config
from sizing.errors import SizingError
from sizing.gpu import gpu
from sizing.roofline import Engine
from sizing.speed import Load
from sizing.speed_fit import Measurement
from sizing.speed_shape import BYTES_PER_PARAMETER, SpeedShape, WeightFormat, speed_shape_of

_FORMATS: dict[str, WeightFormat] = {
    "bf16": "16bit",
    "bfloat16": "16bit",
    "fp16": "16bit",
    "fp8": "fp8",
    "fp8_block": "fp8",
    "int8": "int8",
    "fp4": "nvfp4",
    "nvfp4": "nvfp4",
    "mxfp4": "mxfp4",
    "w4a16_mxfp4": "mxfp4",
    "int4": "int4",
    "int4_wo": "int4",
}


_USABLE_SHARE = 0.92  # vLLM's default gpu_memory_utilization


@dataclass(frozen=True)
class Rows:
    """What can be predicted, and why the rest cannot, in words with their counts."""

    measurements: tuple[Measurement, ...]
    left_out: Counter[str]


class _RowError(Exception):
    """Why a row cannot be predicted."""


def read_rows(perf: Sequence[Path], configs: Sequence[Path]) -> Rows:
    """Every row of the files as a measurement, its model described by one of `configs`.

    Raises:
        ConfigError: a file that is not there or is not what it should be.
    """
    described: dict[str, object] = {}
    for file in configs:
        described |= _described(file)
    found, left_out = [], Counter[str]()
    for row in (row for file in perf for row in _runs(file)):
        try:
            found.append(measurement(row, described))
        except (_RowError, SizingError) as error:
            left_out[str(error)] += 1
    if not found:
        raise ConfigError(f"no row of {', '.join(map(str, perf))} can be predicted: " + "; ".join(left_out))
    return Rows(tuple(found), left_out)


def measurement(row: Mapping[str, object], configs: Mapping[str, object]) -> Measurement:
    """One run. Where experts are spread over more cards than its tensor parallel size says, the row is read as one of
    several attention replicas beside them, and its concurrency as that of one replica."""
    model = str(row.get("model"))
    config = configs.get(model)
    if not isinstance(config, dict):
        raise _RowError(f"no config.json of {model}")
    if "request-rate inf" in str(row.get("dataset", "")):
        raise _RowError("all requests sent at once: no steady load")
    name = str(row.get("gpu") or "").removesuffix("_sxm")
    if not name:
        raise _RowError("no card stated")
    tp, replicas = _count(row, "tp"), _count(row, "attention_dp")
    spread = max(tp * replicas, _count(row, "moe_tp") * _count(row, "moe_ep")) // tp
    load = Load(
        prompt_tokens=_number(row, "isl"),
        output_tokens=_number(row, "osl"),
        concurrency=_number(row, "concurrency") * spread / replicas,
    )
    engine = Engine(card(name), gpu(name).link, tp, spread, pipeline_parallel_size=_count(row, "pp"))
    return Measurement(
        name=str(row.get("id")),
        group=f"{model}|{row.get('gpu')}",
        shape=_shape(row, config, model, engine, load),
        engine=engine,
        load=load,
        ttft_s=_seconds(row, "ttft_ms"),
        tpot_s=_seconds(row, "tpot_ms"),
        step_s=_seconds(row, "step_ms"),
        prefill_s=_seconds(row, "prefill_ms"),
    )


def _shape(
    row: Mapping[str, object], config: Mapping[str, object], model: str, engine: Engine, load: Load
) -> SpeedShape:
    """The row says in which format its weights were: that of the config.json is put aside.

    No row states its KV cache's type. Checkpoints in NVFP4 ask for FP8 by themselves; elsewhere it is taken to be in 16
    bits where all requests in flight fit like that, and in FP8 where they could not have run otherwise.
    """
    plain = _without_quantization(config)
    text = config.get("text_config")
    if isinstance(text, dict):
        plain["text_config"] = _without_quantization(text)
    shape = parse_config(plain, name=model)
    stated = row.get("moe_quant" if shape.num_experts else "gemm_quant") or row.get("precision")
    weights = _FORMATS.get(str(stated).lower())
    if weights is None:
        raise _RowError(f"weights in {stated} are not known")
    if weights == "nvfp4" and "mxfp4" in str(config.get("quantization_config")):  # such tables call both FP4
        weights = "mxfp4"
    wide = speed_shape_of(shape, weights=weights)
    if weights == "nvfp4" or not _fits(wide, engine, load):
        return speed_shape_of(shape, kv_cache_dtype="fp8", weights=weights)
    return wide


def _fits(shape: SpeedShape, engine: Engine, load: Load) -> bool:
    dense_bytes = shape.dense_parameters * BYTES_PER_PARAMETER[shape.dense_format] / engine.tensor_parallel_size
    experts = shape.moe_layers * shape.experts * shape.expert_parameters / engine.stage_cards
    weights_bytes = dense_bytes + experts * BYTES_PER_PARAMETER[shape.expert_format]
    context = load.prompt_tokens + load.output_tokens / 2
    kv_bytes = load.concurrency / engine.data_parallel_size * shape.kv_bytes(context, engine.tensor_parallel_size)
    usable = _USABLE_SHARE * gpu(engine.card.name).memory_bytes
    return (weights_bytes + kv_bytes) / engine.pipeline_parallel_size <= usable


def _without_quantization(config: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in config.items() if key not in ("quantization_config", "compression_config")}


def _seconds(row: Mapping[str, object], key: str) -> float | None:
    return None if row.get(key) is None else _number(row, key) / 1e3


def _number(row: Mapping[str, object], key: str) -> float:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise _RowError(f"no {key} stated")
    return float(value)


def _count(row: Mapping[str, object], key: str) -> int:
    """A parallel size, which some rows spell as text; 1 where there is none."""
    value = row.get(key)
    if value is None:
        return 1
    if not str(value).isdecimal() or int(str(value)) < 1:
        raise _RowError(f"{key} is {value!r}")
    return int(str(value))


def _runs(file: Path) -> list[Mapping[str, object]]:
    """A JSON list, or one object per line."""
    try:
        text = file.read_text()
        lines = text.splitlines() if file.suffix == ".jsonl" else [text]
        parsed = [json.loads(line) for line in lines if line]
        listed = parsed if file.suffix == ".jsonl" else parsed[0]
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from error
    if not isinstance(listed, list) or not all(isinstance(row, dict) for row in listed):
        raise ConfigError(f"{file} has to be a list of runs")
    return listed


def _described(file: Path) -> dict[str, object]:
    try:
        loaded = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{file} has to be an object of config.json by model")
    return loaded
