"""A real engine with a small KV cache that publishes what is in it, and prompts to fill it with."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving import demo
from serving.config import child_environment
from serving.engine import EngineProcess, EngineSpec
from serving.environment import Environment
from sizing.question import EngineSettings
from tests.integration.stack import MODEL, wait_until

BLOCK_TOKENS = 32
_START_S = 300.0
CACHE_BYTES = 100_000_000
"""2144 tokens of SmolLM2 in float32: 67 blocks."""
WORDS = [
    "river",
    "stone",
    "window",
    "garden",
    "letter",
    "engine",
    "winter",
    "copper",
    "market",
    "bridge",
    "candle",
    "harbour",
    "forest",
    "silver",
    "morning",
    "paper",
    "shadow",
    "violin",
    "kitchen",
    "thunder",
]


class Engine:
    """One engine with a small cache, which publishes its KV events."""

    def __init__(self, folder: Path) -> None:
        cache = Environment().cache()
        if not demo.is_converted(cache):
            demo.convert(cache, child_environment({}))
        self.spec = EngineSpec(
            "one",
            str(demo.model_folder(cache)),
            MODEL,
            EngineSettings(2048, 8, None, None, CACHE_BYTES, 1, "auto"),
            f"unix:{folder}/0.sock",
            folder / "engine.log",
            "float32",
            enforce_eager=True,
            kv_events_path=folder / "0",
            extra_args=(
                *demo.EXTRA_ARGS,
                f"--block-size={BLOCK_TOKENS}",
                "--enable-auto-tool-choice",
                "--tool-call-parser=hermes",
            ),
        )

    def start(self) -> None:
        """And wait until it listens."""
        # dev mode: for /reset_prefix_cache
        self.process = EngineProcess(self.spec, child_environment({"VLLM_SERVER_DEV_MODE": "1"}))

        def is_up() -> bool:
            assert self.process.exit_status() is None, "\n".join(self.process.last_lines())
            return "Application startup complete" in self.spec.log_path.read_text(errors="replace")

        wait_until("the engine is up", is_up, _START_S, 0.5)

    def end(self) -> None:
        """At once."""
        self.process.kill()
        wait_until("the engine has ended", lambda: self.process.exit_status() is not None, 10)


@contextmanager
def running(folder: Path) -> Iterator[Engine]:
    """One that answers; ended with the block."""
    one = Engine(folder)
    try:
        one.start()
        yield one
    finally:
        one.end()


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def chat(*contents: str, **more: object) -> dict[str, Any]:
    """User and assistant in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[at % 2], "content": content} for at, content in enumerate(contents)]
    return {"model": MODEL, "messages": messages, "max_tokens": 1, **more}
