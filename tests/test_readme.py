"""README.md and docs/ say what is so: generated parts are up to date, and `berth` and make take every command shown."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from serving.cli import app
from serving.config import ModelSection, StackConfig
from serving.door_config import GatewaySection, KeySection, TracingSection, door_settings
from serving.elsewhere import engine_keys
from serving.environment import Environment
from serving.front import EngineSection, FrontConfig
from serving.sections import (
    HandlingSection,
    HealthSection,
    QueueSection,
    RemoteSection,
    Section,
    TimeoutsSection,
)
from tests.readme import PAGES, PARTS, ROOT, parts_in, written

TEXTS = {page: page.read_text() for page in PAGES}
TEXT = "\n".join(TEXTS.values())
BLOCKS = re.findall(r"```(console|sh)\n(.*?)```", TEXT, re.DOTALL)
LINES = [
    line.removeprefix("$ ").strip()
    for kind, block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if kind == "sh" or line.startswith("$ ")  # what a console block shows besides is output
]
SHORT, EXAMPLE, FRONT = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
BERTH = [shlex.split(line, comments=True)[1:] for line in LINES if line.startswith("berth ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_generated_parts_are_up_to_date(page: Path) -> None:
    assert written(TEXTS[page]) == TEXTS[page], "run `make docs`"


def test_every_generated_part_is_shown_once() -> None:
    assert sorted(name for text in TEXTS.values() for name in parts_in(text)) == sorted(PARTS)


@pytest.mark.parametrize("args", BERTH, ids=" ".join)
def test_every_command_shown_is_one_berth_takes(args: list[str]) -> None:
    if "--help" in args:
        return  # printed above, so it was run
    command: Any = typer.main.get_command(app)  # typer carries a click of its own, without public types
    context = typer.Context(command)
    while hasattr(command, "resolve_command"):
        name, command, args = command.resolve_command(context, args)
        assert command is not None, name
    command.make_context("berth", list(args))


def test_the_example_configuration_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAMPLE_API_KEY", "secret")
    config = StackConfig.model_validate(yaml.safe_load(EXAMPLE))
    door_settings(config, Environment(api_key=None))
    assert [model.name for model in config.models] == ["qwen", "small", "my-finetune"]
    assert config.models[0].max_model_len == 32_768


def test_the_short_example_is_valid_too() -> None:
    config = StackConfig.model_validate(yaml.safe_load(SHORT))
    door_settings(config, Environment(api_key=None))
    assert [(model.name, model.replicas) for model in config.models] == [("qwen", 2), ("small", 1)]


def test_the_example_for_engines_that_run_is_valid_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("EXAMPLE_API_KEY", "ENGINE_KEY"):
        monkeypatch.setenv(variable, "secret")
    config = FrontConfig.model_validate(yaml.safe_load(FRONT))
    door_settings(config, Environment(api_key=None))
    assert engine_keys(config.engines, None) == {"http://10.0.0.5:8000": "secret", "http://10.0.0.6:8000": None}
    assert config.unserved(frozenset({"qwen"})) == []


@pytest.mark.parametrize("section", [FrontConfig, EngineSection, HandlingSection], ids=lambda section: section.__name__)
def test_it_has_every_key_that_is_its_own(section: type[Section]) -> None:
    assert {key for key in section.model_fields if not re.search(rf"\b{key}\b", FRONT)} == set()


def test_the_example_says_what_the_defaults_are() -> None:
    shown = yaml.safe_load(EXAMPLE)
    gateway = StackConfig.model_validate(shown).gateway
    assert gateway.timeouts == TimeoutsSection()
    assert gateway.health == HealthSection()
    sections = (
        QueueSection(),
        GatewaySection(),
        StackConfig(models=(ModelSection(model="demo"),)),
        ModelSection(model="demo"),
    )
    defaults = {key: getattr(section, key) for section in sections for key in type(section).model_fields}
    given = {**shown["models"][0], **shown, **shown["gateway"]["queue"], **shown["gateway"]}
    marked = re.findall(r"^ *(\w+): .*# \(default\)", EXAMPLE, re.MULTILINE)
    assert len(marked) > 6
    assert {key: given[key] for key in marked} == {key: defaults[key] for key in marked}


SECTIONS = (StackConfig, ModelSection, RemoteSection, GatewaySection, KeySection, TracingSection, TimeoutsSection)


@pytest.mark.parametrize("section", [*SECTIONS, HealthSection], ids=lambda section: section.__name__)
def test_the_example_has_every_key(section: type[Section]) -> None:
    assert {key for key in section.model_fields if not re.search(rf"\b{key}\b", EXAMPLE)} == set()


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {target for line in LINES for target in re.findall(r"^make ([a-z-]+)", line)}
    assert {"serve", "test"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_it_links_to_exists(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]+))?\)", TEXTS[page])
    targets = [((page.parent / link).resolve() if link else page, heading) for link, heading in links]
    assert [target for target, _ in targets if not target.exists()] == []
    assert [heading for target, heading in targets if heading and heading not in _anchors(target)] == []


def _anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_python_wheel_names_are_ours_alone() -> None:
    """Generic top-level names must not be claimed by anything else in the environment."""
    site = Path(typer.__file__).parents[1]
    taken = [name for name in ("serving", "gateway", "sizing", "benchmarks") if (site / name).exists()]
    assert taken == []
