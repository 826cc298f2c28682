"""Imports go downwards only, and what the command line needs at its start is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A module may import those of earlier lines, and none of its own line unless they share a package.
LAYERS = (
    ("plain_text",),
    ("errors", "log", "nearest", "offline", "rights", "sized_cache", "version"),
    ("patterns",),
    ("address", "reference", "schema", "secrets", "files", "places"),
    ("config", "link", "manifest", "naming", "reserve", "syncing"),
    ("sealing",),
    ("backbone", "metadata", "outcomes", "signing", "tensorheader"),
    ("checkpoint", "card", "lockfile", "stores"),
    ("fitting",),
    ("archive", "configured", "describing", "registry"),
    ("bundle", "cache", "settings"),
    ("sources",),
    ("hub",),
    ("shortcuts",),
    ("server",),
    ("engine.insertion", "engine.modules", "engine.routing.rows", "engine.site", "engine.tracing"),
    (
        "engine.attention",
        "engine.drawing.folding",
        "engine.structure.maps",
        "engine.drawing.svg",
        "engine.offloading",
        "engine.sharding",
        "engine.pseudo",
        "engine.structure.layouts",
        "engine.structure.lexicon",
        "engine.structure.tree",
    ),
    (
        "web.document",
        "engine.overrides",
        "engine.structure.recognition",
        "engine.structure.inference",
        "engine.trainable",
    ),
    (
        "engine.structure.names",
        "engine.structure.targets",
        "engine.drawing.visualize",
        "engine.shapes",
        "engine.fingerprint",
        "engine.weights",
        "engine.routing.batching",
    ),
    (
        "engine.attended",
        "engine.bypassed",
        "engine.fused",
        "engine.layers",
        "engine.filling",
        "engine.freezing",
        "engine.guards",
        "engine.statistics",
        "engine.ledger",
        "engine.skeleton",
    ),
    ("engine.compiling",),
    ("engine.uncalled",),
    (
        "engine.building",
        "engine.routing.detours",
        "engine.routing.heads",
        "engine.merging",
        "engine.routing.route",
        "engine.switching",
    ),
    ("web",),
    ("formats",),
    ("loading", "tensorfile"),
    ("saveload",),
    ("engine.delta",),
    ("deltas",),
    ("auto",),
)
_FIRST_WITH_TORCH = next(level for level, layer in enumerate(LAYERS) if "engine.insertion" in layer)
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


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """What a file imports at run time; imports for type checking do not count."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text("utf-8")))
    return found


def test_every_module_has_a_layer():
    packages = {"engine", "engine.drawing", "engine.routing", "engine.structure"}
    assert [name for name in modules() if layer_of(name) is None and name not in packages] == []


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_imports_only_from_lower_layers(name):
    level = layer_of(name)
    if level is None:
        return
    known = modules()
    wanted = {module.removeprefix("deltahub.") for module in imports(known[name]) if module.startswith("deltahub.")}
    package = name.rpartition(".")[0]
    upward = [
        module
        for module in wanted
        if module in known
        and (target := layer_of(module)) is not None
        and (target > level or (target == level and module.split(".")[0] != name.split(".")[0] and package != module))
    ]
    assert upward == []


@pytest.mark.parametrize("name", sorted(name for name in modules() if name.split(".")[0] in TORCH_FREE))
def test_the_bytes_column_imports_torch_nowhere_at_its_top(name):
    heavy = {"torch", "transformers"}
    assert set() == heavy & {module.split(".")[0] for module in imports(modules()[name], top_level_only=True)}


def test_the_modules_import_each_other_without_cycles():
    graph = {
        name: {m.removeprefix("deltahub.") for m in imports(path, top_level_only=True)} & modules().keys()
        for name, path in modules().items()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"cycle: {' -> '.join((*path, name))}"
        if name not in done:
            for other in graph[name] - {name}:
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


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
        "heavy = {'torch', 'transformers', 'numpy', 'fastjsonschema', 'requests', 'huggingface_hub', 'obstore'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_importing_deltahub_imports_no_torch():
    script = "import sys, deltahub; assert 'torch' not in sys.modules"
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
