"""The distribution holds every package and every command, and pins nothing by address."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SCRIPTS: dict[str, str] = PROJECT["project"]["scripts"]
PACKAGES: list[str] = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


def test_the_six_commands_are_declared() -> None:
    assert set(SCRIPTS) == {
        "zim",
        "zim-inpaint",
        "zim-sa3d",
        "zim-medical",
        "zim-grounded",
        "zim-train",
    }


def test_every_command_of_the_installed_distribution_loads() -> None:
    entries = importlib.metadata.distribution("zim-toolkit").entry_points
    commands = {e.name: e for e in entries if e.group == "console_scripts"}
    assert set(commands) == set(SCRIPTS)
    for entry in commands.values():
        assert callable(entry.load())


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_named_for_the_wheel_is_there(package: str) -> None:
    # hatchling builds a wheel without a misspelt package and says nothing.
    assert (ROOT / package / "__init__.py").is_file()
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize(
    "folder", ["apps", "apps/inpaint", "apps/sa3d", "apps/medical", "apps/grounded", "training"]
)
def test_the_folders_around_packages_are_no_packages(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()


def test_constraints_name_versions_only() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert any(line.startswith("torch==") for line in pins)
    for line in pins:
        name, version = line.split("==")
        assert name.replace("-", "").replace("_", "").replace(".", "").isalnum(), line
        assert version.replace(".", "").isalnum(), f"local version or address: {line}"


def test_constraints_leave_out_what_is_for_comparison_only() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower()
    for name in ("segment-anything", "segment_anything", "zim-anything"):
        assert name not in text


def test_every_extra_but_the_two_with_hard_pins_is_in_all() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    inside = set(everything.removeprefix("zim-toolkit[").removesuffix("]").split(","))
    assert inside == set(extras) - {"all", "nerfstudio", "groundingdino"}


@pytest.mark.slow
def test_a_built_wheel_works_outside_the_checkout(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.split("/")[0] for name in names}
    packages = {Path(package).name for package in PACKAGES}
    assert {top for top in tops if not top.endswith(".dist-info")} == packages
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                relative = path.relative_to((ROOT / package).parent).as_posix()
                assert relative in names, f"{relative} is not in the wheel"

    target = tmp_path / "site"
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)],
        check=True,
    )
    code = (
        "import importlib.metadata as m, sys\n"
        f"sys.path.insert(0, {str(target)!r})\n"
        f"found = next(iter(m.distributions(name='zim-toolkit', path=[{str(target)!r}])))\n"
        "for entry in found.entry_points:\n"
        "    entry.load()\n"
        "    module = sys.modules[entry.module]\n"
        f"    assert module.__file__.startswith({str(target)!r}), module.__file__\n"
        "    print(entry.name if entry.group == 'console_scripts' else '')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert set(done.stdout.split()) == set(SCRIPTS)
