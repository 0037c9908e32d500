"""A run's result for people (a table) and for programs (summary.json).

Schema `berth.bench/1` of summary.json. Times are seconds, rates per second; null is undefined, never 0; "inf" is a
percentile that falls on a failed request. Fields are only added within a version of the schema.

schema, started_at (UTC), model, run_id, is_interrupted, given_up
versions    berth, python, aiohttp
machine     of the load generator: system, cpu, cores
config      every option of the run but the key
argv        the command line that repeats it, without the key
summary     measure.Summary, field by field
server      server.ServerFigures, or null when there is no /metrics
client      loop_lag: {p50_s, p99_s, max_s}
"""

import importlib.metadata
import math
import os
import platform
from dataclasses import asdict, fields
from pathlib import Path

import orjson
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.config import RunConfig
from benchmarks.distribution import Distribution
from benchmarks.errors import OutputError
from benchmarks.run import RECORDS_FILE, RunResult
from benchmarks.slo import Slo

SCHEMA = "berth.bench/1"
SUMMARY_FILE = "summary.json"
_NONE = "-"


# For programs


def as_json(result: RunResult) -> dict[str, object]:
    """The result as plain values in the schema above; holds no key."""
    return {
        "schema": SCHEMA,
        "started_at": result.started_at.isoformat(timespec="seconds"),
        "model": result.model,
        "run_id": result.run_id,
        "is_interrupted": result.is_interrupted,
        "given_up": result.given_up,
        "versions": _versions(),
        "machine": _machine(),
        "config": _config(result.config),
        "argv": argv(result.config, result.model),
        "summary": _plain(asdict(result.summary)),
        "server": _plain(asdict(result.server)) if result.server else None,
        "client": {"loop_lag": _plain(asdict(result.loop_lag))},
    }


def dump(result: RunResult) -> str:
    """`as_json` as text."""
    return orjson.dumps(as_json(result), option=orjson.OPT_INDENT_2).decode()


def save(result: RunResult) -> Path:
    """Write summary.json beside the records; OutputError when that cannot be."""
    path = result.directory / SUMMARY_FILE
    try:
        path.write_text(dump(result) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; the records are in {RECORDS_FILE}") from None
    return path


def argv(config: RunConfig, model: str) -> list[str]:
    """The command line that does the same run against `model`, with the key left out."""
    words = ["berth", "bench", "run", config.base_url, "--model", model]
    for name in ("rate", "concurrency", "requests", "prompt_tokens", "output_tokens", "shared_prefix_tokens", "seed"):
        value = getattr(config, name)
        words += [] if value is None else [f"--{name.replace('_', '-')}", f"{value}"]
    words += ["--timeout", f"{config.timeout_s:g}", "--warmup", str(config.warmup)]
    words += ["--arrivals", config.arrivals] if config.rate is not None else []
    words += ["--ignore-eos"] if config.ignore_eos else []
    return words + (["--slo", _spelt(config.slo)] if config.slo.is_set else [])


def _config(config: RunConfig) -> dict[str, object]:
    options = {item.name: getattr(config, item.name) for item in fields(config) if item.name != "api_key"}
    return options | {"slo": asdict(config.slo), "out_dir": str(config.out_dir) if config.out_dir else None}


def _spelt(slo: Slo) -> str:
    bounds = {"ttft": slo.ttft_s, "tpot": slo.tpot_s, "e2e": slo.e2e_s}
    return ",".join(f"{name}={bound:g}" for name, bound in bounds.items() if bound is not None)


def _plain(value: object) -> object:
    """Infinity has no spelling in JSON."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return "inf" if isinstance(value, float) and math.isinf(value) else value


def _versions() -> dict[str, str]:
    names = ("berth", "aiohttp")
    return {name: importlib.metadata.version(name) for name in names} | {"python": platform.python_version()}


def _machine() -> dict[str, object]:
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    return {"system": platform.platform(), "cpu": cpu, "cores": len(os.sched_getaffinity(0))}


# For people


def render(result: RunResult) -> RenderableType:
    """What the run showed, to be printed by rich."""
    return Group(Text(_headline(result), style="bold"), _latencies(result), _facts(result), *_notes(result))


def _headline(result: RunResult) -> str:
    config, summary = result.config, result.summary
    load = f"{config.arrivals} arrivals at {config.rate:g}/s" if config.rate else f"concurrency {config.concurrency}"
    state = "  INTERRUPTED" if result.is_interrupted else ""
    return f"{result.model} at {config.base_url}: {load}, {summary.ok} of {summary.requests} requests ok{state}"


def _latencies(result: RunResult) -> Table:
    summary = result.summary
    table = Table("ms", title_justify="left")
    for heading in ("mean", "p50", "p90", "p95", "p99", "max"):
        table.add_column(heading, justify="right")
    rows: list[tuple[str, Distribution]] = [("TTFT from sending", summary.ttft.ok)]
    if summary.is_open_loop:
        rows.append(("TTFT from arrival", summary.ttft_co.ok))
    if summary.failed:
        lead = summary.ttft_co if summary.is_open_loop else summary.ttft
        rows.append(("  failures as never", lead.all))
    rows += [("TPOT", summary.tpot.ok), ("E2E from sending", summary.e2e.ok)]
    if summary.is_open_loop:
        rows.append(("E2E from arrival", summary.e2e_co.ok))
    rows += [("chunk gap", summary.chunk_gap), ("longest stall", summary.max_gap.ok)]
    for name, seen in rows:
        table.add_row(name, *(_ms(value) for value in (seen.mean, seen.p50, seen.p90, seen.p95, seen.p99, seen.max)))
    return table


def _facts(result: RunResult) -> Table:
    summary, rates, tokens = result.summary, result.summary.rates, result.summary.tokens
    table = Table.grid(padding=(0, 2))
    table.add_row(
        "throughput",
        f"{_num(rates.requests)} requests/s, {_num(rates.output_tokens)} output tok/s, "
        f"{_num(rates.total_tokens)} total tok/s over {summary.duration_s:.1f} s",
    )
    if summary.is_open_loop:
        table.add_row(
            "offered",
            f"{_num(rates.offered)} requests/s, sent {_num(rates.sent)}/s, send lag p50 "
            f"{_ms(summary.send_lag.p50)} ms, max {_ms(summary.send_lag.max)} ms",
        )
    if rates.goodput is not None:
        kept = ", ".join(f"{name} {share:.1%}" for name, share in summary.slo_attainment.items())
        table.add_row("goodput", f"{_num(rates.goodput)} requests/s within {_spelt(result.config.slo)} (kept: {kept})")
    table.add_row("prompt tokens", f"{_num(tokens.prompt)} a request, {_num(tokens.prompt_asked)} asked")
    table.add_row(
        "output tokens",
        f"{_num(tokens.output)} a request, {_num(tokens.output_asked)} asked; {_num(tokens.per_chunk)} a chunk",
    )
    for name, fact in _server_facts(result):
        table.add_row(name, fact)
    table.add_row(
        "load generator", f"event loop late by p99 {_ms(result.loop_lag.p99_s)} ms, max {_ms(result.loop_lag.max_s)} ms"
    )
    table.add_row("written to", str(result.directory))
    return table


def _server_facts(result: RunResult) -> list[tuple[str, str]]:
    server = result.server
    if server is None:
        return [("engine", "not exported (no engine figures under /metrics)")]
    return [
        (
            "KV cache",
            f"peak {_percent(server.kv_use_peak)}, mean {_percent(server.kv_use_mean)} in use; "
            f"{_count(server.preemptions)} preemptions",
        ),
        ("prefix cache", f"{_percent(server.prefix_hit_ratio)} of {_count(server.prefix_queries_tokens)} tokens found"),
        ("queue", f"peak {_count(server.running_peak)} running, {_count(server.waiting_peak)} waiting"),
    ]


def _notes(result: RunResult) -> list[Text]:
    summary = result.summary
    notes = [
        f"{failure.count} x {failure.outcome}{f' {failure.status}' if failure.status else ''}: {failure.error}"
        for failure in summary.failures[:5]
    ]
    if len(summary.failures) > 5:
        notes.append(f"and {len(summary.failures) - 5} more kinds of failure: see {RECORDS_FILE}")
    if result.given_up:
        notes.append(f"{result.given_up} requests were in flight at the interruption and are not counted")
    if not summary.is_open_loop:
        notes.append("closed loop: requests wait for a stalled server, so latencies under-report stalls; use --rate")
    if summary.ok < 299:  # ln(0.05) / ln(0.99): fewer cannot show with 95 % confidence that 99 % keep a bound
        notes.append(
            "fewer than 299 answers: a p99 of so few cannot carry a claim; p90 and up need 10, 20, 100 answers"
        )
    if summary.tokens.without_usage:
        notes.append(f"{summary.tokens.without_usage} answers came without usage: their TPOT and tokens are unknown")
    if (summary.tokens.per_chunk or 0) > 1.05:
        notes.append("more than one token a chunk: the chunk gap is not a time per token")
    return [Text(f"note: {note}", style="yellow") for note in notes]


def _ms(value_s: float | None) -> str:
    if value_s is None:
        return _NONE
    return "never" if math.isinf(value_s) else f"{value_s * 1000:.1f}"


def _num(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f}"


def _count(value: float | None) -> str:
    return "not exported" if value is None else f"{value:.0f}"


def _percent(ratio: float | None) -> str:
    return "not exported" if ratio is None else f"{ratio:.1%}"
