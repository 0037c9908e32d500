"""On a real engine in float32, an answer broken off anywhere and continued is the undisturbed one, to the token."""

import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from serving import demo
from serving.config import child_environment
from serving.engine import EngineProcess, EngineSpec
from serving.environment import Environment
from sizing.question import EngineSettings
from tests.integration.continuing import Answer, call_of, continued, undisturbed
from tests.integration.stack import MODEL, wait_until

pytestmark = pytest.mark.engine
TOKENS = 32
PROMPTS = {
    "prose": "Tell me a long story about a ship.",
    "code": "Write a Python function that sorts a list, with a docstring.",
    "half characters": "List ten emojis with their names, and 你好吗",
    "blanks": "Write a poem with many blank lines and indented lines.",
}
MORE: dict[str, dict[str, Any]] = {
    "tokens that are never shown": {"ignore_eos": True, "max_tokens": 60},
    "a stop string": {"stop": "."},
    "no limit": {"max_tokens": None},
    "a minimum": {"min_tokens": 20, "max_tokens": 24},
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of one float32 engine, which is both the one that breaks and the one that goes on."""
    cache = Environment().cache()
    if not demo.is_converted(cache):
        demo.convert(cache, child_environment({}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    log: Path = tmp_path_factory.mktemp("engine") / "engine.log"
    settings = EngineSettings(1024, 8, None, None, 268435456, 1, "auto")
    model = str(demo.model_folder(cache))
    spec = EngineSpec(
        "one", model, MODEL, settings, url, log, "float32", enforce_eager=True, extra_args=demo.EXTRA_ARGS
    )
    process = EngineProcess(spec, child_environment({}))

    def is_healthy() -> bool:
        assert process.exit_status() is None, "\n".join(process.last_lines())
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    try:
        wait_until("the engine is healthy", is_healthy, 170, 0.5)
        yield url
    finally:
        process.kill()
        wait_until("the engine has ended", lambda: process.exit_status() is not None, 10)


def _asks(prompt: str) -> dict[str, dict[str, Any]]:
    messages = [{"role": "user", "content": prompt}]
    return {
        "/v1/chat/completions": {"messages": messages, "max_tokens": TOKENS},
        "/v1/completions": {"prompt": prompt, "max_tokens": TOKENS},
        "/v1/messages": {"system": "Be brief.", "messages": messages, "max_tokens": TOKENS},
        "/v1/responses": {"input": [{"role": "user", "content": prompt}], "max_output_tokens": TOKENS},
    }


def _cuts(events: list[bytes]) -> list[int]:
    """The first, the last, and some between: each costs the engine the rest of an answer."""
    last = len(events) - 1
    return sorted({1, 2, 3, last // 4, last // 2, last // 2 + 1, last * 3 // 4, last - 2, last - 1, last} - {0})


def _outcome(answer: Answer) -> tuple[object, ...]:
    return answer.text, answer.read.finish_reason, answer.read.stop_reason, answer.usage, answer.read.odd


@pytest.mark.parametrize("path", list(_asks("")))
@pytest.mark.parametrize("kind", list(PROMPTS))
async def test_the_continued_answer_is_the_undisturbed_one(engine: str, kind: str, path: str) -> None:
    call = call_of(path, {"model": MODEL, **_asks(PROMPTS[kind])[path]})
    async with aiohttp.ClientSession() as session:
        whole = await undisturbed(session, engine, call)
        assert whole.usage is not None
        for sent in _cuts(whole.events):
            again = await continued(session, engine, call, whole.events[:sent])
            assert _outcome(again) == _outcome(whole), f"after {sent} of {len(whole.events)} events"
            assert again.read.is_over


@pytest.mark.parametrize("kind", list(MORE))
async def test_what_the_request_asks_for_holds_across_the_seam(engine: str, kind: str) -> None:
    messages = [{"role": "user", "content": "Name the capital of France and tell me one fact about it."}]
    call = call_of("/v1/chat/completions", {"model": MODEL, "messages": messages, "max_tokens": 30, **MORE[kind]})
    async with aiohttp.ClientSession() as session:
        whole = await undisturbed(session, engine, call)
        for sent in _cuts(whole.events):
            again = await continued(session, engine, call, whole.events[:sent])
            assert _outcome(again) == _outcome(whole), f"after {sent} of {len(whole.events)} events"
