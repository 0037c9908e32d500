"""One vLLM engine: its command line (pure), its start, its log, its end. Knows nothing of restarts or requests."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sizing.question import EngineSettings

_STAGES = (
    ("Starting vLLM server", "opening its server"),
    ("Capturing CUDA graph", "capturing CUDA graphs"),
    ("Graph capturing finished", "warming up"),
    ("KV cache size", "allocating the KV cache"),
    ("torch.compile takes", "profiling memory"),
    ("Loading weights took", "weights loaded, profiling memory"),
    ("Starting to load model", "loading weights"),
    ("Initializing a V1 LLM engine", "starting the engine core"),
    ("Resolved architecture", "reading the model"),
)
"""What vLLM logs on its way up, latest first, and what that means to someone waiting."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Everything needed to start one engine."""

    name: str
    """Of this replica: the model's public name and a number, `smollm2/0`."""
    model: str
    """Folder or Hub id."""
    served_model_name: str
    settings: EngineSettings
    url: str
    """`unix:/path` or `http://127.0.0.1:port`: where it will listen."""
    log_path: Path
    dtype: str = "auto"
    enforce_eager: bool = False
    quantization: str | None = None
    speculative_config: str | None = None
    """As JSON."""
    kv_events_path: Path | None = None
    """Where it publishes what is in its KV cache: two Unix sockets, this with `.events` and `.replay` behind it."""
    extra_args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    drain_s: float = 5.0
    """How long vLLM may finish running requests after SIGTERM; the gateway has drained before, so little is left."""

    @property
    def socket_path(self) -> Path | None:
        """Of a Unix-socket engine."""
        return Path(self.url.removeprefix("unix:")) if self.url.startswith("unix:") else None


def python_module(name: str) -> list[str]:
    """How to run a module of ours. -P: nothing of the same name in the current folder must be taken for it."""
    return [sys.executable, "-P", "-m", name]


def argv(spec: EngineSpec) -> list[str]:
    """The engine's command line. What sizing decided is always spelt out, so that `--dry-run` hides nothing."""
    settings = spec.settings
    options: list[tuple[str, object]] = [
        ("served-model-name", spec.served_model_name),
        ("max-model-len", settings.max_model_len),
        ("max-num-seqs", settings.max_num_seqs),
        ("max-num-batched-tokens", settings.max_num_batched_tokens),
        ("gpu-memory-utilization", settings.gpu_memory_utilization),
        ("kv-cache-memory-bytes", settings.kv_cache_memory_bytes),
        ("tensor-parallel-size", settings.tensor_parallel_size if settings.tensor_parallel_size > 1 else None),
        ("pipeline-parallel-size", settings.pipeline_parallel_size if settings.pipeline_parallel_size > 1 else None),
        ("quantization", spec.quantization),
        ("speculative-config", spec.speculative_config),
        ("kv-events-config", _kv_events(spec.kv_events_path) if spec.kv_events_path else None),
        ("kv-cache-dtype", settings.kv_cache_dtype if settings.kv_cache_dtype != "auto" else None),
        ("dtype", spec.dtype if spec.dtype != "auto" else None),
        ("shutdown-timeout", round(spec.drain_s)),
    ]
    flags = [f"--{name}={value}" for name, value in options if value is not None]
    if settings.enable_expert_parallel:
        flags.append("--enable-expert-parallel")
    if spec.enforce_eager:
        flags.append("--enforce-eager")
    # prefix caching is on by default for generation; said here because Berth counts on it
    flags += ["--enable-prefix-caching", "--enable-prompt-tokens-details", "--disable-uvicorn-access-log"]
    command = [*python_module("serving.vllm_main"), "serve", spec.model]
    return [*command, *_listen(spec.url), *flags, *spec.extra_args]


def _kv_events(path: Path) -> str:
    """As JSON. Over TCP vLLM would listen on all addresses, and the tokens of every prompt are in it."""
    return json.dumps(
        {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"ipc://{path}.events",
            "replay_endpoint": f"ipc://{path}.replay",
        },
        separators=(",", ":"),
    )


def _listen(url: str) -> list[str]:
    if url.startswith("unix:"):
        return [f"--uds={url.removeprefix('unix:')}"]
    host, _, port = url.removeprefix("http://").rpartition(":")
    return [f"--host={host}", f"--port={port}"]


class EngineProcess:
    """A started engine: a guard process and, below it, vLLM's own tree, all in one process group."""

    def __init__(self, spec: EngineSpec, environment: Mapping[str, str]) -> None:
        """Start it. Must be called from the main thread: the guard dies with the thread that made it."""
        self.spec = spec
        self.started_s = time.monotonic()
        spec.log_path.parent.mkdir(parents=True, exist_ok=True)
        if spec.socket_path:
            spec.socket_path.unlink(missing_ok=True)  # left by a killed engine, it makes the next one fail to bind
        with spec.log_path.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                self._guarded(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )
        self._log_read = self._log_start
        self._partial = b""
        self.stage = "starting Python"

    def _guarded(self) -> list[str]:
        grace_s = self.spec.drain_s + 10
        return [*python_module("serving.guard"), str(grace_s), str(os.getpid()), *argv(self.spec)]

    @property
    def pid(self) -> int:
        """Of the guard, which is also the id of the process group."""
        return self._process.pid

    def exit_status(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def follow_log(self) -> str:
        """Read what the log has gained and return the stage the start has reached, in plain words."""
        with self.spec.log_path.open("rb") as log:
            log.seek(self._log_read)
            fresh = log.read()
        self._log_read += len(fresh)
        text = (self._partial + fresh).decode("utf-8", "replace")
        self._partial = fresh.rpartition(b"\n")[2]
        latest = max(((text.rfind(mark), words) for mark, words in _STAGES), default=(-1, ""))
        if latest[0] >= 0:
            self.stage = latest[1]
        return self.stage

    def last_lines(self, count: int = 20) -> tuple[str, ...]:
        """The end of this start's log, without blank lines."""
        with self.spec.log_path.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode("utf-8", "replace").splitlines()
        return tuple(line.rstrip() for line in lines if line.strip())[-count:]

    def terminate(self) -> None:
        """Ask it to end (SIGTERM to the guard, which passes it on)."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        """End the whole process group now."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
