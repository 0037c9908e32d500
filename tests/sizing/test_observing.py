"""What a start says about each predicted term, by the meaning its release gives to the figures it logs."""

from datetime import date

import pytest

from sizing.gpu import GIB, Device, gpu, link_of
from sizing.observing import observations
from sizing.startup_log import StartupRecord

PREDICTED = {
    name: round(size * GIB)
    for name, size in (
        ("weights", 15.0),
        ("activations", 2.0),
        ("non-torch", 0.25),
        ("CUDA graphs", 0.6),
        ("KV cache", 55.0),  # of a limit of 72.85
    )
}


def measured(
    record: StartupRecord, device: Device | None = None, predicted: dict[str, int] | None = None
) -> dict[str, tuple[float, float]]:
    """Predicted and measured GiB by term."""
    found = observations(
        record, predicted or PREDICTED, model="org/m", device=device or gpu("H100"), as_of=date(2026, 11, 24)
    )
    return {
        entry.term: (round(entry.predicted_bytes / GIB, 2), round(entry.measured_bytes / GIB, 2)) for entry in found
    }


def test_up_to_0_26_every_term_has_a_figure_of_its_own() -> None:
    record = StartupRecord(
        vllm="0.26.0", load_gib=15.1, act_gib=2.3, nontorch_gib=0.2, cg_est_gib=0.7, cg_gib=0.6, kv_gib=54.5
    )
    assert measured(record) == {
        "weights": (15.0, 15.1),
        "activations": (2.0, 2.3),
        "non-torch": (0.25, 0.2),
        "CUDA graphs": (0.6, 0.7),  # the estimate, which is what the cache lost
        "KV cache": (54.55, 54.5),  # 55.0 - 0.1 - 0.3 + 0.05 - 0.1: what the other terms do not explain is left
    }


def test_since_0_27_the_peak_holds_the_graphs_and_weights_stand_with_non_torch() -> None:
    record = StartupRecord(vllm="0.27.1", load_gib=15.1, consumed_gib=15.4, act_gib=3.0, cg_est_gib=0.7, kv_gib=54.45)
    assert measured(record) == {
        "weights": (15.0, 15.1),
        "activations": (2.0, 2.3),
        "non-torch": (0.25, 0.3),
        "CUDA graphs": (0.6, 0.7),
        "KV cache": (54.45, 54.45),
    }


def test_what_is_said_only_as_a_sum_is_left_out() -> None:
    record = StartupRecord(vllm="0.27.1", consumed_gib=15.4, act_gib=3.0, kv_gib=54.45)
    assert measured(record) == {}
    eager = StartupRecord(vllm="0.27.1", load_gib=15.1, consumed_gib=15.4, act_gib=2.3, enforce_eager=True)
    assert measured(eager)["activations"] == (2.0, 2.3)


def test_a_runner_that_estimates_no_graphs_takes_nothing_for_them() -> None:
    record = StartupRecord(vllm="0.27.1", load_gib=15.1, consumed_gib=15.4, act_gib=1.0, kv_gib=54.45)
    assert "activations" not in measured(record)  # the estimate that the peak holds was not logged
    predicted = {name: size for name, size in PREDICTED.items() if name != "CUDA graphs"}
    assert measured(record, predicted=predicted)["activations"] == (2.0, 1.0)


def test_where_only_weights_and_cache_are_logged_the_rest_is_the_caches_error() -> None:
    record = StartupRecord(vllm="0.11.0", load_gib=15.0, kv_gib=54.9)
    # 0.11 takes nothing for graphs: 0.6 more than predicted should have been left, and 0.7 was not
    assert measured(record) == {"weights": (15.0, 15.0), "KV cache": (55.6, 54.9)}


def test_an_estimate_that_was_not_taken_from_the_cache_is_no_term() -> None:
    before = StartupRecord(vllm="0.19.0", load_gib=15.0, cg_est_gib=0.7, kv_gib=55.0)
    assert "CUDA graphs" not in measured(before)
    asked_for = StartupRecord(vllm="0.19.0", load_gib=15.0, cg_est_gib=0.7, kv_gib=55.0, cg_applied=True)
    assert measured(asked_for)["CUDA graphs"] == (0.6, 0.7)
    switched_off = StartupRecord(vllm="0.29.0", load_gib=15.0, cg_est_gib=0.7, kv_gib=55.0, cg_applied=False)
    assert "CUDA graphs" not in measured(switched_off)


def test_a_cache_of_given_bytes_measures_nothing() -> None:
    record = StartupRecord(vllm="0.26.0", load_gib=15.0, kv_gib=20.0, kv_cache_memory_bytes=20 * GIB)
    assert set(measured(record)) == {"weights"}


def test_the_cache_is_compared_only_where_it_was_predicted() -> None:
    predicted = {name: size for name, size in PREDICTED.items() if name != "KV cache"}
    assert set(measured(StartupRecord(load_gib=15.0, kv_gib=54.9), predicted=predicted)) == {"weights"}


def test_impossible_figures_are_left_out() -> None:
    # as the profiler of 0.27 reports them where memory is shared with the processor
    record = StartupRecord(vllm="0.27.1", load_gib=1.1, consumed_gib=3.35, act_gib=-28.1, cg_est_gib=0.04)
    assert set(measured(record, gpu("GB10"))) == {"weights", "non-torch", "CUDA graphs"}


def test_a_processors_checkpoint_is_its_weights_unless_they_are_held_in_another_type() -> None:
    cpu = Device("cpu", "x86_64", 16 * GIB, 16 * GIB)
    record = StartupRecord(vllm="0.32.0", device="cpu", ckpt_gib=15.2, kv_gib=2.82, consumed_gib=1.0)
    (entry,) = observations(record, PREDICTED, model="org/m", device=cpu, as_of=date(2026, 11, 24))
    assert (entry.term, entry.gpu, entry.link, entry.measured_bytes) == ("weights", "cpu", "none", round(15.2 * GIB))
    assert measured(StartupRecord(device="cpu", ckpt_gib=30.0), cpu) == {}  # float32 on disk, bfloat16 in memory


@pytest.mark.parametrize(("name", "link"), [("H100", "nvlink"), ("L4", "pcie"), ("GB10", "unified")])
def test_unified_memory_is_a_link_of_its_own(name: str, link: str) -> None:
    assert link_of(gpu(name)) == link


def test_the_start_is_told_by_its_settings_and_the_card_by_the_catalogues_name() -> None:
    record = StartupRecord(vllm="0.26.0", tp=2, max_num_seqs=64, gmu=0.9, enforce_eager=False, load_gib=15.0)
    device = Device("cuda", "NVIDIA H100 80GB HBM3", 80 * GIB, 80 * GIB, link="nvlink")
    (entry,) = observations(record, PREDICTED, model="org/m", device=device, as_of=date(2026, 11, 24))
    assert (entry.gpu, entry.tensor_parallel_size, entry.release) == ("H100", 2, "0.26.0")
    assert entry.settings == "max_num_seqs 64, gpu_memory_utilization 0.9, enforce_eager False"
