"""An answer as people and programs read it: a table of every term, and a dictionary with stable keys."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sizing.gpu import GIB
from sizing.plan import Answer, Question

SCHEMA_VERSION = 1


def log_line(question: Question, answer: Answer) -> str:
    """The line vLLM 0.32 logs about its KV cache (v1/core/kv_cache_utils.py: update_kv_cache_capacity)."""
    device = "CPU" if question.device.kind == "cpu" else "GPU"
    return (
        f"{device} KV cache size: {answer.kv_cache_tokens:,} tokens, "
        f"Maximum concurrency for {answer.settings.max_model_len:,} tokens per request: {answer.max_concurrency:.2f}x"
    )


def as_json(question: Question, answer: Answer) -> dict[str, object]:
    """The answer for programs. Keys are only ever added; `schema_version` changes when one changes meaning.

    Units are in the names (`_bytes`, `_tokens`). `device` and `terms` are per rank, as are `weights_bytes`,
    `kv_bytes_per_token`, `kv_cache_bytes` and `claimed_bytes`; `kv_cache_tokens`, `max_concurrency` and
    `requests_fit` are the engine's. `reason` and `way_out` are null when it fits; in `settings`, null means that
    the flag is not to be given. `log_line` is what vLLM will print, null when it will not start.
    """
    model, device, settings = question.model, question.device, answer.settings
    return {
        "schema_version": SCHEMA_VERSION,
        "fits": answer.fits,
        "reason": answer.reason,
        "way_out": answer.way_out,
        "note": answer.note,
        "model": {
            "name": model.name,
            "architecture": model.architecture,
            "dtype": model.dtype,
            "quantization": model.quantization,
            "num_parameters": model.num_parameters,
            "weights_bytes": model.weights_bytes,
            "weights_source": model.weights_source,
            "max_model_len": model.max_model_len,
        },
        "device": {
            "kind": device.kind,
            "name": device.name,
            "count": question.count,
            "memory_bytes": device.memory_bytes,
            "free_bytes": device.free_bytes,
            "unified": device.unified,
            "link": device.link,
        },
        "limit_bytes": answer.limit_bytes,
        "terms": [{"name": term.name, "bytes": term.bytes, "why": term.why} for term in answer.terms],
        "weights_bytes": answer.weights_bytes,
        "kv_bytes_per_token": answer.kv_bytes_per_token,
        "kv_cache_bytes": answer.kv_cache_bytes,
        "kv_cache_tokens": answer.kv_cache_tokens,
        "num_blocks": answer.num_blocks,
        "block_size": answer.block_size,
        "max_concurrency": answer.max_concurrency,
        "requests_fit": answer.requests_fit,
        "claimed_bytes": answer.claimed_bytes,
        "settings": {
            "max_model_len": settings.max_model_len,
            "max_num_seqs": settings.max_num_seqs,
            "max_num_batched_tokens": settings.max_num_batched_tokens,
            "gpu_memory_utilization": settings.gpu_memory_utilization,
            "kv_cache_memory_bytes": settings.kv_cache_memory_bytes,
            "tensor_parallel_size": settings.tensor_parallel_size,
            "kv_cache_dtype": settings.kv_cache_dtype,
        },
        "log_line": log_line(question, answer) if answer.fits else None,
    }


def render(question: Question, answer: Answer) -> RenderableType:
    """The answer for people: the sum, the line vLLM will log, and yes or no with the reason or the requests.

    Print it with `soft_wrap=True`, which keeps vLLM's line whole for eyes and for grep.
    """
    parts: list[RenderableType] = [_sum(question, answer)]
    if answer.fits:
        parts.append(Text(log_line(question, answer)))
    parts.append(_verdict(answer))
    if answer.note:
        parts.append(Text(f"Note: {answer.note}"))
    if answer.way_out:
        parts.append(Text(f"Way out: {answer.way_out}"))
    return Group(*parts)


def _sum(question: Question, answer: Answer) -> Table:
    device, ranks = question.device, answer.settings.tensor_parallel_size
    per_rank = f", on each of {ranks}" if ranks > 1 else ""
    table = Table(title=f"{question.model.name} on {device.name}{per_rank}", title_justify="left", show_footer=True)
    table.add_column("GiB", justify="right", footer=_gib(answer.limit_bytes))
    table.add_column("what", footer="limit")
    table.add_column("why", footer=_limit_reason(question, answer), overflow="fold")
    for term in answer.terms:
        table.add_row(_gib(term.bytes), term.name, term.why)
    dtype = answer.settings.kv_cache_dtype
    kv_type = dtype if dtype != "auto" else "the served type"
    table.add_row(
        _gib(answer.kv_cache_bytes),
        "KV cache",
        f"{answer.num_blocks:,} blocks of {answer.block_size} tokens, {answer.kv_bytes_per_token:,} bytes per token"
        f" in {kv_type}",
    )
    return table


def _limit_reason(question: Question, answer: Answer) -> str:
    device, utilization = question.device, answer.settings.gpu_memory_utilization
    if utilization is not None:
        return f"gpu_memory_utilization {utilization:g} of {_gib(device.memory_bytes)} GiB"
    return f"free of {_gib(device.memory_bytes)} GiB"


def _verdict(answer: Answer) -> Text:
    if not answer.fits:
        return Text(f"No: {answer.reason}", style="bold red")
    requests = f"{answer.requests_fit:,} request" + ("s" if answer.requests_fit != 1 else "")
    return Text(
        f"Yes: {requests} of {answer.settings.max_model_len:,} tokens at once, "
        f"taking {_gib(answer.claimed_bytes)} GiB" + (" per card" if answer.settings.tensor_parallel_size > 1 else ""),
        style="bold green",
    )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f}"
