"""A real engine shares cached prefixes only between requests with the same salt, on every API that generates."""

from typing import Any

import httpx2
import pytest

from tests.integration.stack import KEY, MODEL, Stack, wait_until

pytestmark = pytest.mark.engine
BODIES: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": [{"role": "user", "content": "TEXT"}], "max_tokens": 1},
    "completions": {"prompt": "TEXT", "max_tokens": 1},
    "responses": {"input": "TEXT", "max_output_tokens": 1},
    "messages": {"messages": [{"role": "user", "content": "TEXT"}], "max_tokens": 1},
}
WORDS = 300


def _with_text(value: Any, text: str) -> Any:
    if isinstance(value, dict):
        return {name: _with_text(member, text) for name, member in value.items()}
    if isinstance(value, list):
        return [_with_text(member, text) for member in value]
    return text if value == "TEXT" else value


@pytest.mark.parametrize("path", list(BODIES))
def test_another_salt_finds_nothing(stack: Stack, path: str) -> None:
    body = {"model": MODEL, **_with_text(BODIES[path], f"{path} " + "ship " * WORDS)}

    def hits_after(**salt: str) -> float:
        """Tokens found in the cache by one more request."""
        looked_up = stack.metric("berth_engine_prefix_cache_queries_tokens_total")
        before = stack.metric("berth_engine_prefix_cache_hits_tokens_total")
        answer = httpx2.post(
            f"{stack.url}/v1/{path}",
            json={**body, **salt},
            headers={"authorization": f"Bearer {KEY}"},
            timeout=120,
        )
        assert answer.status_code == 200, answer.text
        wait_until(
            "the engine has counted it",
            lambda: stack.metric("berth_engine_prefix_cache_queries_tokens_total") >= looked_up + WORDS,
            10,
        )
        return stack.metric("berth_engine_prefix_cache_hits_tokens_total") - before

    assert hits_after(cache_salt="a") == 0
    assert hits_after(cache_salt="b") == 0
    assert hits_after() == 0  # the caller's salt alone
    assert hits_after(cache_salt="a") >= WORDS / 2
    assert hits_after() >= WORDS / 2
