import pytest

from gateway.wire import Fault, Page, page_of

NAMES = ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("query", "page"),
    [
        ({}, Page(("a", "b", "c", "d", "e"), False)),
        ({"limit": "5"}, Page(("a", "b", "c", "d", "e"), False)),
        ({"limit": "2"}, Page(("a", "b"), True)),
        ({"limit": "2", "after_id": "b"}, Page(("c", "d"), True)),
        ({"limit": "2", "after_id": "c"}, Page(("d", "e"), False)),
        ({"after_id": "e"}, Page((), False)),
        ({"limit": "2", "before_id": "d"}, Page(("b", "c"), True)),
        ({"limit": "2", "before_id": "c"}, Page(("a", "b"), False)),
        ({"before_id": "a"}, Page((), False)),
    ],
)
def test_pages(query: dict[str, str], page: Page) -> None:
    assert page_of(NAMES, query) == page


def test_twenty_unless_told() -> None:
    page = page_of([str(i) for i in range(30)], {})
    assert isinstance(page, Page)
    assert (len(page.names), page.has_more) == (20, True)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "1001"}, "limit"),
        ({"limit": "-1"}, "limit"),
        ({"limit": ""}, "limit"),
        ({"limit": "two"}, "limit"),
        ({"limit": "\u0663"}, "limit"),
        ({"limit": "9" * 5000}, "limit"),
        ({"after_id": "x"}, "after_id"),
        ({"before_id": "x"}, "before_id"),
        ({"after_id": "a", "before_id": "c"}, "before_id"),
    ],
)
def test_what_cannot_be_is_a_400(query: dict[str, str], param: str) -> None:
    fault = page_of(NAMES, query)
    assert isinstance(fault, Fault)
    assert (fault.status, fault.param) == (400, param)
