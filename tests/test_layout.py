"""The package list, the links and the guards: what would be missing from a wheel without anyone noticing."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("graphs", "retrieval", "cachestore")


def test_every_package_on_disk_is_listed_for_the_wheel() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = setuptools.find_packages(where=str(ROOT), include=["flowserve*"])
    assert sorted(listed) == sorted(found)


@pytest.mark.parametrize("name", LINKED)
def test_the_three_folders_are_relative_links_inside_the_package(name: str) -> None:
    link = ROOT / "flowserve" / name
    assert link.is_symlink()
    assert str(link.readlink()) == f"../{name}"


@pytest.mark.parametrize("name", LINKED)
def test_a_bare_import_says_what_to_type(name: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert f"import flowserve.{name}" in result.stderr


def test_import_and_help_load_nothing_heavy() -> None:
    heavy = ("torch", "faiss", "transformers", "networkx", "fastapi", "sentence_transformers")
    code = f"import sys, flowserve, flowserve.cli\nprint([name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_public_names_exist() -> None:
    import flowserve

    for name in flowserve.__all__:
        assert getattr(flowserve, name) is not None
    assert importlib.import_module("flowserve.testing")


def test_every_public_name_has_a_place_and_is_listed() -> None:
    import flowserve

    assert sorted({*flowserve._WHERE, "__version__"}) == sorted(flowserve.__all__)
