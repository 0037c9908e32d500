import json
import logging
import time
from typing import Literal

import pytest

from gateway.access_log import FIELDS, json_line, text_line, write_lines
from gateway.config import GatewayConfig
from gateway.settlement import NOBODY, Move
from gateway.wire import Usage
from tests.fake_engine import FakeEngine, Script, chat_stream
from tests.gateway.harness import PATHS, body_for, door_before, wait_until
from tests.gateway.settling import DONE, TRACE, settled

ENDED_S = 1_700_000_000.0625  # 2023-11-14T22:13:20.0625Z


def test_a_line_of_json() -> None:
    kinds: tuple[Literal["retry", "continuation", "fallback"], ...] = ("retry", "continuation", "fallback", "retry")
    moves = tuple(Move(kind, 100.1, "m/1", "gone") for kind in kinds)
    assert json.loads(json_line(settled(trace=TRACE, moves=moves), ENDED_S)) == {
        "time": "2023-11-14T22:13:20.062Z",
        "level": "info",
        "logger": "berth.access",
        "request_id": "req_1",
        "caller": "alice",
        "model": "m",
        "replica": "m/0",
        "dialect": "chat",
        "stream": True,
        "outcome": "ok",
        "status": 200,
        "ttft_s": 0.5,
        "tpot_s": 0.25,
        "duration_s": 2.5,
        "prompt_tokens": 70,
        "cached_tokens": 64,
        "predicted_cached_tokens": 60,
        "prompt_fates": {"hit": 64, "no_reuse": 6},
        "output_tokens": 9,
        "retries": 2,
        "continuations": 1,
        "trace_id": TRACE.trace_id,
    }


def test_what_is_not_known_is_null() -> None:
    nothing = {"caller": "", "model": NOBODY, "replica": NOBODY, "usage": Usage(), "fates": {}}
    unknown = settled(**nothing, ttft_s=None, tpot_s=None, predicted_tokens=None)
    line = json.loads(json_line(unknown, ENDED_S))
    nulls = {name for name, value in line.items() if value is None}
    tokens = {"prompt_tokens", "cached_tokens", "predicted_cached_tokens", "output_tokens"}
    assert nulls == {"caller", "ttft_s", "tpot_s", "trace_id"} | tokens
    assert "ttft_s=- " in text_line(unknown, ENDED_S)
    assert "caller=- " in text_line(unknown, ENDED_S)


def test_every_key_is_documented_and_no_other() -> None:  # FIELDS is what README.md shows
    assert list(json.loads(json_line(DONE, ENDED_S))) == list(FIELDS)


def test_a_line_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        assert text_line(DONE, ENDED_S) == (
            "2023-11-14 22:13:20,062 INFO berth.access req_1 caller=alice model=m replica=m/0 dialect=chat outcome=ok"
            " status=200 ttft_s=0.500 duration_s=2.500 prompt_tokens=70 cached_tokens=64"
            " predicted_cached_tokens=60 output_tokens=9"
        )
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_batch_is_one_record_and_none_when_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="berth.access")
    write_lines("json")([DONE, DONE], 0.0)
    assert caplog.records == []
    caplog.set_level(logging.INFO, logger="berth.access")
    write_lines("json")([DONE, DONE], 0.0)
    assert [json.loads(line)["request_id"] for line in caplog.messages[0].split("\n")] == ["req_1", "req_1"]
    assert len(caplog.messages) == 1


def test_a_request_is_one_line_of_json_without_a_word_of_it(
    fake: FakeEngine, second: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="berth.access")
    fake.enqueue(Script(ending="drop"))
    second.enqueue(chat_stream(("zebra",)))
    config = GatewayConfig(log_format="json", probe_interval_s=0.05)
    with door_before(fake, second, config=config) as door:
        body = {**body_for("chat", stream=True), "messages": [{"role": "user", "content": "giraffe"}]}
        answer = door.post(PATHS["chat"], body)
        wait_until(lambda: "berth.access" in [record.name for record in caplog.records])
    line = json.loads(caplog.messages[[record.name for record in caplog.records].index("berth.access")])
    assert line["request_id"] == answer.headers["x-request-id"]
    assert (line["outcome"], line["replica"], line["retries"], line["output_tokens"]) == ("ok", "e1", 1, 1)
    assert 0 < line["ttft_s"] <= line["duration_s"]
    assert "giraffe" not in caplog.text
    assert "zebra" not in caplog.text
