"""The catalogue: every card by any of its spellings, with the memory its driver reports."""

import pytest

from sizing.errors import UnknownGpuError
from sizing.gpu import GIB, catalogue, gpu


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("H100", "H100"),
        (" h 100 ", "H100"),
        ("NVIDIA H200", "H200"),
        ("RTX 4090", "RTX4090"),
        ("NVIDIA GeForce RTX 5090", "RTX5090"),
        ("rtx-pro-6000", "RTXPRO6000"),
        ("Tesla T4", "T4"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("a100-40gb", "A100-40GB"),
        ("AMD Instinct MI300X", "MI300X"),
        ("NVIDIA A100 80GB PCIe", "A100-PCIe-80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-PCIe-40GB"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("h100 nvl", "H100-NVL"),
        ("A10", "A10"),
        ("a6000", "RTXA6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX6000Ada"),
        ("RTX 4070 Ti Super", "RTX4070TiSUPER"),
        ("NVIDIA GeForce RTX 5080", "RTX5080"),
        ("rtx 4060 ti 16gb", "RTX4060Ti-16GB"),
        ("AMD Instinct MI355X", "MI355X"),
        ("NVIDIA A800-SXM4-80GB", "A800-80GB"),
        ("Tesla V100-SXM2-32GB", "V100-32GB"),
        ("NVIDIA GeForce RTX 2080 Ti", "RTX2080Ti"),
        ("rtx 5060 ti 16gb", "RTX5060Ti-16GB"),
        ("NVIDIA RTX 2000 Ada Generation", "RTX2000Ada"),
    ],
)
def test_a_card_by_any_spelling(spelling: str, name: str) -> None:
    assert gpu(spelling).name == name


def test_every_card_is_empty_and_smaller_than_its_marketing_says() -> None:
    sold_gb = {"T4": 16, "L4": 24, "L40S": 48, "RTX3090": 24, "RTX4090": 24, "RTX5090": 32, "A40": 48, "A100-40GB": 40}
    sold_gb |= {"A100-80GB": 80, "H100": 80, "GH200": 96, "H200": 141, "B200": 192, "B300": 288, "MI300X": 192}
    for card in catalogue():
        assert card.free_bytes == card.memory_bytes
        if card.name in sold_gb:
            assert 0.85 * sold_gb[card.name] * GIB < card.memory_bytes < sold_gb[card.name] * GIB


def test_a_board_without_nvlink_is_a_card_of_its_own() -> None:
    for board, sister in (("H100 PCIe", "H100"), ("A100 80GB PCIe", "A100-80GB"), ("A100-PCIE-40GB", "A100-40GB")):
        assert (gpu(board).link, gpu(sister).link) == ("pcie", "nvlink")
        assert gpu(board).memory_bytes == pytest.approx(gpu(sister).memory_bytes, rel=0.002)


def test_h200_reports_what_vllm_logged_on_it() -> None:
    assert gpu("H200").memory_bytes == pytest.approx(139.8 * GIB, abs=1)


def test_only_gb10_shares_its_memory() -> None:
    assert [card.name for card in catalogue() if card.unified] == ["GB10"]


@pytest.mark.parametrize(
    ("asked", "near"), [("A100", "A100-40GB or A100-80GB"), ("H10", "H100"), ("RTX4081", "RTX4080"), ("L45", "L4")]
)
def test_an_unknown_card_is_refused_with_near_names(asked: str, near: str) -> None:
    with pytest.raises(UnknownGpuError) as caught:
        gpu(asked)
    assert asked in str(caught.value)
    assert near in str(caught.value)


@pytest.mark.parametrize("asked", ["", "   ", "toaster", "💥"])
def test_a_card_like_none_is_refused_with_all_names(asked: str) -> None:
    with pytest.raises(UnknownGpuError, match=r"known are T4, L4.*MI300X"):
        gpu(asked)
