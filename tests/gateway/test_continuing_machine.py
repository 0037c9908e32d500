"""The same world where streams can go on: whatever happens, a caller is told each word of its answer once, in order.

Engines that agree on every answer: that to request `tag` is `WORDS` signs, each a token of its own, which say whose
they are and which. So what reached a caller shows whether anything came twice, is missing, or was another one's.
"""

from typing import Any

import orjson
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from gateway.wire import EventSplitter, event_data
from tests.gateway.test_state_machine import Answer, Caller, CrowdedGateway, Line

WORDS = 5
BEGIN = 1
FIRST_SIGN = 0x4E00


def answer_to(tag: int) -> str:
    return "".join(chr(FIRST_SIGN + tag * WORDS + i) for i in range(WORDS))


def _tokens(text: str) -> list[int]:
    return [BEGIN if sign == "^" else ord(sign) for sign in text]


def _data(payload: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(payload) + b"\n\n"


class ContinuingLine(Line):
    """An engine that can be asked for tokens, and for a completion of some."""

    path = ""

    def on_url(self, url: bytes) -> None:
        self.path = url.decode()

    def tag_of(self, body: bytes) -> int:
        self.asked = asked = orjson.loads(body)
        if "messages" in asked:
            return int(asked["messages"][0]["content"])
        if self.path == "/v1/completions":
            return int(asked["prompt"][1])
        text = asked["prompt"].replace("^", "") if "prompt" in asked else chr(asked["tokens"][0])
        return (ord(text[0]) - FIRST_SIGN) // WORDS

    def prepare(self, kind: Answer, events: int) -> None:
        attempt = self.now
        assert attempt is not None
        is_stream = kind in ("stream", "error event")
        if self.path.endswith("tokenize") and kind in ("stream", "whole"):
            body = orjson.dumps(self._plain(attempt.tag))
            attempt.outbox = [(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body), b""), (body, body)]
        elif self.path == "/v1/chat/completions" and is_stream:
            self._stream([{"delta": {"content": sign}} for sign in answer_to(attempt.tag)], kind, events)
        elif self.path == "/v1/completions" and is_stream:
            begun = self.asked["prompt"][2:]
            assert begun == _tokens(answer_to(attempt.tag))[: len(begun)]
            rest = answer_to(attempt.tag)[len(begun) :]
            self._stream([{"text": sign, "token_ids": _tokens(sign)} for sign in rest], kind, events)
        else:
            super().prepare(kind, events)

    def _plain(self, tag: int) -> dict[str, Any]:
        if self.path == "/detokenize":
            return {"prompt": "".join(map(chr, self.asked["tokens"]))}
        if "messages" in self.asked:
            return {"tokens": [BEGIN, tag], "token_strs": ["^", "?"]}
        return {"tokens": _tokens(self.asked["prompt"])}

    def _stream(self, choices: list[dict[str, Any]], kind: Answer, events: int) -> None:
        attempt = self.now
        assert attempt is not None
        attempt.is_stream = True
        head = {"id": "x", "object": "o", "created": 1, "model": "m"}
        pieces = [_data({**head, "choices": [{"index": 0, **choice}]}) for choice in choices]
        if kind == "error event":
            pieces = [*pieces[:events], _data({"error": {"message": "no", "code": 500}})]
        else:
            nothing: dict[str, Any] = {"delta": {}} if self.path == "/v1/chat/completions" else {"text": ""}
            end = {"index": 0, "finish_reason": "stop", **nothing}
            pieces += [_data({**head, "choices": [end]}), b"data: [DONE]\n\n"]
        start = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        framed = [(b"%x\r\n%b\r\n" % (len(piece), piece), piece) for piece in pieces]
        attempt.outbox = [(start, b""), *framed, (b"0\r\n\r\n", b"")]


class ContinuingCaller(Caller):
    """Asks for a plain chat, with its tag for a question."""

    streams: frozenset[int] = frozenset()

    def body(self, tag: int, *, stream: bool) -> bytes:
        asked: dict[str, Any] = {"messages": [{"role": "user", "content": str(tag)}], "model": "m"}
        if stream:
            self.streams |= {tag}
            asked |= {"stream": True, "stream_options": {"include_usage": True}}
        return orjson.dumps(asked)


class ContinuingGateway(CrowdedGateway):
    """Two replicas with room for one request each, and streams that go on from one to the other."""

    line_type = ContinuingLine
    caller_type = ContinuingCaller
    callers: list[ContinuingCaller]  # type: ignore[assignment]  # made by `come`

    @precondition(lambda self: self._answering())
    @rule(data=st.data(), pieces=st.integers(1, 9))
    def answer_well(self, data: st.DataObject, pieces: int) -> None:
        line = data.draw(st.sampled_from(self._answering()))
        assert line.now is not None
        if not line.now.outbox:
            line.prepare("stream" if line.now.wanted_stream else "whole", 3)
        line.send(pieces)
        self._step()

    @precondition(lambda self: self._streaming())
    @rule(data=st.data())
    def break_a_stream(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self._streaming())).close(None)
        self._step()

    def _streaming(self) -> list[Line]:
        return [line for line in self._answering() if line.now is not None and line.now.is_stream and line.now.body]

    @invariant()
    def answers_are_what_an_engine_said_to_that_request(self) -> None:
        for caller in self.callers:
            for i, (status, body) in enumerate(zip(caller.statuses, caller.bodies, strict=False)):
                if status == 200 and caller.tags[i] in caller.streams and not body.startswith(b"{"):
                    self._check(caller.tags[i], body, is_complete=i < caller.complete)

    def _check(self, tag: int, body: bytes, *, is_complete: bool) -> None:
        splitter = EventSplitter()
        found = [event_data(one) for one in splitter.feed(body)]
        assert not splitter.tail
        is_over = b"[DONE]" in found
        payloads = [orjson.loads(one) for one in found if one and one != b"[DONE]"]
        is_broken = bool(payloads) and "error" in payloads[-1]
        choices = [choice for payload in payloads for choice in payload.get("choices", ())]
        told = "".join(choice["delta"].get("content") or "" for choice in choices)
        assert answer_to(tag).startswith(told)
        assert not is_complete or is_over != is_broken
        if is_over:
            assert told == answer_to(tag)
            assert [choice.get("finish_reason") for choice in choices].count("stop") == 1

    @invariant()
    def tokens_are_counted(self) -> None:
        """Of a stream that was continued to its end: no usage came, and all of it is counted."""
        for settled in self.ledger.settled:
            if settled.outcome == "ok" and any(move.kind == "continuation" for move in settled.moves):
                assert settled.usage.output_tokens == WORDS

    def teardown(self) -> None:
        super().teardown()
        kinds = {(move.kind, settled.outcome) for settled in self.ledger.settled for move in settled.moves}
        for kind, outcome in kinds:
            event(f"{kind} and {outcome}")


ContinuingGateway.TestCase.settings = settings(
    max_examples=300, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
TestContinuingGateway = ContinuingGateway.TestCase
