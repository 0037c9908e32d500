"""Which rules a release of vLLM follows: the versions people write, and equality with old releases' own arithmetic.

The file holds what each old release answered itself (tests/sizing/old_releases.py).
"""

import json
from pathlib import Path
from typing import Any

import pytest

from sizing.errors import UnsupportedModelError
from sizing.gpu import GIB
from sizing.kv_cache import KvCache, kv_cache
from sizing.pages import ChunkedPage, FullPage, Page, SlidingPage, StatePage
from sizing.release import NEWEST, Release, batch_defaults, parse_release
from sizing.weights import weights_per_rank_bytes
from tests.sizing.models import published
from tests.sizing.old_releases import order, stages_of

OLD: dict[str, list[dict[str, Any]]] = json.loads(
    Path(__file__).with_name("data").joinpath("old_releases.json").read_text()
)


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("0.32.0", Release(32)),
        ("0.11.0rc2.dev98", Release(11)),
        ("0.11.1.dev12", Release(11)),  # twelve commits after 0.11.0
        ("0.20.1.dev1+g1234", Release(20)),
        ("0.11.1.dev400", Release(11, 1)),  # on its way to the next
        ("0.19.2rc1.dev8", Release(19, 2)),  # after its first candidate
        ("0.12.0.dev3", Release(12)),
        ("0.8.x (log 03-29)", Release(8)),
        (">=0.27", Release(27)),
        ("0.6.x ROCm (log 12-25)", Release(6)),
        ("docker glm53-flash (~0.29+)", Release(29)),
        ("v0.10.1+gfe7f", Release(10, 1)),
        ("0.10.1.1", Release(10, 1)),
        ("1.2.0", Release(1002)),
        ("0.2x (2026-06-10)", NEWEST),  # one of 0.20 to 0.29, not 0.2
        ("glm-5.3 nightly", NEWEST),
        ("", NEWEST),
        (None, NEWEST),
    ],
)
def test_what_people_and_logs_write_is_a_release(text: str | None, release: Release) -> None:
    assert parse_release(text) == release
    assert parse_release(text).known is (text not in ("0.2x (2026-06-10)", "glm-5.3 nightly", "", None))
    assert str(Release(1002, 1)) == "1.2.1"


def test_an_engine_named_without_a_version_is_one_that_had_it() -> None:
    assert parse_release(None, "V0") < Release(8)
    assert parse_release("0.8.2").engine == "V1"
    assert parse_release("0.8.2", "V0").refusal == "tokens"
    assert [parse_release(text).on_card(7).engine for text in ("0.7.3", "0.9.1", "0.10.2", None)] == [
        "V0",
        "V0",
        "V1",
        "V1",
    ]
    assert parse_release("0.9.1").on_card(8).engine == "V1"


def cache_of(question: dict[str, Any], release: Release) -> KvCache:
    """The same layers by our rules."""
    pages: list[Page] = []
    for _, kind, heads, head_dim, window in order(question):
        sizes = (16, heads, head_dim, head_dim, 2)
        match kind:
            case "sliding":
                pages.append(SlidingPage(*sizes, window=window))
            case "chunked":
                pages.append(ChunkedPage(*sizes, chunk=window))
            case "state":
                pages.append(StatePage(16, 16 * heads * 2 * head_dim * 2))
            case _:
                pages.append(FullPage(*sizes))
    in_flight = release.in_flight_tokens(question["max_num_batched_tokens"], 1, overlapped=True)
    stages = stages_of(len(pages), question["stages"])
    return kv_cache(pages, block_size=16, stages=stages, in_flight_tokens=in_flight, release=release)


@pytest.mark.parametrize("version", OLD)
def test_an_old_release_is_answered_as_it_would_answer(version: str) -> None:
    release = parse_release(version)
    for question in OLD[version]:
        said = question["outcome"]
        try:
            cache = cache_of(question, release)
        except UnsupportedModelError:
            assert said in ({"ungrouped": True}, {"refused": True}), question  # memory is looked at first
            continue
        available, length = question["memory"][: question["stages"]], question["max_model_len"]
        if not cache.holds(available, length):
            assert said == {"refused": True}, question
            continue
        capacity = cache.capacity(available, length)
        ours = {
            "num_blocks": capacity.num_blocks,
            "tokens": capacity.tokens,
            "max_concurrency": f"{capacity.max_concurrency:.2f}",
        }
        assert ours == said, question


def test_a_processor_card_and_version_give_the_batch() -> None:
    h200, a100, b200 = int(139.8 * 2**30), int(79.1 * 2**30), 178 * 2**30
    assert batch_defaults(NEWEST, memory_bytes=b200, name="B200") == (1024, 16384)
    assert batch_defaults(Release(24), memory_bytes=b200, name="B200") == (1024, 8192)
    assert batch_defaults(NEWEST, memory_bytes=h200, name="H200") == (1024, 8192)
    assert batch_defaults(NEWEST, memory_bytes=a100, name="A100 80GB") == (256, 2048)
    assert batch_defaults(Release(8, 5), memory_bytes=a100, name="A100 80GB") == (1024, 8192)
    assert batch_defaults(NEWEST, memory_bytes=h200, name="GB10", unified=True) == (256, 2048)
    assert batch_defaults(NEWEST, memory_bytes=a100, name="A100", usage="offline") == (256, 8192)
    v0 = parse_release("0.7.3")
    assert batch_defaults(v0, memory_bytes=a100, name="A100", max_model_len=20_000) == (256, 20_000)


def test_a_build_with_a_date_behind_the_last_of_two_engines_is_the_newest() -> None:
    assert parse_release("dev 4d2a68d64 (2026-08)", "V1") == NEWEST
    assert parse_release("dev (2025-03)", "V1") == Release(11)


def test_a_workspace_for_latent_attention_is_counted_with_the_model() -> None:
    """DeepSeek-V2-Lite on H100s, vLLM 0.19.0: 29.43, 14.83 and 7.51 GiB on one rank of 1, 2 and 4."""
    shape = published("deepseek-ai/DeepSeek-V2-Lite")
    for ranks, logged_gib in ((1, 29.43), (2, 14.83), (4, 7.51)):
        found = weights_per_rank_bytes(shape, ranks, compute_major=9, release=Release(19))
        assert found / GIB == pytest.approx(logged_gib, abs=0.006)
        for other in (Release(11, 1), Release(25)):
            assert found - weights_per_rank_bytes(shape, ranks, compute_major=9, release=other) == 128 << 20
