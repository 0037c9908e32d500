from benchmarks.timeline import Timeline
from tests.fake_engine import chat_chunk, event

ROLE = chat_chunk({"role": "assistant", "content": ""})
DONE = b"data: [DONE]\n\n"
USAGE = event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}})


def text(word: str) -> bytes:
    return chat_chunk({"content": word})


def read(*pieces: tuple[float, bytes]) -> Timeline:
    timeline = Timeline()
    for at_s, data in pieces:
        timeline.feed(at_s, data)
    timeline.close()
    return timeline


def test_role_usage_and_comments_are_no_tokens() -> None:
    timeline = read((1.0, b": keep-alive\n\n"), (2.0, ROLE), (3.0, text("a")), (4.0, text("b")), (9.0, USAGE + DONE))
    assert timeline.chunk_at == [3.0, 4.0]
    assert timeline.token_events == 2
    assert timeline.usage is not None
    assert timeline.usage.output_tokens == 3
    assert timeline.ended


def test_reasoning_and_tool_calls_are_tokens() -> None:
    call = {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}
    timeline = read((1.0, chat_chunk({"reasoning": "hm"})), (2.0, chat_chunk(call)), (3.0, DONE))
    assert timeline.chunk_at == [1.0, 2.0]


def test_an_event_belongs_to_the_read_that_completed_it() -> None:
    word = text("a")
    assert read((1.0, word[:20]), (2.0, word[20:] + text("b")[:9])).chunk_at == [2.0]


def test_events_of_one_read_are_one_chunk() -> None:
    timeline = read((1.0, ROLE + text("a") + text("b")), (2.0, text("c") + DONE))
    assert timeline.chunk_at == [1.0, 2.0]
    assert timeline.token_events == 3


def test_a_running_usage_tells_the_tokens_of_the_first_chunk() -> None:
    def counted(word: str, tokens: int) -> bytes:
        choice = {"index": 0, "delta": {"content": word}}
        return event({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": tokens}})

    assert read((1.0, counted("a", 1) + counted("b", 3)), (2.0, counted("c", 5))).first_chunk_tokens == 3
    assert read((1.0, text("a")), (2.0, counted("c", 5))).first_chunk_tokens is None


def test_nothing_after_an_error_or_the_end_is_read() -> None:
    broken = read((1.0, event({"error": {"message": "out of memory"}})), (2.0, text("a") + DONE))
    assert broken.error == "out of memory"
    assert broken.chunk_at == []
    assert read((1.0, DONE), (2.0, text("a"))).chunk_at == []


def test_an_end_without_its_blank_line_is_an_end() -> None:
    assert read((1.0, text("a")), (2.0, b"data: [DONE]")).ended
    assert not read((1.0, text("a"))).ended
