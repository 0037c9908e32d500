from gateway.owners import Owner, Owners, away, gone, left, unknown

ALICE = Owner("e0", "m", "alice")
BOB = Owner("e1", "m", "bob")


def test_a_response_is_found_by_who_made_it() -> None:
    owners = Owners()
    owners.note("r", ALICE)
    assert owners.find("r", "alice") == ALICE
    assert owners.find("r", "bob") is None
    assert owners.find("other", "alice") is None


def test_the_longest_unused_is_forgotten_first() -> None:
    owners = Owners(most=2)
    owners.note("a", ALICE)
    owners.note("b", ALICE)
    owners.find("a", "alice")
    owners.note("c", ALICE)
    assert len(owners) == 2
    assert [owners.find(name, "alice") is not None for name in "abc"] == [True, False, True]


def test_asking_for_what_is_anothers_keeps_nothing_alive() -> None:
    owners = Owners(most=2)
    owners.note("a", ALICE)
    owners.note("b", ALICE)
    owners.find("a", "bob")
    owners.note("c", ALICE)
    assert owners.find("a", "alice") is None


def test_an_id_of_ones_own_choice_takes_nothing_from_another() -> None:
    owners = Owners()
    owners.note("r", ALICE)
    owners.note("r", BOB)
    assert owners.find("r", "alice") == ALICE
    owners.note("r", Owner("e1", "m", "alice"))  # one's own may be made anew elsewhere
    assert owners.find("r", "alice") == Owner("e1", "m", "alice")


def test_what_went_on_elsewhere_is_kept_by_nobody_until_it_is_made_anew() -> None:
    owners = Owners()
    owners.note("r", ALICE)
    owners.left("r", "bob")
    owners.left("other", "alice")
    assert owners.find("r", "alice") == ALICE
    owners.left("r", "alice")
    assert owners.find("r", "alice") == Owner("e0", "m", "alice", has_left=True)
    owners.note("r", ALICE)
    assert owners.find("r", "alice") == ALICE


def test_what_the_caller_is_told() -> None:
    for goes_on, code, param in (
        (False, "response_not_found", "response_id"),
        (True, "previous_response_not_found", "previous_response_id"),
    ):
        for fault in (
            unknown("r", goes_on=goes_on),
            gone("r", ALICE, goes_on=goes_on),
            left("r", ALICE, goes_on=goes_on),
        ):
            assert (fault.status, fault.code, fault.param, fault.should_retry) == (404, code, param, False)
            assert fault.message.startswith("Response with id 'r' not found: ")
    assert "e0" in gone("r", ALICE, goes_on=False).message
    busy = away("r", ALICE, "unhealthy")
    assert (busy.status, busy.retry_after_s) == (503, 5)
    assert len(unknown("r" * 10_000, goes_on=False).message) < 400
