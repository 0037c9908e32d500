"""Equality with vLLM over mixtures of layer kinds that no model need have, and over pipeline stages."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sizing.errors import UnsupportedModelError
from sizing.kv_cache import kv_cache
from sizing.pages import ChunkedPage, CrossPage, FullPage, LatentPage, Page, SlidingPage, StatePage
from tests.sizing.vllm_oracle import Outcome, outcome, spec, vllm_config

# importing vLLM and torch warns of their own deprecations, which are not ours to fix
pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

BLOCK_SIZES = st.sampled_from([16, 16, 16, 32, 64, 128, 528])


@st.composite
def attention(draw: st.DrawFn, block_size: int) -> dict[str, Any]:
    head_dim = draw(st.sampled_from([64, 128, 256]))
    return {
        "block_size": block_size,
        "num_kv_heads": draw(st.sampled_from([1, 2, 3, 4, 8])),
        "head_dim": head_dim,
        "value_dim": draw(st.sampled_from([head_dim, head_dim, 64])),
        "dtype_bytes": draw(st.sampled_from([1, 2])),
    }


@st.composite
def page(draw: st.DrawFn, kind: str, block_size: int, request_blocks: int) -> Page:
    if kind == "latent":
        role = draw(st.sampled_from(["latent", "indexed", "indexer"]))
        return LatentPage(block_size, draw(st.sampled_from([132, 576, 1152])), role=role)  # type: ignore[arg-type]
    if kind == "state":
        return StatePage(block_size, draw(st.integers(1, 400_000)), request_blocks)
    sizes = draw(attention(block_size))
    match kind:
        case "sliding":
            return SlidingPage(**sizes, window=draw(st.sampled_from([128, 512, 1024, 4096])))
        case "chunked":
            return ChunkedPage(**sizes, chunk=draw(st.sampled_from([1024, 8192])))
        case "cross":
            return CrossPage(**sizes)
    return FullPage(**sizes)


@st.composite
def layers(draw: st.DrawFn, request_blocks: int) -> list[Page]:
    """Up to four distinct layers, each many times over, in any order."""
    block_size = draw(BLOCK_SIZES)
    kinds = draw(
        st.lists(
            st.sampled_from(["full", "full", "sliding", "sliding", "chunked", "cross", "latent", "state"]),
            min_size=1,
            max_size=4,
        )
    )
    distinct = [draw(page(kind, block_size, request_blocks)) for kind in kinds]
    return draw(st.lists(st.sampled_from(distinct), min_size=1, max_size=60))


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_blocks_tokens_concurrency_refusal_and_longest_length_are_vllms(data: st.DataObject) -> None:
    mode = data.draw(st.sampled_from(["none", "align"]))
    pages = data.draw(layers(request_blocks=1 if mode == "none" else data.draw(st.sampled_from([2, 3]))))
    max_model_len = data.draw(st.integers(1, 2**20))
    in_flight = data.draw(st.sampled_from([0, 2048, 4096, 16384, 32768]))
    encoder = data.draw(st.sampled_from([1, 1500, 4096]))
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(pages) - 1)), max_size=3)) - {len(pages)})
    stages = [range(a, b) for a, b in zip([0, *cuts], [*cuts, len(pages)], strict=True)]

    config = vllm_config(max_model_len, in_flight_tokens=in_flight, encoder_tokens=encoder, mamba_cache_mode=mode)
    specs = [[spec(pages[layer]) for layer in stage] for stage in stages]
    try:
        ours = kv_cache(pages, block_size=16, stages=stages, in_flight_tokens=in_flight, encoder_tokens=encoder)
    except UnsupportedModelError:
        with pytest.raises(NotImplementedError):
            outcome(config, specs, [2**40] * len(stages))
        return
    needed = ours.blocks_per_request(max_model_len)
    available = [
        int(data.draw(st.floats(0, 3)) * needed * block) + data.draw(st.integers(0, 2)) * block
        for block in ours.stage_block_bytes
    ]
    theirs = outcome(config, specs, available)
    longest = ours.longest_model_len(available, max_model_len) or None
    if not ours.holds(available, max_model_len):
        assert theirs == Outcome(None, None, None, longest)
        return
    capacity = ours.capacity(available, max_model_len)
    assert theirs == Outcome(capacity.num_blocks, capacity.tokens, capacity.max_concurrency, longest)
