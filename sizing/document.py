"""Answers, comparisons and matrices for programs: dictionaries whose keys sizing/schema.json documents.

Keys are only ever added; `schema_version` changes when one changes meaning. Units are in the names (`_bytes`,
`_tokens`, `_s`, `_usd`). A range is what a figure is nine times out of ten.
"""

from collections.abc import Sequence
from importlib.resources import files

from sizing.choice import cheapest
from sizing.compare import COLUMNS, Comparison, Money, Outlook, Row, Workload
from sizing.cost import BreakEven
from sizing.log_lines import log_line, log_lines
from sizing.matrix import Matrix
from sizing.question import Answer, EngineSettings, Question, Range
from sizing.speed import Estimate

SCHEMA_VERSION = 1

Document = dict[str, object]


def schema_text() -> str:
    """The JSON Schema (draft 2020-12) of everything this module makes, as it is shipped."""
    return files("sizing").joinpath("schema.json").read_text(encoding="utf-8")


def as_json(question: Question, answer: Answer, outlook: Outlook | None = None) -> Document:
    """One answer.

    `device` and `terms` are per rank, as are `weights_bytes`, `kv_bytes_per_token`, `kv_cache_bytes` and
    `claimed_bytes`, with pipeline stages those of `pipeline.stage`; `kv_cache_tokens`, `max_concurrency` and
    `requests_fit` are the engine's. `reason` and `way_out` are null when it fits; in `settings`, null means that the
    flag is not to be given. `log_line` and `log_lines` are what vLLM will print: null and none when it will not start.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "fits": answer.fits,
        "certain": answer.certain,
        "reason": answer.reason,
        "way_out": answer.way_out,
        "note": answer.note,
        "release": {"version": str(question.release), "known": question.release.known},
        "model": _model(question),
        "device": _device(question),
        "pipeline": {
            "size": answer.settings.pipeline_parallel_size,
            "stage": answer.stage,
            "devices": [device.name for device in question.stage_devices],
        },
        "limit_bytes": answer.limit_bytes,
        "terms": [
            {
                "name": term.name,
                "bytes": term.bytes,
                "low_bytes": term.low_bytes,
                "high_bytes": term.high_bytes,
                "why": term.why,
            }
            for term in answer.terms
        ],
        "weights_bytes": answer.weights_bytes,
        "kv_bytes_per_token": answer.kv_bytes_per_token,
        "kv_cache_bytes": answer.kv_cache_bytes,
        "kv_cache_bytes_range": _range(answer.kv_cache_bytes_range),
        "kv_cache_tokens": answer.kv_cache_tokens,
        "kv_cache_tokens_range": _range(answer.kv_cache_tokens_range),
        "num_blocks": answer.num_blocks,
        "block_size": answer.block_size,
        "max_concurrency": answer.max_concurrency,
        "requests_fit": answer.requests_fit,
        "claimed_bytes": answer.claimed_bytes,
        "needed_kv_bytes": answer.needed_kv_bytes,
        "longest_model_len": answer.longest_model_len,
        "settings": _settings(question, answer.settings),
        "log_line": log_line(question, answer) if answer.fits else None,
        "log_lines": [
            {"text": line.text, "value": line.value, "low": line.low, "high": line.high, "unit": line.unit}
            for line in log_lines(question, answer)
        ],
        "speed": None if outlook is None else _speed(outlook),
    }


def comparison_json(comparison: Comparison, matrices: Sequence[Matrix] = ()) -> Document:
    """Cards side by side; `best` names, by column, the rows (from 0) that are best in it."""
    api, choice = comparison.api, cheapest(comparison)
    return {
        "schema_version": SCHEMA_VERSION,
        "model": comparison.model.name,
        "workload": _workload(comparison.workload),
        "api_price": None if api is None else {"input_usd": api.input_usd, "output_usd": api.output_usd},
        "rows": [_row(row) for row in comparison.rows],
        "cheapest": None
        if choice is None
        else {
            "row": comparison.rows.index(choice.row),
            "engines": choice.engines,
            "usd_per_hour": choice.usd_per_hour,
        },
        "matrices": [matrix_json(matrix) for matrix in matrices],
        "best": {column: sorted(comparison.best(column)) for column in COLUMNS},
    }


def matrix_json(matrix: Matrix) -> Document:
    """Cells by row and column, in the order of their headings."""
    return {
        "title": matrix.title,
        "row_heading": matrix.row_heading,
        "column_heading": matrix.column_heading,
        "rows": list(matrix.rows),
        "columns": list(matrix.columns),
        "cells": [
            [
                {
                    "verdict": cell.verdict,
                    "max_model_len": cell.max_model_len,
                    "requests": cell.requests,
                    "requests_range": {"low": cell.low_requests, "high": cell.high_requests},
                    "said": cell.said,
                }
                for cell in row
            ]
            for row in matrix.cells
        ],
    }


def _model(question: Question) -> Document:
    model = question.model
    return {
        "name": model.name,
        "architecture": model.architecture,
        "dtype": model.dtype,
        "quantization": model.quantization,
        "num_parameters": model.num_parameters,
        "weights_bytes": model.weights_bytes,
        "weights_source": model.weights_source,
        "max_model_len": model.max_model_len,
    }


def _device(question: Question) -> Document:
    device = question.device
    return {
        "kind": device.kind,
        "name": device.name,
        "count": question.count,
        "memory_bytes": device.memory_bytes,
        "free_bytes": device.free_bytes,
        "unified": device.unified,
        "link": device.link,
    }


def _settings(question: Question, settings: EngineSettings) -> Document:
    drafter, adapters = question.speculative, question.adapters
    return {
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "kv_cache_memory_bytes": settings.kv_cache_memory_bytes,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "pipeline_parallel_size": settings.pipeline_parallel_size,
        "data_parallel_size": settings.data_parallel_size,
        "enable_expert_parallel": settings.enable_expert_parallel,
        "kv_cache_dtype": settings.kv_cache_dtype,
        "adapters": None
        if adapters is None
        else {
            "max_loras": adapters.max_loras,
            "max_lora_rank": adapters.max_lora_rank,
            "fully_sharded_loras": adapters.fully_sharded_loras,
            "lora_dtype": adapters.lora_dtype,
            "lora_target_modules": list(adapters.lora_target_modules),
        },
        "drafter": None
        if drafter is None
        else {
            "method": drafter.method,
            "num_speculative_tokens": drafter.num_speculative_tokens,
            "model": drafter.name or None,
        },
    }


def _range(found: Range) -> Document:
    return {"low": found.low, "high": found.high}


def _workload(workload: Workload) -> Document:
    bound = workload.bound
    return {
        "prompt_tokens": workload.prompt_tokens,
        "output_tokens": workload.output_tokens,
        "concurrency": workload.concurrency,
        "users": workload.users,
        "think_time_s": workload.think_time_s,
        "slo": None
        if bound is None
        else {"ttft_s": bound.ttft_s, "tpot_s": bound.tpot_s, "percentile": workload.percentile},
    }


def _row(row: Row) -> Document:
    return {
        "option": row.option.label,
        "device": row.option.device.name,
        "count": row.option.count,
        "verdict": row.verdict,
        "why_not": row.why_not,
        "answer": None if row.answer is None else as_json(row.question, row.answer),
        "speed": None if row.outlook is None else _speed(row.outlook),
        "speed_refused": row.outlook_refused,
        "engines_for_users": row.engines_for_users,
        "money": None if row.money is None else _money(row.money),
    }


def _speed(outlook: Outlook) -> Document:
    users = outlook.users
    return {
        "ttft_s": _estimate(outlook.ttft_s),
        "tpot_s": _estimate(outlook.tpot_s),
        "output_tokens_s": _estimate(outlook.output_tokens_s),
        "users": None
        if users is None
        else {"users": users.users, "concurrency": users.concurrency, "limiter": users.limiter},
        "limiter": outlook.limiter,
        "note": outlook.note,
        "outside_fit": list(outlook.outside),
        "curve": [
            {
                "concurrency": point.concurrency,
                "ttft_s": _estimate(point.ttft_s),
                "tpot_s": _estimate(point.tpot_s),
                "output_tokens_s": _estimate(point.output_tokens_s),
            }
            for point in outlook.curve
        ],
    }


def _estimate(estimate: Estimate | None) -> Document | None:
    if estimate is None:
        return None
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _money(money: Money) -> Document:
    price, tokens = money.price, money.tokens
    return {
        "usd_per_hour": money.cost.fixed_usd,
        "price": {
            "usd_per_card_hour": price.usd_per_hour,
            "as_of": price.as_of.isoformat(),
            "kind": price.kind,
            "source": price.source,
        },
        "usd_per_million": None
        if tokens is None
        else {"input": tokens.input_usd, "output": tokens.output_usd, "blended": tokens.blended_usd},
        "break_even": None if money.break_even is None else _break_even(money.break_even),
    }


def _break_even(even: BreakEven) -> Document:
    return {
        "utilization": even.utilization,
        "requests_per_day": even.requests_per_day,
        "tokens_per_day": even.tokens_per_day,
        "api_usd_per_million": even.api_usd_per_million,
    }
