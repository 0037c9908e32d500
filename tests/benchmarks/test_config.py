from typing import Any

import pytest

from benchmarks.config import RunConfig
from benchmarks.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000"),
        ("localhost:8000/v1", "http://localhost:8000"),
        ("https://host/openai/v1", "https://host/openai"),
    ],
)
def test_a_url_comes_with_or_without_v1(url: str, base: str) -> None:
    assert RunConfig(url, rate=1.0).base_url == base


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give a rate"),
        ({"rate": 1.0, "concurrency": 1}, "both given"),
        ({"rate": 0.0}, "rate must be a number above 0"),
        ({"rate": float("inf")}, "rate must be a number above 0"),
        ({"concurrency": 0}, "concurrency must be 1 or more"),
        ({"rate": 1.0, "requests": 0}, "requests must be 1 or more"),
        ({"rate": 1.0, "output_tokens": 0}, "output-tokens must be 1 or more"),
        ({"rate": 1.0, "timeout_s": 0.0}, "timeout must be a number above 0"),
        ({"rate": 1.0, "warmup": -1}, "warmup must be 0 or more"),
        ({"rate": 1.0, "arrivals": "gamma"}, "poisson, constant"),
        ({"rate": 1.0, "api_key": "a\nb"}, "API key"),
        ({"rate": 1.0, "url": "ftp://host"}, "not a web address"),
        ({"rate": 1.0, "url": "http://"}, "not a web address"),
        ({"rate": 1.0, "url": "http://host:port"}, "not a web address"),
        ({"rate": 1.0, "url": "http://me:pw@host"}, "user name or password"),
        ({"rate": 1.0, "url": "http://host/?a=b"}, "query"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        RunConfig(**{"url": "http://127.0.0.1:8000", **options})
    assert "\n" not in str(caught.value)
    assert "pw" not in str(caught.value)


def test_the_key_shows_in_no_repr() -> None:
    assert "sk-secret" not in repr(RunConfig("http://h", rate=1.0, api_key="sk-secret"))
