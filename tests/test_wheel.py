"""What is installed: the package, the command, and nothing under a name that others may want."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build leaves files in its source
    source.mkdir()
    for name in ("deltahub", "cli", "schemas"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder / "dist"),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next((folder / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def names(wheel) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_it_installs_no_package_called_cli_schemas_or_tests(names):
    assert {"deltahub", "deltahub_cli", "deltahub-0.2.0.dist-info"} == {name.split("/")[0] for name in names}


def test_it_holds_every_module_schema_structure_map_and_page(names):
    wanted = {str(path.relative_to(ROOT)) for path in (ROOT / "deltahub").rglob("*.py")}
    wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "deltahub" / "structures").glob("*.json")}
    for folder in ("web/static", "server/pages/templates", "server/pages/static"):
        files = (path for path in (ROOT / "deltahub" / folder).rglob("*") if path.is_file())
        wanted |= {str(path.relative_to(ROOT)) for path in files}
    wanted |= {f"deltahub/schemas/{path.name}" for path in (ROOT / "schemas").glob("*.json")}
    wanted |= {f"deltahub_cli/{path.name}" for path in (ROOT / "cli").glob("*.py")}
    assert set() == wanted - names


@pytest.mark.slow
def test_the_command_works_from_an_unpacked_wheel(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    packages = [path for path in sys.path if path.endswith("site-packages")]
    # -S: the checkout that the tests run from, installed as editable, must not be found
    script = f"import sys; sys.path[:0] = {[str(tmp_path), *packages]!r}; sys.argv[1:] = ['--version']; from deltahub_cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-S", "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.stdout, done.stderr) == ("deltahub 0.2.0\n", "")


def imported_packages(folder: Path) -> set[str]:
    """The packages that the modules of a folder import, wherever they do."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"deltahub"}


def test_the_extra_of_the_server_installs_all_that_it_imports():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["serve"]]
    names = {re.match(r"[a-z0-9._-]+", each.lower())[0].replace("-", "_") for each in wanted}
    provided = names | {"re2", "markupsafe", "yaml", "markdown_it"}  # of google-re2, jinja2, pyyaml and markdown-it-py
    assert imported_packages(ROOT / "deltahub/server") - provided == set()
