"""The cards' published figures: complete, consistent with each other, and honest about what is not published."""

from datetime import date

import pytest

from sizing.cards import Card, card, cards, detected_processor, processor
from sizing.errors import QuestionError, UnknownGpuError
from sizing.gpu import catalogue


def test_every_card_of_the_catalogue_has_its_figures_and_a_source() -> None:
    assert [found.name for found in cards()] == [device.name for device in catalogue()] + ["CPU"]
    for found in cards():
        assert found.source
        if found.name != "CPU":
            assert found.bandwidth
            assert found.power_w
            assert found.link_bandwidth


@pytest.mark.parametrize(
    ("name", "tb_s", "tera_16bit", "tera_fp8", "watts"),
    [
        ("Tesla T4", 0.320, 65, None, 70),
        ("NVIDIA A100-SXM4-80GB", 2.039, 312, None, 400),
        ("h100", 3.35, 989.4, 1978.9, 700),
        ("NVIDIA H200", 4.8, 989.4, 1978.9, 700),
        ("b200", 8.0, 2250, 4500, 1000),
        ("MI300X", 5.3, 1307.4, 2614.9, 750),
        ("H100 PCIe", 2.0, 756.5, 1513, 350),
        ("H20", 4.0, 148, 296, 400),
    ],
)
def test_figures_are_the_data_sheets(
    name: str, tb_s: float, tera_16bit: float, tera_fp8: float | None, watts: float
) -> None:
    found = card(name)
    assert found.bandwidth == pytest.approx(tb_s * 1e12)
    assert found.flops_16bit == pytest.approx(tera_16bit * 1e12)
    assert found.flops_fp8 == (None if tera_fp8 is None else pytest.approx(tera_fp8 * 1e12))
    assert found.power_w == watts


def test_dense_rates_double_from_type_to_type() -> None:
    """A sparse figure slipped in among dense ones would be twice too high."""
    for found in cards():
        if found.flops_16bit and found.flops_fp8:
            assert 1.98 < found.flops_fp8 / found.flops_16bit < 2.05
        if found.flops_fp8 and found.flops_fp4:
            assert 2.0 <= found.flops_fp4 / found.flops_fp8 <= 4.0
        if found.bandwidth and found.flops_16bit and found.name != "CPU":
            assert 35 < found.flops_16bit / found.bandwidth < 460, found.name  # of H20 and of RTX 5000 Ada


def test_what_is_not_published_is_none() -> None:
    spark = card("GB10")
    assert (spark.flops_16bit, spark.flops_fp8, spark.flops_fp4) == (None, None, 500e12)
    assert card("A100-40GB").flops_fp8 is None
    assert card("B300").ops_int8 is None
    assert card("GB10").price is None
    assert card("MI300X").compute_capability is None


def test_a_price_has_its_date_kind_and_source() -> None:
    prices = {found.name: found.price for found in cards() if found.price}
    assert len(prices) >= 12
    for price in prices.values():
        assert 0.1 < price.usd_per_hour < 15
        assert date(2025, 1, 1) < price.as_of <= date(2026, 11, 23)
        assert price.source
    assert prices["H100-PCIe"].usd_per_hour < prices["H100"].usd_per_hour
    assert prices["H200"].usd_per_hour > prices["H100"].usd_per_hour > prices["RTX4090"].usd_per_hour


def test_a_processor_by_its_memory_and_clock() -> None:
    found = processor(memory_channels=8, megatransfers_s=4800, cores=32, ghz=2.5, flops_per_cycle=1024, power_w=270)
    assert found.bandwidth == pytest.approx(307.2e9)  # 8 channels x 4.8 GT/s x 8 bytes
    assert found.flops_16bit == pytest.approx(81.92e12)  # 32 x 2.5e9 x 1024
    assert found.link_bandwidth is None


CPUINFO = """processor\t: {0}
cpu MHz\t\t: {1}
physical id\t: 0
core id\t\t: {2}
flags\t\t: fpu sse2 avx2 avx512f avx512_bf16
"""


def test_this_machine_by_what_its_kernel_says() -> None:
    """Two cores of two threads each, at 3 GHz at most, 128 operations a cycle each."""
    text = "\n".join(CPUINFO.format(n, 2000 + 1000 * (n == 3), n // 2) for n in range(4))
    found = detected_processor(text, memory_gb_s=80)
    assert found.flops_16bit == pytest.approx(2 * 3e9 * 128)
    assert found.bandwidth == 80e9
    assert detected_processor(text).bandwidth is None
    with pytest.raises(QuestionError, match=r"processor\(\)"):
        detected_processor("processor : 0\n")


def test_the_processor_of_the_table_says_nothing() -> None:
    found: Card = card("cpu")
    assert (found.bandwidth, found.flops_16bit, found.price) == (None, None, None)


def test_impossible_processors_and_unknown_cards_are_refused() -> None:
    with pytest.raises(QuestionError, match="above 0"):
        processor(memory_channels=0, megatransfers_s=4800, cores=1, ghz=1, flops_per_cycle=1, power_w=None)
    with pytest.raises(UnknownGpuError, match="RTX4080"):
        card("RTX4081")
