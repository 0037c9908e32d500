"""The calibration table: what moves a prediction, by how much, how sure it is then, and how the table is kept."""

import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sizing.calibration import (
    PREDICTOR,
    TERMS,
    CalibratedTerm,
    Calibration,
    Observation,
    load_calibration,
    save_calibration,
)
from sizing.errors import CalibrationError
from sizing.gpu import GIB, gpu
from sizing.plan import answer
from sizing.question import Question
from sizing.release import NEWEST
from tests.sizing.models import published

EIGHT_ON_H100 = Question(published("meta-llama/Llama-3.1-8B-Instruct"), gpu("H100"), max_model_len=8192)
DAY = date(2026, 11, 24)


def seen(term: CalibratedTerm, predicted_gib: float, measured_gib: float, **changes: object) -> Observation:
    base = Observation(
        term=term,
        gpu="H100",
        link="nvlink",
        tensor_parallel_size=1,
        release="0.27.1",
        predicted_bytes=round(predicted_gib * GIB),
        measured_bytes=round(measured_gib * GIB),
        model="org/a",
        as_of=DAY,
    )
    return replace(base, **changes)  # type: ignore[arg-type]  # fields by name


def table(*entries: Observation) -> Calibration:
    return Calibration().merged(entries)


def ask(
    calibration: Calibration, term: str, value: float, low: float, high: float, **changes: object
) -> tuple[float, float, float]:
    """The corrected value and band, in GiB."""
    question = {"gpu": "H100", "link": "nvlink", "tensor_parallel_size": 1, "release": "0.27.0", **changes}
    sizes = {"predicted_bytes": value, "low_bytes": low, "high_bytes": high}
    in_bytes = {name: round(size * GIB) for name, size in sizes.items()}
    found = calibration.corrected(term, **in_bytes, **question)  # type: ignore[arg-type]  # names as above
    return found[0] / GIB, found[1] / GIB, found[2] / GIB


def test_an_empty_table_changes_nothing() -> None:
    assert ask(Calibration(), "activations", 2.0, 1.0, 3.0) == (2.0, 1.0, 3.0)


def test_a_ratio_carries_over_to_a_larger_model_and_bytes_do_not_grow_with_it() -> None:
    # four starts of other models, all measured at twice the prediction: believed by 4/5, so 2**0.8
    entries = [seen("activations", size, 2 * size, model=f"org/{size}") for size in (1.0, 1.5, 2.0, 3.0)]
    value, low, high = ask(table(*entries), "activations", 4.0, 3.0, 5.0)
    assert value == pytest.approx(4.0 * 2**0.8, rel=1e-3)
    assert high >= 8.0 - 0.01  # the band holds what was seen
    assert low < value
    # and half a GiB more of non-torch memory stays half a GiB: 0.8 of it
    offsets = [seen("non-torch", 0.25, 0.75, model=f"org/{name}") for name in "abcd"]
    assert ask(table(*offsets), "non-torch", 2.0, 1.5, 2.5)[0] == pytest.approx(2.4, abs=1e-3)


def test_one_odd_start_never_moves_a_value_out_of_its_band() -> None:
    value, _, high = ask(table(seen("activations", 0.1, 9.0)), "activations", 1.0, 0.8, 1.3)
    assert value == pytest.approx(1.3, rel=1e-3)
    assert 1.3 < high < 2.0  # wider than it was, and not ninety times as high


def test_the_oddest_of_five_does_not_count() -> None:
    alike = [seen("non-torch", 0.25, 0.30, model=f"org/{name}") for name in "abcd"]
    calm = ask(table(*alike), "non-torch", 0.25, 0.0, 1.0)
    odd = ask(table(*alike, seen("non-torch", 0.25, 7.0, model="org/odd")), "non-torch", 0.25, 0.0, 1.0)
    assert odd[0] == pytest.approx(calm[0], abs=0.01)
    assert odd[2] < calm[2] + 0.01


def test_the_band_narrows_with_every_start_and_never_to_nothing() -> None:
    widths = []
    for count in (0, 1, 3, 10, 40):
        entries = [seen("weights", 10.0, 10.0, model=f"org/{number}") for number in range(count)]
        _, low, high = ask(table(*entries), "weights", 20.0, 19.0, 21.0)
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) == len(widths)
    assert widths[-1] > 0.01  # what two decimals cannot show


def test_the_band_is_as_wide_as_starts_differ() -> None:
    entries = [
        seen("non-torch", 0.5, measured, model=f"org/{number}")
        for number, measured in enumerate((0.1, 0.3, 0.5, 0.7, 0.9, 0.5, 0.4))
    ]
    value, low, high = ask(table(*entries), "non-torch", 0.5, 0.45, 0.55)
    assert value == pytest.approx(0.5, abs=0.01)
    assert high - low > 0.3  # the answer's own band was 0.1


def test_a_difference_that_two_decimals_cannot_show_is_none() -> None:
    entry = seen("weights", 0.2506, 0.25)
    assert ask(table(entry), "weights", 0.2506, 0.24, 0.26, model="org/a")[0] == pytest.approx(0.2506)


NEAREST = [
    seen("non-torch", 1.0, 1.1, model="org/asked"),
    seen("non-torch", 1.0, 1.2, model="org/b"),
    seen("non-torch", 1.0, 1.3, model="org/c", release="0.11.0"),
    seen("non-torch", 1.0, 1.4, model="org/d", gpu="H200"),
    seen("non-torch", 1.0, 1.5, model="org/e", gpu="L4", link="pcie"),
]


@pytest.mark.parametrize(
    ("question", "starts", "moved"),
    [
        ({"model": "org/asked"}, 1, 0.1 / 1.5),  # that model, card and minor version: 1 / (1 + 0.5)
        ({}, 2, 0.15 * 2 / 3),  # any model on them: 2 / (2 + 1) of the median
        ({"release": "0.32.0"}, 3, 0.2 * 3 / 5),  # the card in any version: 3 / (3 + 2)
        ({"gpu": "A100-80GB"}, 4, 0.25 * 4 / 8),  # the link: 4 / (4 + 4)
        ({"gpu": "NVIDIA H100 80GB HBM3", "link": "none"}, 2, 0.15 * 2 / 3),  # as the driver names it
        ({"gpu": "A40", "link": "none"}, 0, 0.0),
        ({"tensor_parallel_size": 2}, 0, 0.0),  # one rank says nothing of several
        ({"gpu": "cpu"}, 0, 0.0),
    ],
)
def test_the_nearest_starts_count(question: dict[str, object], starts: int, moved: float) -> None:
    calibration = table(*NEAREST)
    asked = {"gpu": "H100", "link": "nvlink", "tensor_parallel_size": 1, "release": "0.27.0", **question}
    assert calibration.count("non-torch", **asked) == starts  # type: ignore[arg-type]  # names as above
    assert ask(calibration, "non-torch", 1.0, 0.5, 1.5, **question)[0] == pytest.approx(1.0 + moved, abs=1e-6)


def test_a_models_weights_are_its_own_on_any_card_but_a_processor_says_nothing_of_cards() -> None:
    elsewhere = seen("weights", 10.0, 11.0, gpu="L4", link="pcie")
    assert ask(table(elsewhere), "weights", 10.0, 9.9, 10.1, model="org/a")[0] > 10.5
    on_cpu = seen("weights", 10.0, 11.0, gpu="cpu", link="none")
    assert ask(table(on_cpu), "weights", 10.0, 9.9, 10.1, model="org/a", link="none")[0] == 10.0


def test_a_term_predicted_as_none_stays_none() -> None:
    calibration = table(seen("CUDA graphs", 0.5, 1.0))
    assert ask(calibration, "CUDA graphs", 0.0, 0.0, 0.0) == (0.0, 0.0, 0.0)
    assert ask(calibration, "processes", 2.5, 2.0, 3.0) == (2.5, 2.0, 3.0)  # and one that no log measures, itself


sizes = st.floats(0.01, 100)


@given(
    term=st.sampled_from(TERMS),
    errors=st.lists(st.tuples(sizes, sizes), max_size=8),
    value=sizes,
    down=st.floats(0, 1),
    up=st.floats(0, 3),
)
def test_whatever_was_seen_the_value_lies_in_its_band(
    term: CalibratedTerm, errors: list[tuple[float, float]], value: float, down: float, up: float
) -> None:
    entries = [seen(term, *pair, model=f"org/{number}") for number, pair in enumerate(errors)]
    found, low, high = ask(table(*entries), term, value, value * (1 - down), value * (1 + up))
    assert low <= found <= high
    if term != "KV cache":
        assert low >= 0


def left_for_kv(off_gib: float, starts: int) -> Calibration:
    """So many like starts of an 8B on an H100, each with that much more left than the sum said, and no line on why."""
    named = {"model": EIGHT_ON_H100.model.name, "release": str(NEWEST)}
    return table(*(seen("KV cache", 50, 50 + off_gib, settings=str(start), **named) for start in range(starts)))


@pytest.mark.parametrize(("starts", "trust"), [(1, 1 / 1.5), (3, 3 / 3.5)])
def test_what_starts_left_for_the_kv_cache_moves_the_next_answer(starts: int, trust: float) -> None:
    """The usual log has two lines of memory, the weights and this: what is between them is taken for the work's."""
    plain = answer(EIGHT_ON_H100)
    found = answer(replace(EIGHT_ON_H100, corrections=left_for_kv(-1.0, starts)))
    assert (plain.kv_cache_bytes - found.kv_cache_bytes) / GIB == pytest.approx(trust, abs=1e-6)
    assert sum(term.bytes for term in found.terms) + found.kv_cache_bytes == found.limit_bytes
    low, high = found.kv_cache_bytes_range.low, found.kv_cache_bytes_range.high
    assert low <= plain.kv_cache_bytes - GIB <= high
    moved = [term.name for term, before in zip(found.terms, plain.terms, strict=True) if term.bytes != before.bytes]
    assert moved == ["activations"]
    assert [term.name for term in found.terms if term.why.endswith("; moved by your own starts")] == moved


def test_where_logs_tell_the_work_itself_what_is_left_says_no_more() -> None:
    named = {"model": EIGHT_ON_H100.model.name, "release": str(NEWEST)}
    told = table(seen("activations", 1.0, 1.2, **named))
    both = told.merged(left_for_kv(-1.0, 1).entries)
    assert (
        answer(replace(EIGHT_ON_H100, corrections=both)).terms == answer(replace(EIGHT_ON_H100, corrections=told)).terms
    )


def test_no_work_takes_less_than_nothing() -> None:
    found = answer(replace(EIGHT_ON_H100, corrections=left_for_kv(60.0, 3)))
    assert {term.bytes for term in found.terms if term.name == "activations"} == {0}


def test_starts_that_left_what_was_predicted_narrow_the_range() -> None:
    plain = answer(EIGHT_ON_H100)
    found = answer(replace(EIGHT_ON_H100, corrections=left_for_kv(0.0, 5)))
    assert found.kv_cache_bytes == plain.kv_cache_bytes
    assert found.kv_cache_bytes_range.low > plain.kv_cache_bytes_range.low


def test_the_same_start_again_replaces_what_it_said_before() -> None:
    old = seen("weights", 10.0, 11.0, settings="max_model_len 8192")
    new = replace(old, measured_bytes=round(10.5 * GIB), as_of=date(2026, 12, 1))
    other = replace(old, settings="max_model_len 4096")
    assert set(table(old, other).merged([new]).entries) == {new, other}


def test_the_table_is_kept_in_readable_json(tmp_path: Path) -> None:
    path = tmp_path / "not yet there" / "calibration.json"
    assert load_calibration(path) == Calibration()
    kept = table(*NEAREST)
    save_calibration(path, kept)
    assert load_calibration(path) == kept
    document = json.loads(path.read_text())
    assert document["schema_version"] == 1
    assert document["observations"][0]["as_of"] == "2026-11-24"
    assert [file.name for file in path.parent.iterdir()] == ["calibration.json"]


def test_what_another_sum_predicted_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    older = replace(NEAREST[0], predictor=PREDICTOR - 1)
    save_calibration(path, table(older, NEAREST[1]))
    assert load_calibration(path) == table(NEAREST[1])


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.mkdir()  # nothing can be renamed onto a folder
    with pytest.raises(OSError, match="irectory"):
        save_calibration(path, table(*NEAREST))
    assert [file.name for file in tmp_path.iterdir()] == ["calibration.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not a calibration table"),
        ("[]", "not a calibration table"),
        ('{"schema_version": 9, "observations": []}', "its schema_version is 9, not 1"),
        ('{"schema_version": 1}', "not a calibration table"),
        ('{"schema_version": 1, "observations": [{"term": "weights"}]}', "not a calibration table"),
        ('{"schema_version": 1, "observations": 7}', "not a calibration table"),
    ],
)
def test_a_broken_table_is_refused_in_one_line_with_the_way_out(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(content)
    with pytest.raises(CalibrationError) as caught:
        load_calibration(path)
    assert said in str(caught.value)
    assert "move it away to start afresh" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_term_or_a_number_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    for name, value in (("term", "luck"), ("measured_bytes", "many"), ("as_of", "yesterday")):
        save_calibration(path, table(NEAREST[0]))
        document = json.loads(path.read_text())
        document["observations"][0][name] = value
        path.write_text(json.dumps(document))
        with pytest.raises(CalibrationError, match="not a calibration table"):
            load_calibration(path)
