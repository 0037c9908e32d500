import pytest

from gateway.errors import ConfigError
from gateway.kv_events import source
from gateway.kv_events.source import Source, read_sources

ANSWER = b"""{"1":{"publisher":"zmq","endpoint":"tcp://*:5558","replay_endpoint":"tcp://*:5568","topic":"kv"},
"0":{"publisher":"zmq","endpoint":"tcp://*:5557","replay_endpoint":null,"topic":"","buffer_steps":10000}}"""


def test_each_rank_is_a_source_on_its_engines_host() -> None:
    assert read_sources(ANSWER, "http://10.0.0.7:8001") == (
        Source(0, "tcp://10.0.0.7:5557", None, ""),
        Source(1, "tcp://10.0.0.7:5558", "tcp://10.0.0.7:5568", "kv"),
    )


@pytest.mark.parametrize(
    ("published", "url", "reached"),
    [
        ("tcp://*:1", "unix:/run/engine.sock", "tcp://127.0.0.1:1"),
        ("tcp://0.0.0.0:1", "http://[::1]:8000", "tcp://[::1]:1"),
        ("tcp://10.1.1.1:1", "http://10.0.0.7:8001", "tcp://10.1.1.1:1"),
        ("ipc:///run/0.events", "unix:/run/engine.sock", "ipc:///run/0.events"),
    ],
)
def test_where_it_listens_is_not_where_it_is_reached(published: str, url: str, reached: str) -> None:
    body = b'{"0":{"publisher":"zmq","endpoint":"%b"}}' % published.encode()
    assert read_sources(body, url)[0].endpoint == reached


@pytest.mark.parametrize("body", [b"{}", b'{"0":{"publisher":"null","endpoint":"tcp://*:5557"}}'])
def test_an_engine_may_publish_nothing(body: bytes) -> None:
    assert read_sources(body, "unix:/run/engine.sock") == ()


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"a":{"publisher":"zmq","endpoint":"x"}}', b'{"0":7}', b'{"0":{"publisher":"zmq"}}']
)
def test_any_other_answer_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"kv_event_sources did not answer with publishers"):
        read_sources(body, "unix:/run/engine.sock")


def test_without_the_extra_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    source.require_extra()
    monkeypatch.setattr(source, "_NEEDED", ("zmq", "nobody_has_this"))
    with pytest.raises(ConfigError, match=r"pip install 'berth\[events\]'"):
        source.require_extra()
