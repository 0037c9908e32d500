"""The page and the picture: whole in themselves, well formed, the same numbers in words, readable contrast."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from sizing.chart import Line, chart
from sizing.compare import Comparison, CurvePoint, Verdict, Workload, compare, option
from sizing.cost import ApiPrice
from sizing.gpu import GIB, gpu
from sizing.log_lines import log_lines
from sizing.outlook import outlook
from sizing.page import html_page
from sizing.picture import svg_picture
from sizing.plan import answer
from sizing.question import Question
from sizing.sheet import Sheet, answer_sheet, comparison_matrices, comparison_sheet
from sizing.speed import Estimate
from sizing.style import variables
from sizing.users import LatencyBound
from tests.sizing.models import published, smollm2

LLAMA_8B = published("meta-llama/Llama-3.1-8B-Instruct")
VOID = {"meta", "br", "link", "img"}


class _Page(HTMLParser):
    """Text of a page, and whether its tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> str:
    parser = _Page()
    parser.feed(page)
    assert parser.open == []
    return " ".join(" ".join(parser.text).split())


def parsed(picture: str) -> ElementTree.Element:
    return ElementTree.fromstring(picture)  # noqa: S314 - our own output


def comparison() -> Comparison:
    options = [option("T4"), option("L4"), option("H100"), option("2xH100")]
    base = Question(LLAMA_8B, gpu("L4"), max_model_len=8192)
    load = Workload(users=300, bound=LatencyBound(2.0, 0.05))
    return compare(base, options, load, forecaster=outlook, api=ApiPrice(0.5, 1.5))


def compared_sheet(found: Comparison) -> Sheet:
    return comparison_sheet(found, comparison_matrices(found))


def one(model_len: int | None = None) -> Sheet:
    question = Question(LLAMA_8B, gpu("L4"), max_model_len=model_len)
    return answer_sheet(question, answer(question))


@pytest.mark.parametrize("sheet", [compared_sheet(comparison()), one(), one(131_072)])
def test_nothing_is_fetched_and_nothing_runs(sheet: Sheet) -> None:
    for made in (html_page(sheet), svg_picture(sheet)):
        assert not re.search(r"<script|@import|url\(|src=|href=|javascript:|\son\w+=", made)
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", made)
        assert "prefers-color-scheme:dark" in made


@pytest.mark.parametrize("sheet", [compared_sheet(comparison()), one(), one(131_072)])
def test_both_are_well_formed_and_titled(sheet: Sheet) -> None:
    root = parsed(svg_picture(sheet))
    assert root.attrib["role"] == "img"
    title, description = root[0], root[1]
    assert title.text == sheet.title
    assert description.text is not None
    assert "KV cache" in description.text or "missing" in description.text
    text = read(html_page(sheet))
    assert sheet.title in text
    assert sheet.lead in text


def test_the_page_of_an_answer_has_every_number_as_text() -> None:
    question = Question(LLAMA_8B, gpu("H100"))
    found = answer(question)
    text = read(html_page(answer_sheet(question, found)))
    for term in found.terms:
        assert f"{term.name} {term.bytes / GIB:.2f}" in text
        assert term.why in text
    for line in log_lines(question, found):
        assert line.text in text
    assert f"{found.kv_cache_tokens_range.low:,} to {found.kv_cache_tokens_range.high:,}" in text
    assert "Context by concurrency on H100" in text


def test_the_page_of_a_comparison_has_speed_money_and_matrix() -> None:
    found = comparison()
    text = read(html_page(compared_sheet(found)))
    money = found.rows[2].money
    assert money is not None
    assert money.tokens is not None
    assert f"${money.tokens.blended_usd:.2f}" in text
    assert money.price.as_of.isoformat() in text
    assert "cheaper than the API from" in text
    assert "Output tokens per second" in text
    assert "Context by concurrency on " in text
    assert "takes 1" in text  # why the T4 does not


def test_the_page_without_speed_promises_none() -> None:
    base = Question(LLAMA_8B, gpu("L4"), max_model_len=8192)
    text = read(html_page(compared_sheet(compare(base, [option("L4"), option("H100")], Workload()))))
    assert "TTFT" not in text
    assert "$3.99" in text


def test_a_name_cannot_break_out() -> None:
    question = Question(published("Qwen/Qwen3-8B"), gpu("H100"))
    shown = answer_sheet(question, answer(question))
    named = replace(shown, title='<script>alert(1)</script> & "x"')
    assert "<script" not in html_page(named)
    assert parsed(svg_picture(named))[0].text == '<script>alert(1)</script> & "x"'


def test_a_long_name_ends_in_dots_within_the_picture() -> None:
    """In bold a letter of 26 is some 17.7 wide: 50 of them are the 896 between the margins."""
    shown = replace(one(), title="m" * 80)
    (drawn,) = [
        text for text in parsed(svg_picture(shown)).iter("{http://www.w3.org/2000/svg}text") if "mm" in str(text.text)
    ]
    assert drawn.text == "m" * 49 + "…"


def test_what_is_drawn_says_its_unit() -> None:
    assert "GiB of one card." in read(html_page(one()))
    words = "".join(parsed(svg_picture(one())).itertext())
    assert "limit 20.27 GiB" in words


def test_a_bar_that_needs_more_than_the_card_shows_where_the_card_ends() -> None:
    assert 'class="edge"' in html_page(one(131_072))
    assert 'class="edge"' not in html_page(one(8192))


def test_wide_differences_are_drawn_by_their_logarithm() -> None:
    def line(first: float, last: float) -> Line:
        points = tuple(
            CurvePoint(at, Estimate(v, v, v), None, Estimate(v, v, v)) for at, v in ((1, first), (256, last))
        )
        return Line("x", 0, points)

    logarithmic = chart([line(0.1, 100.0)], "ttft_s", name="c")
    linear = chart([line(0.1, 0.8)], "ttft_s", name="c")
    assert all(f">{tick}<" in logarithmic for tick in ("100 ms", "1.0 s", "10 s", "100 s"))
    assert ">0<" in linear
    assert chart([line(0.1, 0.8)], "tpot_s", name="c") == ""  # an answer of one token has none


def _luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one_colour: str, other: str) -> float:
    dark, light = sorted((_luminance(one_colour), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(scheme: str) -> None:
    blocks = re.findall(r":root\{([^}]*)\}", variables(":root"))
    colours = dict(re.findall(r"--([\w-]+):(#[0-9a-f]{6})", blocks[0 if scheme == "light" else 1]))
    for ink in ("ink", "soft", "best"):
        assert contrast(colours[ink], colours["page"]) >= 4.5
        assert contrast(colours[ink], colours["panel"]) >= 4.5
    verdicts: tuple[Verdict, ...] = ("fits", "close", "no")
    for judged in verdicts:
        assert contrast(colours[judged], colours[f"{judged}-wash"]) >= 4.5
        assert contrast(colours["soft"], colours[f"{judged}-wash"]) >= 4.5
    parts = [f"p{at}" for at in range(7)]  # all but what is not used
    for part in parts:
        assert contrast(colours[part], colours["page"]) >= 3
        assert contrast(colours["on"], colours[part]) >= 4.5
    for line in (name for name in colours if re.fullmatch(r"l\d", name)):
        assert contrast(colours[line], colours["page"]) >= 3


def test_a_small_model_on_a_large_card_is_still_a_bar() -> None:
    question = Question(smollm2(), gpu("B300"))
    assert parsed(svg_picture(answer_sheet(question, answer(question)))).tag.endswith("svg")
