"""What start-up logs, and Berth's own engines, add to the user's calibration table."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

from serving.calibration_table import table_path
from serving.environment import Environment
from sizing.calibration import Observation, load_calibration, save_calibration
from sizing.errors import QuestionError, SizingError
from sizing.gpu import GIB, Device
from sizing.model import Dtype, ModelShape
from sizing.observing import observations
from sizing.plan import answer
from sizing.question import Question
from sizing.release import parse_release
from sizing.startup_log import StartupRecord, parse_lines

if TYPE_CHECKING:  # sizing alone needs no engines
    from serving.placement import Placement

_log = logging.getLogger("berth.serving")
_DTYPES: dict[str, Dtype] = {
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
    "half": "float16",
    "float32": "float32",
    "fp32": "float32",
}


@dataclass(frozen=True)
class Start:
    """One engine start with what it was, so that it can be predicted."""

    record: StartupRecord
    model: ModelShape
    device: Device


def observed(start: Start, as_of: date) -> tuple[Observation, ...]:
    """What a start that was read from a log says about each term.

    Raises:
        QuestionError: a start that sizing cannot put itself in the place of.
        SizingError: a model or settings that are not sized.
    """
    record, question = start.record, question_of(start)
    terms = _predicted_terms(question)
    if record.gpu_memory_utilization is None:
        del terms["KV cache"]  # how much it had to share out is not known
    return observations(record, terms, model=question.model.name, device=question.device, as_of=as_of)


def question_of(start: Start) -> Question:
    """The question whose answer the start is compared with.

    Raises:
        QuestionError: the start held more than the model, or held it in another way than sizing knows.
    """
    record, model = start.record, start.model
    if record.speculative or record.lora:
        raise QuestionError(f"{model.name}: started with a drafter or adapters, which the log does not tell apart")
    if (record.pp or 1) > 1 or (record.ep and (record.dp or 1) > 1):
        raise QuestionError(f"{model.name}: started in pipeline stages or with data parallel; not compared yet")
    if record.quant is not None and model.quantization is None and start.device.kind != "cpu":
        raise QuestionError(
            f"{model.name}: {record.quant} in the log, but not in the model; --model names what was run"
        )
    dtype = _DTYPES.get(record.dtype or "")
    device, total = start.device, record.gpu_total_gib
    if total is not None and device.kind == "cuda":
        device = replace(device, memory_bytes=round(total * GIB), free_bytes=round(total * GIB))
    size = record.tp or 1
    return Question(
        model=model if dtype is None else model.served_as(dtype),
        device=device,
        count=size,
        tensor_parallel_size=size,
        max_model_len=record.max_model_len,
        max_num_seqs=record.max_num_seqs,
        max_num_batched_tokens=record.max_num_batched_tokens,
        gpu_memory_utilization=record.gpu_memory_utilization,
        kv_cache_memory_bytes=record.kv_cache_memory_bytes,
        kv_cache_dtype=record.kv_dtype or "auto",
        enforce_eager=bool(record.enforce_eager),
        enable_expert_parallel=bool(record.ep),
        release=parse_release(record.vllm, record.engine),
    )


def _predicted_terms(question: Question) -> dict[str, int]:
    """Every term by its name and what they leave for the KV cache, without any calibration."""
    found = answer(replace(question, corrections=None))
    terms = {term.name: term.bytes for term in found.terms}
    return {**terms, "KV cache": found.limit_bytes - sum(terms.values())}


def learn(placements: "Sequence[Placement]", environment: Environment) -> None:
    """Add what our own engines logged on their way up. What cannot be read or written is a warning, never an error."""
    fresh: list[Observation] = []
    for placement in placements:
        try:
            fresh += _own_observations(placement)
        except (SizingError, OSError) as error:
            _log.warning("%s: its start is not calibrated by: %s", placement.spec.name, error)
    if not fresh:
        return
    path = table_path(environment)
    try:
        known = load_calibration(path)
        save_calibration(path, known.merged(fresh))
    except (SizingError, OSError) as error:
        _log.warning("calibration is not kept: %s", error)


def _own_observations(placement: "Placement") -> tuple[Observation, ...]:
    """The last start in the engine's log that came up; the log is appended to when an engine is restarted.

    What is loaded beside the model is in the log's sums and cannot be told apart there.
    """
    drafter = placement.question.speculative
    if placement.question.adapters is not None or (drafter is not None and drafter.model is not None):
        return ()
    with placement.spec.log_path.open(encoding="utf-8", errors="replace") as log:
        ready = [record for record in parse_lines(log) if record.outcome == "ok"]
    if not ready:
        return ()
    settings = placement.answer.settings
    question = replace(
        placement.question,
        tensor_parallel_size=settings.tensor_parallel_size,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        kv_cache_memory_bytes=settings.kv_cache_memory_bytes,
    )
    terms, today = _predicted_terms(question), datetime.now(UTC).date()
    return observations(ready[-1], terms, model=question.model.name, device=question.device, as_of=today)
