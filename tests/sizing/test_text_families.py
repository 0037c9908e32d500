"""Text families that are rows of tables: equality with vLLM's own classes, and with what was published of them."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sizing.architecture import LIKE_DEEPSEEK
from sizing.config_json import kv_layers, parse_config
from sizing.config_values import ConfigValues
from sizing.decoders import DECODERS
from sizing.dense_decoders import DENSE_DECODERS
from sizing.engine_cache import Serving, engine_cache
from sizing.layers import Attention, Latent, Layer
from sizing.mixture_decoders import MIXTURE_DECODERS
from sizing.model import ModelShape
from sizing.spelling import spelt
from sizing.weights import weights_per_rank_bytes
from tests.sizing.published_text import PUBLISHED
from tests.sizing.text_models import SMALL_MODELS
from tests.sizing.vllm_oracle import outcome, processor_block_size
from tests.sizing.vllm_ranks import first_of, register

# these read numbers of slopes or of activations back while they are built
WITH_MEMORY = {"Apertus", "BLOOM", "Falcon RW", "Step 1"}
# vLLM has one for the linear layers too, or makes it as short as --max-model-len; these are ours
OTHER_TABLES = {"Ling 2.5": 2048 * 16 * 2, "PLaMo 3": 2048 * 32 * 2}
# OPT-350M norms behind its layers' parts, and has no norm behind the last layer
ABSENT_NORMS = {"OPT with a narrow embedding": 2 * 256}
# nothing on a processor computes these
WITHOUT_KERNEL = {"Rnj 1", "Step 1"}
# a processor's states are in float32, but for these
KEPT_IN_SERVED_TYPE = {"Ling 2.5"}
# spelt like others of the same row
SAME_CLASS = {"ChatGLMForConditionalGeneration", "ExaoneMoEForCausalLM"}


@dataclass(frozen=True)
class Built:
    """What vLLM made of a config, as the first of several ranks."""

    elements: int
    table_bytes: int
    specs: tuple[Any, ...]
    engine: Any


def built(config: Mapping[str, Any], ranks: int, folder: Path, *, device: str, middle: bool = False) -> Built:
    """vLLM's class, whose config class is its own, Transformers' or, where the model brings it, any."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.platforms import current_platform

    register(config["model_type"])
    (folder / "config.json").write_text(json.dumps(config))
    arguments = EngineArgs(
        model=str(folder), skip_tokenizer_init=True, load_format="dummy", enforce_eager=True, max_model_len=256
    )
    engine = arguments.create_engine_config()
    with first_of(ranks, engine, folder, device=device, middle=middle):
        model = initialize_model(engine)
        current_platform.update_block_size_for_backend(engine)
        layers = engine.compilation_config.static_forward_context.values()
        specs = [layer.get_kv_cache_spec(engine) for layer in layers if isinstance(layer, AttentionLayerBase)]
    tables = {id(table): table for name, table in model.named_buffers() if name.endswith("cos_sin_cache")}
    parameters = {id(parameter): parameter.numel() for parameter in model.parameters()}
    return Built(
        sum(parameters.values()),
        sum(table.numel() * table.element_size() for table in tables.values()),
        tuple(specs),
        engine,
    )


def kept(layer: Layer) -> tuple[object, ...]:
    match layer:
        case Attention():
            return "attention", layer.num_kv_heads, layer.head_dim, layer.value_dim, layer.window
        case Latent():
            return "latent", layer.width
    return ("state",)


def kept_by_theirs(spec: Any) -> tuple[object, ...]:
    match type(spec).__name__:
        case "MLAAttentionSpec":
            return "latent", spec.head_size
        case "MambaSpec":
            return ("state",)
    return "attention", spec.num_kv_heads, spec.head_size, spec.head_size_v, spec.sliding_window


def test_every_row_is_compared() -> None:
    rows = {*DENSE_DECODERS, *MIXTURE_DECODERS, *LIKE_DEEPSEEK}
    assert rows <= {config["architectures"][0] for config in SMALL_MODELS.values()} | SAME_CLASS
    assert rows - {*LIKE_DEEPSEEK} <= set(DECODERS)


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_keys_that_are_spelt_out_are_spelt_out_once(name: str) -> None:
    config = SMALL_MODELS[name]
    architecture = config["architectures"][0]
    once = spelt(architecture, ConfigValues(name, config))
    assert spelt(architecture, once) == once


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_the_cache_is_told_without_the_sizes_of_weights(name: str) -> None:
    config = {key: value for key, value in SMALL_MODELS[name].items() if key not in ("intermediate_size", "vocab_size")}
    assert kv_layers(config, name=name).cache_layers == parse_config(SMALL_MODELS[name], name=name).cache_layers


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_were_published(name: str) -> None:
    config, count = PUBLISHED[name]
    rounded = count % 10**9 == 0
    # of the 350M one a norm too many is counted: it has none behind its layers
    tolerance = 0.003 if rounded else 1e-5 if name == "facebook/opt-350m" else 0
    assert parse_config(config, name=name).num_parameters == pytest.approx(count, rel=tolerance)


def test_falcon_7b_has_one_key_value_head_that_every_rank_repeats() -> None:
    config, _ = PUBLISHED["tiiuae/falcon-7b"]
    shape = parse_config(config, name="m")
    assert shape.cache_layers == ((Attention(1, 64, 64),),) * 32
    # no tensor parallel size but 71 divides its heads: keys and values of 2 x 64 x 4544 a layer are whole on each
    whole, divided = (weights_per_rank_bytes(shape, ranks, as_allocated=False) for ranks in (1, 71))
    assert shape.held is not None
    keys, norms = 32 * 2 * 64 * 4544, (2 * 32 + 2) * 4544
    assert divided - shape.held.buffers == pytest.approx(
        (whole - shape.held.buffers - 2 * (keys + norms)) / 71 + 2 * (keys + norms), rel=1e-3
    )


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", SMALL_MODELS)
def test_weights_tables_and_caches_are_those_of_vllms_class(
    name: str, ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters one by one: routers that vLLM keeps in float32 are counted as wide as the rest."""
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    if name in WITHOUT_KERNEL:
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, CPUAttentionBackendImpl

        monkeypatch.setattr(CPUAttentionBackend, "supports_alibi_sqrt", lambda: True)
        monkeypatch.setattr(CPUAttentionBackend, "get_name", lambda: "TRITON_ATTN")
        monkeypatch.setattr(CPUAttentionBackendImpl, "__init__", lambda *_, **__: None)
    config = SMALL_MODELS[name]
    theirs = built(config, ranks, tmp_path, device="cpu" if name in WITH_MEMORY else "meta")
    ours = parse_config(config, name=name)
    assert ours.assumed is None
    assert ours.held is not None
    assert weights_per_rank_bytes(ours, ranks, as_allocated=False) - ours.held.buffers == 2 * (
        theirs.elements + ABSENT_NORMS.get(name, 0)
    )
    assert ours.held.buffers == OTHER_TABLES.get(name, theirs.table_bytes)
    if ranks == 1:
        layers = [layer for caches in ours.cache_layers for layer in caches]
        assert Counter(map(kept, layers)) == Counter(map(kept_by_theirs, theirs.specs))
        assert_same_capacity(ours, theirs)


def assert_same_capacity(ours: ModelShape, theirs: Built) -> None:
    engine = theirs.engine
    cache = engine_cache(
        ours,
        Serving(
            block_size=processor_block_size(ours),
            max_num_batched_tokens=engine.max_in_flight_tokens,
            async_scheduling=False,
            enable_prefix_caching=engine.cache_config.enable_prefix_caching,
            on_processor=ours.name not in KEPT_IN_SERVED_TYPE,
        ),
    )
    assert cache.block_size == engine.cache_config.block_size
    engine.cache_config.kv_cache_layout = "LBHNC"
    available = int(2.7 * cache.needed_bytes(256))
    capacity = cache.capacity(available, 256)
    found = outcome(engine, [list(theirs.specs)], [available])
    assert (found.num_blocks, found.tokens, found.max_concurrency) == (
        capacity.num_blocks,
        capacity.tokens,
        capacity.max_concurrency,
    )
