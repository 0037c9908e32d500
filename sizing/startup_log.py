"""vLLM's start-up logs, any version's, as records: what each start was asked, what it measured, how it ended."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args, get_type_hints

from sizing.errors import CalibrationError
from sizing.startup_lines import ENGINE, FINDINGS, SERVER, arguments, cleaned, engine_settings, verdict

LOOKED_FOR = '"Model loading took", "Available KV cache memory", "KV cache size", "Maximum concurrency"'


@dataclass(frozen=True)
class StartupRecord:
    """One engine start. None is what its log does not say.

    Sizes are GiB (2**30), whatever unit vLLM prints. Of several ranks the worst counts: the most for what is taken,
    the least for what is left. The fields are also the keys of rows in JSON (`records_from_json`).
    """

    model: str | None = None
    """As vLLM was given it: a folder or a Hub id."""
    vllm: str | None = None
    engine: Literal["V0", "V1"] | None = None
    device: str | None = None
    """vLLM's kind of device: cuda, cpu, ..."""
    gpu: str | None = None
    """The card, where some line happens to name it; vLLM itself never does."""
    gpu_total_gib: float | None = None
    tp: int | None = None
    pp: int | None = None
    dp: int | None = None
    ep: bool | None = None
    dtype: str | None = None
    quant: str | None = None
    kv_dtype: str | None = None
    gmu: float | None = None
    """gpu_memory_utilization, where stated."""
    kv_cache_memory_bytes: int | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    enforce_eager: bool | None = None
    lora: bool | None = None
    speculative: bool | None = None
    block_size: int | None = None
    blocks: int | None = None
    load_gib: float | None = None
    """What the weights took, a drafter's and an adapter's included."""
    ckpt_gib: float | None = None
    """The checkpoint's files in all."""
    consumed_gib: float | None = None
    """Weights and non-torch memory together, as vLLM >= 0.27 says it."""
    act_gib: float | None = None
    """The activation peak; where `consumed_gib` is given, the CUDA-graph estimate is in it."""
    nontorch_gib: float | None = None
    peak_torch_gib: float | None = None
    """Weights and activation peak together, as vLLM 0.6 says it."""
    cg_est_gib: float | None = None
    cg_gib: float | None = None
    cg_applied: bool | None = None
    """The estimate was taken from the budget, or not, where a line says which."""
    kv_gib: float | None = None
    kv_tokens: int | None = None
    conc: float | None = None
    est_max_len: int | None = None
    kv_needed_gib: float | None = None
    outcome: str | None = None
    """ok, refused: ..., OOM: ...; None where the log ends before."""
    args_stated: bool | None = None
    """The log has the line of arguments, so that what is not in it was left to its default."""

    @property
    def release(self) -> tuple[int, int] | None:
        """Major and minor version; None where not stated."""
        found = re.search(r"\b(\d+)\.(\d+)", self.vllm or "")
        return (int(found[1]), int(found[2])) if found else None

    @property
    def gpu_memory_utilization(self) -> float | None:
        """As stated, else vLLM's default where the log shows that none was given (vllm/config/cache.py)."""
        if self.gmu is not None or not self.args_stated or self.release is None:
            return self.gmu
        return 0.92 if self.release >= (0, 20) else 0.9


Value = str | int | float | bool
_LEAST = frozenset({"gpu_total_gib", "kv_gib", "kv_tokens", "blocks", "conc", "est_max_len"})
_MOST = frozenset({"load_gib", "consumed_gib", "act_gib", "nontorch_gib", "peak_torch_gib", "cg_est_gib", "cg_gib"})
_TOLD = (*_MOST, "kv_gib", "kv_tokens", "blocks")
_ROWS = re.compile(r'\[\s*\{|\{\s*"(?!log")')  # Docker's logs, too, have an object a line
_KINDS: dict[str, type] = {
    name: kind if (kind := get_args(hint)[0]) in (bool, int, float) else str
    for name, hint in get_type_hints(StartupRecord).items()
}


def parse_startup_log(text: str) -> tuple[StartupRecord, ...]:
    """Every engine start that a log tells of, in its order; none where it holds nothing that vLLM measured."""
    return parse_lines(text.splitlines())


def parse_lines(lines: Iterable[str]) -> tuple[StartupRecord, ...]:
    """The same from lines as they come, so that a log of days need not be held in memory."""
    return tuple(start.record() for start in _starts(cleaned(lines)) if start.tells)


@dataclass(slots=True)
class _Start:
    """What the lines of one start have said so far."""

    engines: set[str] = field(default_factory=set)
    headings: set[str] = field(default_factory=set)
    args: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    found: dict[str, dict[int, list[str]]] = field(default_factory=dict)
    """Readings by field and by the pattern that gave them."""
    outcome: str | None = None
    serving: bool = False
    """Nothing more about the start will come."""

    @property
    def tells(self) -> bool:
        return any(name in self.found for name in _TOLD) or self.outcome not in (None, "ok")

    def read(self, line: str) -> None:
        """A line that is neither a heading nor the engine's settings."""
        if self.serving:
            return
        for rank, pattern in enumerate(FINDINGS):
            if match := pattern.search(line):
                for name, text in match.groupdict().items():
                    self.found.setdefault(name, {}).setdefault(rank, []).append(text)
        self.outcome = self.outcome or verdict(line)
        self.serving = "Application startup complete" in line

    def record(self) -> StartupRecord:
        values: dict[str, Value] = {}
        for name in _KINDS:
            stated = [self.args[name]] if name in self.args else []
            settled = [self.settings[name]] if name in self.settings else []
            by_pattern = self.found.get(name, {})
            seen = by_pattern[min(by_pattern)] if by_pattern else []
            # arguments are exact where a line rounds; otherwise what was settled counts, not what was asked
            readings = (stated or seen) if name == "gmu" else (seen or settled or stated)
            if readings:
                values[name] = _worst(name, readings)
        values |= {"outcome": self.outcome} if self.outcome else {}
        values |= {"args_stated": True} if self.args else {}
        return _plain(_made(values))


def _starts(lines: Iterable[str]) -> Iterator[_Start]:
    """Deal the lines to starts. A heading seen before, or an engine's settings again, begin the next one."""
    start = _Start()
    for line in lines:
        if heading := SERVER.search(line):
            kind = heading.lastgroup or ""
            if start.engines or kind in start.headings:
                yield start
                start = _Start()
            start.headings.add(kind)
            if kind in ("args", "namespace"):
                start.args = arguments(heading[kind])
            else:
                start.settings.setdefault("vllm", heading[kind])
        elif engine := ENGINE.search(line):
            # each engine core of a data-parallel start says it once
            core = re.search(r"EngineCore\w*", line[: engine.start()])
            name = core[0] if core else ""
            if name in start.engines:
                yield start
                start = _Start()
            start.engines.add(name)
            start.settings |= {"vllm": engine["vllm"], "engine": engine["engine"] or "V0"}
            start.settings |= engine_settings(engine["config"])
        else:
            start.read(line)
    yield start


def _worst(name: str, readings: list[str]) -> Value:
    """Of what the ranks say: the least that is left, the most that is taken; of settings the first."""
    values = [_value(name, text) for text in readings]
    numbers = [value for value in values if isinstance(value, int | float)]
    if name in _LEAST:
        return min(numbers)
    return max(numbers) if name in _MOST else values[0]


def _value(name: str, text: str) -> Value:
    kind = _KINDS[name]
    if kind is bool:
        return text in ("True", "enabled")
    if kind is str:
        return text
    number = float(text.replace(",", ""))
    return int(number) if kind is int else number


def _plain(record: StartupRecord) -> StartupRecord:
    """What several wordings say differently, said once."""
    changes: dict[str, Value] = {}
    if record.device is not None:
        device = record.device.lower()
        changes["device"] = "cuda" if device == "gpu" else device
    if record.gpu is not None:
        changes["gpu"] = record.gpu.replace("_", " ")
    if record.act_gib is None and record.peak_torch_gib is not None and record.load_gib is not None:
        changes["act_gib"] = round(record.peak_torch_gib - record.load_gib, 4)
    return _made({**_set(record), **changes})


def _set(record: StartupRecord) -> dict[str, Value]:
    return {name: value for name in _KINDS if (value := getattr(record, name)) is not None}


def _made(values: dict[str, Value]) -> StartupRecord:
    """Its values are of the kinds in _KINDS by now, which the type checker cannot see."""
    return StartupRecord(**values)  # type: ignore[arg-type]


def read_records(file: Path) -> tuple[StartupRecord, ...]:
    """The starts in a log file, or the rows of a JSON or JSONL file in the format of `records_from_json`.

    Raises:
        CalibrationError: it cannot be read, or holds no start.
    """
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            head = stream.read(4096).lstrip()
            stream.seek(0)
            records = records_from_json(file) if _ROWS.match(head) else parse_lines(stream)
    except OSError as error:
        raise CalibrationError(f"{file}: cannot be read ({error.strerror}); give a log that vLLM wrote") from error
    if not records:
        raise CalibrationError(f"{file}: no vLLM start-up lines; looked for {LOOKED_FOR}")
    return records


def records_from_json(file: Path) -> tuple[StartupRecord, ...]:
    """Rows whose keys are StartupRecord's fields: a JSON list, or one object a line. Other keys are passed over.

    Raises:
        CalibrationError: not JSON, not objects, or a value of the wrong kind.
    """
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        lines = [line for line in text.splitlines() if line.strip()]
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in lines]
    except ValueError as error:
        raise CalibrationError(f"{file}: not JSON ({error}); give a list of rows, or one object a line") from error
    return tuple(_from_row(row, f"{file}: row {number}") for number, row in enumerate(rows, 1))


def _from_row(row: object, where: str) -> StartupRecord:
    if not isinstance(row, dict):
        raise CalibrationError(f"{where}: not an object; its keys are to be those of a start-up record, such as kv_gib")
    values: dict[str, Value] = {}
    for name, kind in _KINDS.items():
        value: object = row.get(name)
        if value is None:
            continue
        allowed = (int, float) if kind is float else (kind,)
        if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
            raise CalibrationError(f"{where}: {name} is {value!r}, not a {kind.__name__}; leave out what is not known")
        values[name] = value  # type: ignore[assignment]  # checked on the lines above, by a type held in a variable
    return _made(values)
