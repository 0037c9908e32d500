"""One real `berth serve` with two real engines for the whole test session."""

from collections.abc import Iterator

import pytest

from tests.integration.stack import Stack, serving

CONFIG = """\
gateway: {port: 0, isolate_caches: true}
models:
  - model: demo
    replicas: 2
    max_model_len: 2048
    max_num_seqs: 16
    dtype: float32
    kv_cache_memory_bytes: 536870912
    env: {VLLM_ENABLE_RESPONSES_API_STORE: "1"}
    extra_args: [--enable-auto-tool-choice, --tool-call-parser=hermes]
"""


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two replicas of the embedded model behind one gateway, with an API key."""
    folder = tmp_path_factory.mktemp("stack")
    config = folder / "berth.yaml"
    config.write_text(CONFIG)
    with serving(folder, str(config)) as running:
        yield running
