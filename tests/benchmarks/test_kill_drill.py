from benchmarks.kill_drill import Stream, summary

_HEAD = b'data: {"id":"a","choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n'
_END = b'data: {"id":"a","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def _stream(*received: bytes, status: int = 200) -> Stream:
    stream = Stream(0, "chat", status)
    for at, data in enumerate(received):
        stream.note(data, float(at))
    return stream


def _figures(lines: list[str]) -> dict[str, str]:
    return {line[:32].strip(): line[32:].strip() for line in lines if not line.startswith("  ")}


def test_texts_are_compared_however_they_were_cut_and_every_kind_of_failure_counts() -> None:
    calm = [_stream(_HEAD % b"ab", _END) for _ in range(6)]
    disturbed = [
        _stream(_HEAD % b"a", _HEAD % b"b", _END),
        _stream(_HEAD % b"ax", _END),
        _stream(_HEAD % b"a", b'data: {"error":{"message":"gone"}}\n\n'),
        _stream(_HEAD % b"ab"),
        _stream(b"{}", status=503),
        _stream(_HEAD % b"ab", b"data: {cut", _END),
    ]
    assert [stream.failure for stream in disturbed] == [
        None,
        None,
        "gone",
        "it stopped without an end",
        "status 503: {}",
        "it holds an event that is not a JSON object",
    ]
    figures = _figures(summary(calm, disturbed, continued=2, retried=1))
    assert figures["failed, one engine killed"] == "4 (bar: 0)"
    assert figures["failed, undisturbed"] == "0"
    assert figures["same text as undisturbed"] == "1 of the 2 that did not fail"
    assert figures["continued on the other replica"] == "2"


def test_the_longest_pause_is_between_two_reads() -> None:
    stream = _stream(_HEAD % b"a")
    stream.note(_END, 7.0)
    assert stream.longest_gap_s == 7.0
