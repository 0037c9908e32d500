import pytest

from benchmarks.client import open_session
from benchmarks.errors import TargetError
from benchmarks.target import find_model
from tests.fake_engine import FakeEngine


async def found(url: str, wanted: str | None = None) -> str:
    async with open_session(None) as session:
        return await find_model(session, url, wanted)


async def test_the_only_model_is_found(fake: FakeEngine) -> None:
    assert await found(fake.url) == "fake"


async def test_a_named_model_must_be_listed(fake: FakeEngine) -> None:
    fake.models = ("one", "two")
    assert await found(fake.url, "two") == "two"
    with pytest.raises(TargetError, match=r"does not serve 'three'.*one, two"):
        await found(fake.url, "three")


async def test_among_several_one_has_to_be_named(fake: FakeEngine) -> None:
    fake.models = ("one", "two")
    with pytest.raises(TargetError, match=r"--model \(one, two\)"):
        await found(fake.url)


async def test_a_server_without_the_list_is_taken_at_its_word(fake: FakeEngine) -> None:
    assert await found(f"{fake.url}/elsewhere", "any") == "any"
    with pytest.raises(TargetError, match=r"404|405"):
        await found(f"{fake.url}/elsewhere")


async def test_a_dead_address_is_said_in_one_line() -> None:
    with pytest.raises(TargetError, match="cannot reach") as caught:
        await found("http://127.0.0.1:1")
    assert "\n" not in str(caught.value)
