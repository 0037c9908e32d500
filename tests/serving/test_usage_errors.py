"""A command that is mistyped: one line on standard error and exit status 2, as for every other mistake."""

import sys

import pytest

from serving import cli


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["berth", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("size", "--tp", "x"), "berth size: No such option: --tp"),
        (("size", "model", "--count", "x"), "berth size: Invalid value for '--count'"),
        (("size", "compare", "model"), "berth size compare: Missing option '--gpus'"),
        (("sise",), "berth: No such command 'sise'"),
    ],
)
def test_one_line_that_names_the_command(
    words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(said)
    assert err.count("\n") == 1
    assert "--help" in err


def test_a_commands_own_status_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("berth ")
    assert run(monkeypatch, "size") == 2
    assert capsys.readouterr().err.startswith("berth size: no model to size")
