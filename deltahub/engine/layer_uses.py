"""How the code of a class uses a layer: whether it calls the layer, or only reads its weight.

    self.proj(x)                                            used
    F.linear(x, self.proj.weight)                           read
    layer = self.proj; x @ layer.weight                     read, by another name
    for layer in self.layers: x = F.linear(x, layer.weight) read, for each layer of a list
    through(self.proj, x)                                   as the function uses it, if that is found

The source of the methods shows it. Every use that is not understood counts as a call, and so does a class without source.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import textwrap
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

from torch import nn

USED: Final = "used"
READ: Final = "read"
MULTIPLIED: Final = "multiplied"  # read as a factor of a product

_READS: Final = frozenset({"weight", "bias", "forward", "in_proj_weight", "in_proj_bias"})
# Attributes of a tensor that do not use its values.
_FACTS: Final = frozenset({"dtype", "device", "shape", "size", "requires_grad", "numel", "dim", "ndim", "is_meta"})
_ALL_CHILDREN: Final = frozenset({"children", "named_children", "_modules", "__dict__"})
_OUTSIDE: Final = frozenset({"__init__", "reset_parameters", "_init_weights", "_reset_parameters"})
_NEUTRAL: Final = frozenset(
    {"len", "isinstance", "hasattr", "type", "id", "print", "repr", "str", "bool", "any", "all"}
)
_ITERATED: Final = frozenset({"enumerate", "reversed", "list", "tuple", "zip", "iter"})
_PRODUCTS: Final = frozenset({"linear", "matmul", "mm", "bmm", "addmm", "einsum"})
_DEEPEST: Final = 4  # calls of functions that are followed

Uses = frozenset[str]
_NOTHING: Final[Uses] = frozenset()
_USED: Final[Uses] = frozenset({USED})


@lru_cache(maxsize=4096)  # `kind` is a class of modules, which mypy thinks cannot be hashed
def own_uses(kind: Any, child: str) -> Uses:
    """Return how a class uses its own child of this name."""
    if any(value == child for base in kind.__mro__ for value in vars(base).values() if isinstance(value, str)):
        return _USED  # the name may be used for a lookup
    return _of_methods(kind, child, lambda scope, node: scope.is_self(node.value))


@lru_cache(maxsize=4096)
def foreign_uses(kind: Any, child: str) -> Uses:
    """Return how a class uses children of this name of other modules."""
    return _of_methods(kind, child, lambda scope, node: scope.is_of_another(node.value), by_name=False)


def names(kind: type[nn.Module], word: str) -> bool:
    """Return whether the code of a class has a name or a string."""
    return any(word in _words(function.__code__) for function in _methods(kind))


def _of_methods(
    kind: type[nn.Module], child: str, fits: Callable[[_Scope, ast.Attribute], bool], *, by_name: bool = True
) -> Uses:
    uses: set[str] = set()
    for function in _methods(kind):
        words = _words(function.__code__)
        looked_up = by_name and not words.isdisjoint(_ALL_CHILDREN | {"getattr"})
        if child not in words and not looked_up:
            continue
        scope = _Scope.of(function, kind)
        if scope is None:
            return _USED
        nodes = [node for node in scope.parents if isinstance(node, ast.Attribute) and node.attr == child]
        for node in nodes:
            if fits(scope, node):
                uses |= scope.uses(node)
        if by_name and scope.looks_up(child):
            uses.add(USED)
    return frozenset(uses)


class _Scope:
    """The source of a function: its syntax tree, and the parent of each node in it."""

    def __init__(self, function: FunctionType, kind: type[nn.Module] | None, tree: ast.AST, depth: int) -> None:
        self.function, self.kind, self.depth = function, kind, depth
        self.parents = _parents(tree)
        names = function.__code__.co_varnames[: function.__code__.co_argcount]
        self.owner = "self" if kind is None or not names else ("self" if "self" in names else names[0])

    @classmethod
    def of(cls, function: FunctionType, kind: type[nn.Module] | None, depth: int = 0) -> _Scope | None:
        """Return the scope of a function; None if its source is not known."""
        tree = _tree(function.__code__)
        return None if tree is None else cls(function, kind, tree, depth)

    def is_self(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Name) and node.id == self.owner

    def is_of_another(self, node: ast.AST) -> bool:
        """Return whether an expression may be a module other than `self`, and not one of Python's, as in ``F.conv1d``."""
        root = node
        while isinstance(root, ast.Attribute):
            root = root.value
        imported = isinstance(root, ast.Name) and isinstance(self.function.__globals__.get(root.id), ModuleType)
        return not self.is_self(node) and not imported

    def looks_up(self, child: str) -> bool:
        """Return whether children are visited without being named, or by a name in a string."""
        for node in self.parents:
            if isinstance(node, ast.Attribute) and node.attr in _ALL_CHILDREN:
                return True
            parent = self.parents[node]
            if isinstance(node, ast.Constant) and node.value == child and _called_name(parent) != "hasattr":
                return True
            if _called_name(node) == "getattr" and isinstance(node, ast.Call):
                owner, *name = node.args
                if self.is_self(owner) and not (name and isinstance(name[0], ast.Constant)):
                    return True
        return False

    def uses(self, node: ast.AST) -> Uses:
        """Return how an expression that is a layer, or a list of layers, is used."""
        parent = self.parents.get(node)
        result = _USED
        match parent:
            case ast.Attribute():
                result = self._of_attribute(parent)
            case ast.Subscript(value=value) if value is node:
                result = self.uses(parent)
            case ast.Call():
                result = self._of_call(parent, node)
            case ast.keyword():
                call = self.parents[parent]
                result = self._of_call(call, parent) if isinstance(call, ast.Call) else _USED
            case ast.Assign(targets=targets):
                result = self._of_names(targets)
            case ast.AnnAssign(target=target):
                result = self._of_names([target])
            case ast.NamedExpr(target=target):
                result = self._of_names([target]) | self.uses(parent)
            case ast.Tuple() | ast.List():
                result = self._of_elements(parent, node)
            case ast.For(iter=iterated, target=target) | ast.comprehension(iter=iterated, target=target):
                result = self._of_names([target]) if iterated is node else _USED
            case ast.IfExp(test=test):
                result = _NOTHING if test is node else self.uses(parent)
            case ast.BoolOp():
                result = self.uses(parent)
            case ast.If() | ast.While() | ast.Assert() | ast.Compare() | ast.UnaryOp() | ast.Expr() | ast.Delete():
                result = _NOTHING
        return result

    def _of_attribute(self, node: ast.Attribute) -> Uses:
        above = self.parents.get(node)
        is_called = isinstance(above, ast.Call) and above.func is node
        if node.attr in _READS:
            if isinstance(above, ast.Attribute) and above.attr in _FACTS:
                return _NOTHING
            return frozenset({READ, MULTIPLIED}) if self._is_multiplied(node) else frozenset({READ})
        if node.attr in {"values", "items"} and is_called and above is not None:
            return self.uses(above)
        return _USED if is_called or node.attr == "__call__" else _NOTHING

    def _is_multiplied(self, node: ast.AST) -> bool:
        """Return whether a weight is a factor of a product, possibly transposed or cast before."""
        above = self.parents.get(node)
        while isinstance(above, ast.Attribute) or (isinstance(above, ast.Call) and above.func is node):
            node, above = above, self.parents.get(above)
        if isinstance(above, ast.BinOp):
            return isinstance(above.op, ast.MatMult)
        return isinstance(above, ast.Call) and _called_name(above) in _PRODUCTS

    def _of_names(self, targets: list[Any]) -> Uses:
        """Return how the names are used that a layer is assigned to."""
        uses: set[str] = set()
        for target in targets:
            last = (
                target.elts[-1] if isinstance(target, ast.Tuple) and target.elts else target
            )  # of enumerate and items
            if not isinstance(last, ast.Name):
                return _USED
            for node in self.parents:
                if isinstance(node, ast.Name) and node.id == last.id and isinstance(node.ctx, ast.Load):
                    uses |= self.uses(node)
        return frozenset(uses)

    def _of_elements(self, node: ast.Tuple | ast.List, element: ast.AST) -> Uses:
        """Return how an element of a list or tuple is used: by all names that the elements get."""
        above = self.parents.get(node)
        if isinstance(above, (ast.For, ast.comprehension)) and above.iter is node:
            return self._of_names([above.target])
        target = above.targets[0] if isinstance(above, ast.Assign) and len(above.targets) == 1 else None
        if isinstance(target, ast.Tuple) and len(target.elts) == len(node.elts):
            return self._of_names([target.elts[next(i for i, e in enumerate(node.elts) if e is element)]])
        return _USED

    def _of_call(self, call: ast.Call, argument: ast.AST) -> Uses:
        if call.func is argument:
            return _USED
        name = _called_name(call)
        if name in _NEUTRAL:
            return _NOTHING
        if name == "getattr" and len(call.args) > 1 and isinstance(call.args[1], ast.Constant):
            return frozenset({READ}) if call.args[1].value in _READS else _USED
        if name in _ITERATED:
            above = self.parents.get(call)
            if name == "zip" and isinstance(above, (ast.For, ast.comprehension)):
                place = next((i for i, node in enumerate(call.args) if node is argument), -1)
                parts = above.target.elts if isinstance(above.target, ast.Tuple) else []
                return self._of_names([parts[place]]) if 0 <= place < len(parts) else _USED
            return self.uses(call)
        return self._followed(call, argument)

    def _followed(self, call: ast.Call, argument: ast.AST) -> Uses:
        """Return how a function uses an argument, if its source is found."""
        function, bound = self._callee(call.func)
        if function is None or self.depth >= _DEEPEST or any(isinstance(node, ast.Starred) for node in call.args):
            return _USED
        names = function.__code__.co_varnames[: function.__code__.co_argcount + function.__code__.co_kwonlyargcount]
        if isinstance(argument, ast.keyword):
            parameter = argument.arg if argument.arg in names else None
        else:
            place = bound + next(i for i, node in enumerate(call.args) if node is argument)
            parameter = names[place] if place < function.__code__.co_argcount else None
        scope = None if parameter is None else _Scope.of(function, self.kind if bound else None, self.depth + 1)
        if scope is None:
            return _USED
        uses: set[str] = set()
        for node in scope.parents:
            if isinstance(node, ast.Name) and node.id == parameter:
                uses |= scope.uses(node) if isinstance(node.ctx, ast.Load) else _USED
        return frozenset(uses)

    def _callee(self, func: ast.AST) -> tuple[FunctionType | None, int]:
        """Return the function that is called, and 1 if it is a method of the class itself, else 0."""
        member: Any = None
        bound = 0
        if isinstance(func, ast.Name):
            cells = dict(zip(self.function.__code__.co_freevars, self.function.__closure__ or (), strict=True))
            member = _content(cells[func.id]) if func.id in cells else self.function.__globals__.get(func.id)
        elif isinstance(func, ast.Attribute) and self.is_self(func.value) and self.kind is not None:
            member = inspect.getattr_static(self.kind, func.attr, None)
            bound = 0 if isinstance(member, staticmethod) else 1
            member = member.__func__ if isinstance(member, staticmethod) else member
        elif isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name):
            module = self.function.__globals__.get(func.value.id)
            member = getattr(module, func.attr, None) if isinstance(module, ModuleType) else None
        if not isinstance(member, FunctionType) or hasattr(member, "__wrapped__"):
            return None, 0
        return (None, 0) if (member.__module__ or "").partition(".")[0] == "torch" else (member, bound)


def _called_name(call: ast.AST | None) -> str:
    """Return the last part of the name of the function that a call calls; empty for another node."""
    func = call.func if isinstance(call, ast.Call) else None
    return func.id if isinstance(func, ast.Name) else func.attr if isinstance(func, ast.Attribute) else ""


# ----- the source of methods -----


def _methods(kind: type[nn.Module]) -> Iterator[FunctionType]:
    for base in kind.__mro__:
        if base not in {nn.Module, object}:
            for name, member in vars(base).items():
                if name not in _OUTSIDE:
                    yield from _functions(member, set())


def _functions(member: Any, visited_ids: set[int]) -> Iterator[FunctionType]:
    """Yield a method, the function of a property, or those that a wrapper calls."""
    if id(member) in visited_ids:
        return
    visited_ids.add(id(member))
    inner = [function for within in ("__wrapped__", "fget", "func") if (function := getattr(member, within, None))]
    for function in inner:
        yield from _functions(function, visited_ids)
    if isinstance(member, FunctionType) and not inner:  # a wrapper is generic and names no children
        yield member
        for cell in member.__closure__ or ():
            if isinstance(function := _content(cell), FunctionType):
                yield from _functions(function, visited_ids)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the cell is still empty
        return None


@lru_cache(maxsize=4096)
def _words(code: CodeType) -> frozenset[str]:
    """Return the names and the strings in the code of a function, and in that of its inner functions."""
    words = {*code.co_names, *(constant for constant in code.co_consts if isinstance(constant, str))}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            words |= _words(constant)
        elif isinstance(constant, tuple):
            words |= {item for item in constant if isinstance(item, str)}
    return frozenset(words)


@lru_cache(maxsize=512)
def _tree(code: CodeType) -> ast.AST | None:
    """Return the body of a function as a syntax tree, without its decorators; None if its source is not known."""
    lines = linecache.getlines(code.co_filename)[max(code.co_firstlineno - 1, 0) :]
    try:
        statement = ast.parse(textwrap.dedent("".join(inspect.getblock(lines)))).body[0]
    except (IndexError, SyntaxError, ValueError):
        return None
    if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)) or statement.name != code.co_name:
        return None
    statement.decorator_list.clear()
    return statement


def _parents(tree: ast.AST) -> dict[ast.AST, ast.AST | None]:
    parents: dict[ast.AST, ast.AST | None] = {tree: None}
    pending = [tree]
    while pending:
        node = pending.pop()
        for inner in ast.iter_child_nodes(node):
            parents[inner] = node
            pending.append(inner)
    return parents
