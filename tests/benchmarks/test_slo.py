import pytest

from benchmarks.errors import ConfigError
from benchmarks.slo import NO_SLO, Slo, parse_slo


@pytest.mark.parametrize(
    ("text", "slo"),
    [
        ("ttft=0.5", Slo(ttft_s=0.5)),
        ("ttft=500ms,tpot=50ms", Slo(ttft_s=0.5, tpot_s=0.05)),
        (" e2e = 10s , ttft=1 ", Slo(ttft_s=1.0, e2e_s=10.0)),
        ("tpot=.04,", Slo(tpot_s=0.04)),
    ],
)
def test_bounds_are_seconds_unless_they_say_ms(text: str, slo: Slo) -> None:
    assert parse_slo(text) == slo


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"),
        (",", "empty"),
        ("ttft", "ttft"),
        ("ttfb=1", "ttfb"),
        ("ttft=", "ttft"),
        ("ttft=0", "above 0"),
        ("ttft=-1", "above 0"),
        ("ttft=nan", "above 0"),
        ("ttft=inf", "above 0"),
        ("ttft=5min", "above 0"),
        ("ttft=1mss", "above 0"),
        ("ttft=1,ttft=2", "twice"),
    ],
)
def test_a_bad_bound_is_named_in_one_line(text: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word) as caught:
        parse_slo(text)
    assert "\n" not in str(caught.value)


def test_an_slo_without_bounds_is_none() -> None:
    assert not NO_SLO.is_set
    assert Slo(e2e_s=1.0).is_set
