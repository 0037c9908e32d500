"""Signs of life: what a caller of a silent stream is sent, and that it harms nothing."""

import json
import threading
from contextlib import ExitStack
from dataclasses import replace

from tests.fake_engine import FakeEngine, Script, chat_chunk
from tests.gateway.forms import content_type, form
from tests.gateway.harness import CONFIG, PATHS, body_for, door_before

CHUNKS = ((0.0, chat_chunk({"content": "a"})), (0.0, chat_chunk({"content": "b"})), (0.0, b"data: [DONE]\n\n"))
ANSWER = b"".join(data for _, data in CHUNKS)


class _Bystander:
    """Opens a gate when everybody has been told the time often enough."""

    def __init__(self, gate: threading.Event, ticks: int = 3) -> None:
        self._gate = gate
        self._ticks = ticks

    def tick(self, _: float) -> None:
        self._ticks -= 1
        if self._ticks == 0:
            self._gate.set()


def _stream(fake: FakeEngine, stack: ExitStack, path: str, body: bytes, kind: str = "application/json") -> bytes:
    """What a caller gets of a stream that falls silent for a while after its first event."""
    door = stack.enter_context(door_before(fake, timeouts=replace(CONFIG.timeouts, keep_alive_s=0.0)))
    gate = threading.Event()
    fake.enqueue(Script(chunks=CHUNKS, gates={1: gate}))
    client = stack.enter_context(door.client())
    with client.stream("POST", path, content=body, headers={"content-type": kind}) as answer:
        got = answer.iter_raw()
        first = next(got)
        door.gateway._relay.watch.add(_Bystander(gate))
        return first + b"".join(got)


def test_a_silent_stream_is_kept_alive_by_what_sdks_pass_over(fake: FakeEngine, stack: ExitStack) -> None:
    answer = _stream(fake, stack, PATHS["chat"], json.dumps(body_for("chat", stream=True)).encode())
    assert answer.replace(b": keep-alive\n\n", b"") == ANSWER
    assert b": keep-alive\n\n" in answer


def test_a_silent_transcription_has_no_such_sign_and_is_not_ended_by_an_empty_one(
    fake: FakeEngine, stack: ExitStack
) -> None:
    body = form({"model": "fake", "stream": "true"})
    assert _stream(fake, stack, "/v1/audio/transcriptions", body, content_type(body)) == ANSWER
