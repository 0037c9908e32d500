"""Multimodal wrappers: what their files say, what they weigh, and equality with what vLLM's own classes allocate."""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from sizing.config_json import kv_layers, parse_config
from sizing.model import ModelShape
from sizing.weights import weights_per_rank_bytes
from sizing.wrappers import TEXT_SECTIONS
from tests.sizing.wrapper_models import WRAPPED, Values

PUBLISHED = [name for name, wrapped in WRAPPED.items() if wrapped.parameters is not None]


@cache
def shape(name: str) -> ModelShape:
    return parse_config(WRAPPED[name].config, name=name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_wrapper_has_about_as_many_parameters_as_its_publisher_says(name: str) -> None:
    """Within a hundredth: a tower's last layers, which vLLM does not build, are in the published numbers."""
    assert shape(name).num_parameters / 1e9 == pytest.approx(WRAPPED[name].parameters, rel=0.01)


@pytest.mark.parametrize("name", WRAPPED)
def test_the_cache_is_read_from_the_decoders_part(name: str) -> None:
    assert kv_layers(WRAPPED[name].config, name=name).cache_layers == shape(name).cache_layers
    assert shape(name).encoder_bytes > 0


def _cut(config: Values) -> Values:
    """The same model with two decoder layers."""
    if isinstance(config.get("thinker_config"), dict):
        return {**config, "thinker_config": _cut(config["thinker_config"])}  # type: ignore[arg-type]  # it is a dict
    for key in TEXT_SECTIONS:
        text = config.get(key)
        if isinstance(text, dict):
            kinds = {"layer_types": text["layer_types"][:2]} if text.get("layer_types") else {}
            return {**config, key: {**text, "num_hidden_layers": 2, **kinds}}
    return {**config, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def vllm() -> Iterator[Any]:
    """Asks a process in which vLLM builds models; it would leave too much behind in this one."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.sizing.vllm_wrappers"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked, answers = process.stdin, process.stdout

        def held(config: Values, base: str | None, ranks: int) -> Any:
            asked.write(json.dumps({"config": config, "base": base, "ranks": ranks}) + "\n")
            asked.flush()
            return json.loads(answers.readline())

        yield held
        asked.close()


@pytest.mark.engine
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", WRAPPED)
def test_a_rank_holds_what_vllms_own_class_allocates(name: str, ranks: int, vllm: Any) -> None:
    """Parameters and buffers of all but the further decoder layers, of which two say as much as forty."""
    wrapped = WRAPPED[name]
    if ranks > 1 and not wrapped.splits:
        pytest.skip("its heads are not even")
    config = _cut(wrapped.config)
    theirs = vllm(config, wrapped.base, ranks)
    assert isinstance(theirs, list), theirs
    ours = weights_per_rank_bytes(parse_config(config, name=name), ranks, as_allocated=False)
    assert ours == pytest.approx(sum(theirs), rel=1.5e-3)
