import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import orjson
import pytest

from benchmarks.client import ChatClient, open_session
from benchmarks.measure import tpot_s, ttft_s
from benchmarks.record import RequestRecord
from benchmarks.workload import Prompt
from tests.fake_engine import FakeEngine, Script, chat_chunk, chat_stream, event, json_answer

PROMPT = Prompt(index=4, text="time year people", prompt_tokens=3, output_tokens=30)
USAGE = event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 30, "total_tokens": 37}})
DONE = b"data: [DONE]\n\n"


@dataclass
class Asking:
    """A client of the fake engine, ready to ask."""

    client: ChatClient
    fake: FakeEngine

    async def __call__(self, *scripts: Script) -> RequestRecord:
        self.fake.enqueue(*scripts)
        return await self.client.ask(PROMPT, None)


@pytest.fixture
async def ask(fake: FakeEngine) -> AsyncIterator[Asking]:
    async with open_session("sk-secret") as session:
        yield Asking(ChatClient(session, fake.url, "fake", timeout_s=20.0, ignore_eos=True), fake)


async def test_the_clock_starts_at_the_first_text_and_stops_at_the_last(ask: Asking) -> None:
    """Role at 20 ms, text at 300 ms, 10 chunks of 3 tokens 30 ms apart, usage 200 ms after the last."""
    words = [(0.28 if i == 0 else 0.03, chat_chunk({"content": "a b c "})) for i in range(10)]
    role = (0.02, chat_chunk({"role": "assistant", "content": ""}))
    record = await ask(Script(chunks=(role, *words, (0.2, USAGE), (0.0, DONE))))
    assert record.outcome == "ok"
    assert record.first_byte_s is not None
    assert record.last_token_s is not None
    ttft, tpot = ttft_s(record), tpot_s(record)
    assert ttft is not None
    assert tpot is not None
    assert ttft >= 0.29  # neither the role at 20 ms nor the first byte
    assert record.first_byte_s < record.sent_s + ttft
    assert record.done_s - record.last_token_s >= 0.1  # the usage and its delay come after the last token
    generating_s = record.last_token_s - (record.first_token_s or 0)
    assert tpot == pytest.approx(generating_s / 29)
    assert record.token_events == 10
    assert record.chunks <= 10
    assert sum(record.chunk_gaps_s) == pytest.approx(generating_s, abs=1e-4)
    assert record.max_gap_s == max(record.chunk_gaps_s)


async def test_the_servers_usage_is_what_counts(ask: Asking) -> None:
    usage = {"prompt_tokens": 70, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 48}}
    record = await ask(
        Script(chunks=((0, chat_chunk({"content": "x"})), (0, event({"choices": [], "usage": usage}) + DONE)))
    )
    assert (record.prompt_tokens, record.output_tokens, record.cached_tokens) == (70, 3, 48)
    assert (record.asked_prompt_tokens, record.asked_output_tokens, record.index) == (3, 30, 4)


async def test_what_is_sent(ask: Asking) -> None:
    await ask()
    (seen,) = ask.fake.seen
    body = orjson.loads(seen.body)
    assert seen.path == "/v1/chat/completions"
    headers = {name.lower(): value for name, value in seen.headers.items()}
    assert headers["authorization"] == "Bearer sk-secret"
    assert headers["accept-encoding"] == "identity"
    assert body["messages"] == [{"role": "user", "content": PROMPT.text}]
    assert (body["model"], body["max_tokens"], body["stream"], body["ignore_eos"]) == ("fake", 30, True, True)
    assert body["stream_options"] == {"include_usage": True}


# Every failure is a record


async def test_a_refusal_keeps_its_status_and_reason(ask: Asking) -> None:
    record = await ask(json_answer({"error": {"message": "the engine\nis  dead", "code": 500}}, status=500))
    assert (record.outcome, record.status, record.error) == ("http_error", 500, "the engine is dead")
    assert record.first_token_s is None


async def test_a_redirect_is_not_followed(ask: Asking) -> None:
    record = await ask(Script(status=307, headers=(("location", "/elsewhere"),)))
    assert (record.outcome, record.status) == ("http_error", 307)


async def test_a_dropped_stream_is_cut_short_and_keeps_its_stamps(ask: Asking) -> None:
    record = await ask(chat_stream(ending="drop"))
    assert (record.outcome, record.status) == ("cut_short", 200)
    assert record.error
    assert record.token_events == 2
    assert record.output_tokens is None


async def test_a_stream_that_ends_without_done_is_cut_short(ask: Asking) -> None:
    record = await ask(Script(chunks=((0, chat_chunk({"content": "half"})),)))
    assert (record.outcome, record.error) == ("cut_short", "the stream ended without [DONE]")


async def test_a_break_after_the_last_word_loses_nothing(ask: Asking) -> None:
    record = await ask(Script(chunks=((0, chat_chunk({"content": "all"}) + DONE),), ending="drop"))
    assert (record.outcome, record.error) == ("ok", None)


async def test_a_connection_dropped_before_the_answer_is_a_connection_error(ask: Asking) -> None:
    record = await ask(Script(ending="drop"))
    assert (record.outcome, record.status) == ("connection", None)
    assert record.error


async def test_an_error_inside_the_stream_is_its_own_kind(ask: Asking) -> None:
    broken = event({"error": {"message": "out of memory", "type": "server_error"}})
    record = await ask(Script(chunks=((0, chat_chunk({"content": "a"})), (0, broken), (0, DONE))))
    assert (record.outcome, record.error) == ("stream_error", "out of memory")


async def test_an_answer_without_usage_is_ok_and_uncounted(ask: Asking) -> None:
    record = await ask(chat_stream(("a", "b", "c"), interval_s=0.05, usage=False))
    assert record.outcome == "ok"
    assert record.output_tokens is None
    assert record.token_events == 3
    assert tpot_s(record) is None


async def test_an_answer_that_is_no_stream_is_cut_short(ask: Asking) -> None:
    record = await ask(json_answer({"choices": []}))
    assert record.outcome == "cut_short"


@pytest.mark.parametrize("script", [chat_stream(ending="hang"), Script(delay_s=3600)], ids=["in the middle", "at once"])
async def test_a_hang_is_a_timeout_and_lets_go_of_the_server(fake: FakeEngine, script: Script) -> None:
    fake.enqueue(script)
    async with open_session(None) as session:
        record = await ChatClient(session, fake.url, "fake", timeout_s=0.5).ask(PROMPT, None)
    assert record.outcome == "timeout"
    assert record.error == "no end within 0.5 s"
    assert record.done_s - record.sent_s >= 0.45
    for _ in range(200):
        if fake.seen[0].aborted:
            break
        await asyncio.sleep(0.05)
    assert fake.seen[0].aborted


async def test_nobody_there_is_a_connection_error() -> None:
    async with open_session(None) as session:
        record = await ChatClient(session, "http://127.0.0.1:1", "fake", timeout_s=20).ask(PROMPT, 0.0)
    assert (record.outcome, record.status, record.first_byte_s) == ("connection", None, None)
    assert record.intended_s == 0.0
