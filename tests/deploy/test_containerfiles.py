"""What the Containerfiles promise, read from their instructions: there is no container engine where tests run."""

import re
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deploy.conftest import DEPLOY, ROOT

NAMES = ("Containerfile.cpu", "Containerfile.cuda", "Containerfile.gateway")
_EXTERNAL = re.compile(r"https?://|git@")


@dataclass(frozen=True)
class Step:
    """One instruction, its continuation lines joined."""

    keyword: str
    rest: str


def _stages(name: str) -> list[list[Step]]:
    """The instructions of each build stage, in order."""
    text = (DEPLOY / name).read_text()
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    stages: list[list[Step]] = []
    for line in re.sub(r"\\\n\s*", " ", lines).splitlines():
        if line.strip():
            keyword, _, rest = line.strip().partition(" ")
            if keyword == "FROM":
                stages.append([])
            stages[-1].append(Step(keyword, rest.strip()))
    return stages


def _all(stage: list[Step], keyword: str) -> list[str]:
    return [step.rest for step in stage if step.keyword == keyword]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


def test_hadolint_finds_nothing(hadolint: Path, name: str) -> None:
    done = subprocess.run([hadolint, DEPLOY / name], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_ends_as_an_ordinary_user(name: str) -> None:
    final = _stages(name)[-1]
    (user,) = _all(final, "USER")
    uid, gid = (int(part) for part in user.split(":"))  # numeric: Kubernetes' runAsNonRoot cannot read names
    assert uid >= 1000
    assert gid >= 1000
    after = [step.keyword for step in final[final.index(Step("USER", user)) :]]
    assert not {"RUN", "COPY"} & set(after)


def test_nothing_is_fetched_but_packages(name: str) -> None:
    for stage in _stages(name):
        assert not _all(stage, "ADD")
        assert all(image.startswith("python:3.11-slim-bookworm") for image in _all(stage, "FROM"))
        for command in _all(stage, "RUN"):
            assert not re.search(r"\b(curl|wget|git)\b", command)
            indexes = re.findall(r"--(?:extra-)?index-url[ =](\S+)", command)
            assert all(url == "https://download.pytorch.org/whl/cpu" for url in indexes)
            assert not _EXTERNAL.search(re.sub(r"--(?:extra-)?index-url[ =]\S+", "", command))


def test_what_is_copied_exists(name: str) -> None:
    for stage in _stages(name):
        for copied in _all(stage, "COPY"):
            if copied.startswith("--from="):
                continue
            *sources, _ = copied.split()
            assert all((ROOT / source).exists() for source in sources), copied
            assert not {".", "./", "*"} & set(sources), "copying everything takes .git and .venv along"


def test_the_lock_goes_in_before_the_sources(name: str) -> None:
    libraries, package, final = _stages(name)
    assert all(copied.startswith("deploy/locks/") for copied in _all(libraries, "COPY"))
    assert "pip wheel --no-deps" in _all(package, "RUN")[-1]
    steps = [f"{step.keyword} {step.rest}" for step in final]
    engine = next(i for i, step in enumerate(steps) if step.startswith("COPY --from=") and "/opt/berth" in step)
    berth = next(i for i, step in enumerate(steps) if "from=package" in step)
    assert engine < berth
    assert "--no-deps" in steps[berth]


def test_every_package_of_the_wheel_is_copied(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = {source for rest in _all(_stages(name)[1], "COPY") for source in rest.split()[:-1]}
    needed = set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    needed |= {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert copied == needed


def test_it_says_how_to_run_watch_and_stop_it(name: str) -> None:
    final = _stages(name)[-1]
    assert _all(final, "EXPOSE") == ["8000"]
    assert _all(final, "STOPSIGNAL") == ["SIGTERM"]
    assert _all(final, "ENTRYPOINT") == ['["berth"]']
    (check,) = _all(final, "HEALTHCHECK")
    assert "http://127.0.0.1:8000/health" in check
    assert '["python", "-c"' in check
    assert _all(final, "VOLUME") == ["/home/berth/.cache"]
    assert "HF_HOME=/home/berth/.cache/" in " ".join(_all(final, "ENV"))


@pytest.mark.parametrize("name", NAMES[:2], indirect=True)
def test_the_engine_images_serve_on_all_interfaces(name: str) -> None:
    assert _all(_stages(name)[-1], "CMD") == ['["serve", "--host", "0.0.0.0"]']


def test_no_secret_is_baked_in(name: str) -> None:
    text = (DEPLOY / name).read_text()
    assert "ARG" not in {step.keyword for stage in _stages(name) for step in stage}
    assert not re.search(r"(hf_|sk-|berth-)[A-Za-z0-9_-]{16,}", text)
    assert not re.search(r"^\s*(ENV\s+)?(BERTH_API_KEY|HF_TOKEN)=", text, re.MULTILINE)


def test_versions_agree_with_the_rest_of_the_repository() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    torch = re.search(r"^TORCH := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert torch is not None
    assert torch[1] in (DEPLOY / "Containerfile.cpu").read_text()
    vllm = next(requirement for requirement in extras["cuda"] if requirement.startswith("vllm=="))
    assert f"'{vllm}'" in (DEPLOY / "Containerfile.cuda").read_text()
