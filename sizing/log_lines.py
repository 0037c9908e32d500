"""The lines vLLM will log about its memory, in the words of its release, each with the range of what it predicts.

Where a line has figures that nobody can know before (seconds, a NUMA node), it says "...". Read from the sources of
0.8.5 to 0.32.0: v1/worker/gpu_worker.py, gpu_model_runner.py, cpu_worker.py, v1/core/kv_cache_utils.py; V0 from
worker/worker.py and executor/executor_base.py.
"""

from dataclasses import dataclass
from typing import Literal

from sizing.gpu import GIB
from sizing.memory import Term
from sizing.question import Answer, Question
from sizing.release import Release

Unit = Literal["GiB", "tokens", "requests"]


@dataclass(frozen=True)
class LogLine:
    """One line, the figure in it that is predicted, and the range that figure lies in nine times out of ten."""

    text: str
    value: float
    low: float
    high: float
    unit: Unit


def log_lines(question: Question, answer: Answer) -> tuple[LogLine, ...]:
    """What an engine with these settings logs, in its order; nothing where it will not start.

    GiB are those of one rank, and with pipeline stages of the stage the answer is about.
    """
    if not answer.fits:
        return ()
    if question.device.kind == "cpu":
        return (*_explicit_on_cpu(question, answer), *_capacity(question, answer))
    if question.release.engine == "V0":
        return (*_loading(question.release, answer), _profile_v0(question, answer), *_capacity_v0(question, answer))
    return (
        *_loading(question.release, answer),
        *_available(question.release, answer),
        *_capacity(question, answer),
        *_graph_pool(answer),
    )


def log_line(question: Question, answer: Answer) -> str:
    """The line with the KV cache's tokens, alone (v1/core/kv_cache_utils.py: update_kv_cache_capacity)."""
    if question.release.engine == "V0":
        return _capacity_v0(question, answer)[0].text
    return _capacity(question, answer)[0].text


def _loading(release: Release, answer: Answer) -> tuple[LogLine, ...]:
    term = _named(answer, "weights")
    if term is None:
        return ()
    for other in filter(None, (_named(answer, "drafter"), _named(answer, "LoRA adapters"))):  # counted with the model
        low, high = term.low_bytes + other.low_bytes, term.high_bytes + other.high_bytes
        term = Term("weights", term.bytes + other.bytes, term.why, low, high)
    memory = " memory" if release >= Release(11, 1) else ""
    text = f"Model loading took {_gib(release, term.bytes, decimals=4)} GiB{memory} and ... seconds"
    return (_banded(text, term),)


def _available(release: Release, answer: Answer) -> tuple[LogLine, ...]:
    kv_bytes, band = answer.kv_cache_bytes, answer.kv_cache_bytes_range
    value, low, high = kv_bytes / GIB, band.low / GIB, band.high / GIB
    if answer.settings.kv_cache_memory_bytes is not None:
        unit = " GiB" if release >= Release(14) else "GiB"
        text = f"... reserved {_gib(release, kv_bytes)}{unit} memory for KV Cache as specified by kv_cache_memory_bytes"
        return (LogLine(text + " config ...", value, low, high, "GiB"),)
    lines = []
    graphs = _named(answer, "CUDA graphs")
    # The second model runner, the default since 0.29, estimates without saying so.
    if graphs is not None and graphs.bytes and release < Release(29):
        lines.append(_banded(f"Estimated CUDA graph memory: {graphs.bytes / GIB:.2f} GiB total", graphs))
    if release >= Release(9, 1):
        lines.append(
            LogLine(f"Available KV cache memory: {_gib(release, kv_bytes)} GiB", value, low, high, "GiB"),
        )
    return tuple(lines)


def _graph_pool(answer: Answer) -> tuple[LogLine, ...]:
    """Logged after the capture, beside what it really took."""
    graphs = _named(answer, "CUDA graphs")
    if graphs is None or not graphs.bytes or answer.settings.kv_cache_memory_bytes is not None:
        return ()
    text = f"CUDA graph pool memory: ... GiB (actual), {round(graphs.bytes / GIB, 2)} GiB (estimated), ..."
    return (_banded(text, graphs),)


def _capacity(question: Question, answer: Answer) -> tuple[LogLine, ...]:
    release = question.release
    device = "CPU" if question.device.kind == "cpu" and release >= Release(30) else "GPU"
    size = f"{device} KV cache size: {answer.kv_cache_tokens:,} tokens"
    concurrency = (
        f"Maximum concurrency for {answer.settings.max_model_len:,} tokens per request: {answer.max_concurrency:.2f}x"
    )
    if release >= Release(28):
        return (_tokens(f"{size}, {concurrency}", answer),)
    return _tokens(size, answer), _requests(concurrency, answer)


def _explicit_on_cpu(question: Question, answer: Answer) -> tuple[LogLine, ...]:
    if question.release < Release(20):
        return ()
    release, kv_bytes = question.release, answer.kv_cache_bytes
    of = f"{_gib(release, kv_bytes)}/{_gib(release, question.device.memory_bytes)}"
    exact = kv_bytes / GIB
    return (LogLine(f"Explicitly set ({of}) GiB for KV cache on node ...", exact, exact, exact, "GiB"),)


def _profile_v0(question: Question, answer: Answer) -> LogLine:
    """The last line of three that V0 logs of its profile run."""
    takes = {name: term.bytes / GIB if term else 0.0 for name, term in _v0_terms(answer).items()}
    kv_bytes, band = answer.kv_cache_bytes, answer.kv_cache_bytes_range
    text = (
        f"model weights take {takes['weights']:.2f}GiB; non_torch_memory takes {takes['non-torch']:.2f}GiB; "
        f"PyTorch activation peak memory takes {takes['activations']:.2f}GiB; "
        f"the rest of the memory reserved for KV Cache is {kv_bytes / GIB:.2f}GiB."
    )
    return LogLine(text, kv_bytes / GIB, band.low / GIB, band.high / GIB, "GiB")


def _v0_terms(answer: Answer) -> dict[str, Term | None]:
    return {name: _named(answer, name) for name in ("weights", "non-torch", "activations")}


def _capacity_v0(question: Question, answer: Answer) -> tuple[LogLine, ...]:
    concurrency = (
        f"Maximum concurrency for {answer.settings.max_model_len} tokens per request: {answer.max_concurrency:.2f}x"
    )
    blocks = f"# {question.device.kind} blocks: {answer.num_blocks}, # CPU blocks: ..."
    return _tokens(blocks, answer), _requests(concurrency, answer)


def _tokens(text: str, answer: Answer) -> LogLine:
    band = answer.kv_cache_tokens_range
    return LogLine(text, answer.kv_cache_tokens, band.low, band.high, "tokens")


def _requests(text: str, answer: Answer) -> LogLine:
    low, high = concurrency_range(answer)
    return LogLine(text, round(answer.max_concurrency, 2), round(low, 2), round(high, 2), "requests")


def concurrency_range(answer: Answer) -> tuple[float, float]:
    """Requests of `max_model_len` at both ends of the range of the KV cache's tokens."""
    if not answer.kv_cache_tokens:
        return 0.0, 0.0
    each = answer.max_concurrency / answer.kv_cache_tokens
    band = answer.kv_cache_tokens_range
    return band.low * each, band.high * each


def _named(answer: Answer, name: str) -> Term | None:
    return next((term for term in answer.terms if term.name == name), None)


def _banded(text: str, term: Term) -> LogLine:
    return LogLine(text, term.bytes / GIB, term.low_bytes / GIB, term.high_bytes / GIB, "GiB")


def _gib(release: Release, num_bytes: int, *, decimals: int = 2) -> str:
    """Since 0.14 rounded to two places, with no zeros kept (utils/mem_utils.py: format_gib)."""
    if release >= Release(14):
        return f"{round(num_bytes / GIB, 2)}"
    return f"{num_bytes / GIB:.{decimals}f}"
