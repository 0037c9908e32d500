"""What a connection's requests have in common is read once, and never kept for one that differs."""

import logging
from contextlib import ExitStack

import pytest

from gateway.app import Gateway
from gateway.config import GatewayConfig
from gateway.headers import Heads, read_head
from gateway.identity import new_key
from gateway.replica import Replica
from tests.fake_engine import FakeEngine
from tests.gateway.harness import PATHS, body_for, opened, wait_until

CHAT = PATHS["chat"]


def test_the_same_headers_are_the_same_head() -> None:
    heads = Heads()
    first = heads.read([(b"authorization", b"Bearer a"), (b"accept", b"*/*")])
    assert heads.read([(b"authorization", b"Bearer a"), (b"accept", b"*/*")]) is first
    assert (first.key, first.forwarded) == (b"a", b"content-type: application/json\r\naccept: */*\r\n")


def test_other_headers_are_another_head() -> None:
    heads = Heads()
    assert heads.read([(b"authorization", b"Bearer a")]).key == b"a"
    assert heads.read([(b"authorization", b"Bearer b")]).key == b"b"
    assert heads.read([]).key is None


def test_a_fresh_connection_without_headers_has_no_key() -> None:
    assert Heads().read([]).key is read_head(()).key is None


def test_who_is_asking_is_found_anew_for_another_key_and_for_other_keys(
    fake: FakeEngine, stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (alice, alices), (bob, bobs) = new_key("alice"), new_key("bob")
    gateway = Gateway(GatewayConfig(keys=(alices, bobs), probe_interval_s=0.05))
    gateway.add(Replica("e0", fake.url))
    door = stack.enter_context(opened(gateway))
    door.wait_ready()
    with door.client() as one:  # one after the other, so all over one connection

        def status(key: str, more: str = "") -> int:
            return one.post(CHAT, json={**body_for("chat"), "user": more}, headers={"x-api-key": key}).status_code

        assert [status(alice), status(alice, "longer"), status("guessed"), status(bob)] == [200, 200, 401, 200]
        gateway.reconfigure(GatewayConfig(keys=(alices,), probe_interval_s=0.05))
        assert [status(bob), status(alice)] == [401, 200]
    wait_until(lambda: caplog.text.count("caller=alice") == 3)
    assert caplog.text.count("caller=bob") == 1
    assert caplog.text.count("caller=- ") == 2
