"""Imports go downwards only, and what the command line needs at its start is light."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A room may import those of earlier lines; rooms of one line do not know each other. From "algebra.factors" on, torch is needed.
LAYERS = (
    ("text.visible",),
    ("errors", "renamed", "version"),
    ("text",),
    ("log", "reference"),
    ("plugins",),
    ("link",),
    ("files",),
    ("checkpoint", "stores"),
    ("signing",),
    ("cache", "registry", "settings"),
    ("sources",),
    ("hub", "server"),
    ("api", "migrate"),
    ("algebra.factors",),
    ("engine",),
    ("formats", "picker"),
    ("algebra",),
    ("handle",),
    ("deltas",),
    ("auto",),
    ("conversion",),
    ("compat", "serving", "testing"),
)
_FIRST_WITH_TORCH = next(level for level, layer in enumerate(LAYERS) if "algebra.factors" in layer)
TORCH_FREE = {name for layer in LAYERS[:_FIRST_WITH_TORCH] for name in layer}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / "deltahub").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT / "deltahub").with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    found.pop("__init__")
    return found


def layer_of(name: str) -> int | None:
    for level, layer in enumerate(LAYERS):
        if any(name == member or name.startswith(f"{member}.") for member in layer):
            return level
    return None


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """The modules that a file imports, also for type checking and within functions unless only the top level counts."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        if top_level_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree_of(path))
    return found


MODULES = modules()


@cache
def graph() -> dict[str, set[str]]:
    """For each module those of the package that it imports."""
    return {
        name: {module.removeprefix("deltahub.") for module in imports(path)} & MODULES.keys()
        for name, path in MODULES.items()
    }


def test_every_module_has_a_layer():
    assert [name for name in MODULES if layer_of(name) is None] == []


def test_at_most_ten_files_lie_at_the_top():
    assert len(list((ROOT / "deltahub").glob("*.py"))) <= 10


@pytest.mark.slow
def test_modules_import_only_from_lower_layers():
    upward = [
        f"{name} imports {module}"
        for name, imported in graph().items()
        for module in imported
        if (target := layer_of(module)) > (level := layer_of(name))
        or (target == level and module.split(".")[0] != name.split(".")[0])
    ]
    assert upward == []


def test_the_bytes_column_imports_torch_nowhere_at_its_top():
    heavy = {
        f"{name} imports {module}"
        for name, path in MODULES.items()
        if name.split(".")[0] in TORCH_FREE
        for module in imports(path, top_level_only=True)
        if module.split(".")[0] in {"torch", "transformers"}
    }
    assert heavy == set()


def test_the_modules_import_each_other_without_cycles():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"cycle: {' -> '.join((*path, name))}"
        if name not in done:
            for other in graph()[name] - {name}:
                visit(other, (*path, name))
            done.add(name)

    for name in graph():
        visit(name, ())


def test_classes_declare_nothing_for_the_type_checker_alone():
    stubs = [
        f"{name}.{node.name}"
        for name, path in MODULES.items()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ClassDef) and any("TYPE_CHECKING" in ast.dump(part) for part in node.body)
    ]
    assert stubs == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["list"],
        ["push", "--help"],
        ["show", "--help"],
        ["verify"],
        ["cache", "list"],
        ["registry", "list"],
        ["source", "list"],
    ],
    ids=" ".join,
)
def test_the_command_line_starts_without_torch(arguments, tmp_path):
    script = (
        "import sys\n"
        "from deltahub_cli.main import main\n"
        "try:\n    main()\n"
        "except SystemExit as done:\n    assert not done.code, done.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'fastjsonschema', 'requests', 'huggingface_hub', 'obstore', 'yaml'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_importing_deltahub_imports_neither_torch_nor_pytest_and_looks_for_no_entry_points():
    script = (
        "import sys, deltahub; assert not {'torch', 'pytest', 'deltahub.plugins.entry_points'} & sys.modules.keys()"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.slow
def test_the_classes_of_deltas_are_imported_without_transformers():
    script = "import sys; from deltahub import AutoDeltaModel; assert 'transformers' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_every_public_name_can_be_imported():
    import deltahub

    missing = [name for name in deltahub.__all__ if getattr(deltahub, name, None) is None]
    assert missing == []


def test_the_lazy_names_and_those_for_type_checkers_are_the_same():
    import deltahub

    tree = ast.parse((ROOT / "deltahub" / "__init__.py").read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    declared = {
        alias.asname: node.module.removeprefix("deltahub.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert declared == deltahub._HOMES
