"""The engine's log in plain words, and the pause between its restarts."""

from pathlib import Path

import pytest

from serving.engine import EngineProcess, EngineSpec
from serving.supervisor import back_off_s
from sizing.question import EngineSettings

SETTINGS = EngineSettings(
    max_model_len=2048,
    max_num_seqs=4,
    max_num_batched_tokens=None,
    gpu_memory_utilization=None,
    kv_cache_memory_bytes=2**28,
    tensor_parallel_size=1,
    kv_cache_dtype="auto",
)


def test_back_off_grows_and_stops_growing() -> None:
    assert [back_off_s(failures) for failures in range(9)] == [0, 1, 2, 4, 8, 16, 30, 30, 30]


@pytest.mark.engine
def test_a_start_that_fails_leaves_its_reason_at_the_end_of_the_log(tmp_path: Path) -> None:
    """vLLM itself, started on a folder without a model: it ends, and its log says why."""
    spec = EngineSpec(
        name="broken/0",
        model=str(tmp_path),
        served_model_name="broken",
        settings=SETTINGS,
        url=f"unix:{tmp_path}/e.sock",
        log_path=tmp_path / "logs" / "broken-0.log",
    )
    (tmp_path / "e.sock").touch()  # as a killed engine leaves it
    spec.log_path.parent.mkdir()
    spec.log_path.write_text("from an earlier start\n")
    from serving.config import child_environment

    process = EngineProcess(spec, child_environment({"HF_HUB_OFFLINE": "1"}))
    assert not (tmp_path / "e.sock").exists()
    while process.exit_status() is None:
        process.follow_log()
    assert process.exit_status() == 1
    lines = process.last_lines(200)
    assert "from an earlier start" not in lines
    assert any("config.json" in line for line in lines)
