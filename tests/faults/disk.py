"""A disk that loses power: what was synced stays, and of the rest any part may be there.

The model of POSIX at its worst that file systems in use keep to: `fsync` of a file makes its bytes durable and nothing else, `fsync`
of a folder makes its entries durable, `syncfs` makes all durable. Each entry that is not durable is there or not, whatever the
others do; a file that was renamed may stand in both places; bytes that are not durable are there, missing, cut or zeros.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

Tree = dict[str, bytes | None]  # a file's bytes, None for a folder, by relative path
Operation = Callable[["Disk"], None]

CONTENTS: dict[str, Callable[[bytes], bytes]] = {
    "whole": lambda data: data,
    "missing": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
}


@dataclass
class Node:
    """A file or folder, whatever its names.

    Attributes:
        entries: of a folder, as they are; None for a file.
        durable: those that outlast a power loss.
        data: of a file, as it is.
        synced: whether the bytes are durable.
    """

    entries: dict[str, int] | None = None
    durable: dict[str, int] = field(default_factory=dict)
    data: bytes = b""
    synced: bool = False


@dataclass(frozen=True)
class Half:
    """One change of one entry; None removes it."""

    folder: int
    name: str
    node: int | None


@dataclass
class Disk:
    """Files and folders below one folder, and which changes of them are not durable yet."""

    nodes: dict[int, Node] = field(default_factory=lambda: {0: Node(entries={})})
    pending: list[list[Half]] = field(default_factory=list)

    @classmethod
    def of(cls, root: Path) -> Disk:
        """A disk that holds what is in a folder, all of it durable."""
        disk = cls()
        for path in sorted(root.rglob("*")):
            name = str(path.relative_to(root))
            if path.is_dir():
                disk.mkdir(name)
            else:
                disk.create(name)
                disk.write(name, path.read_bytes())
        disk.syncfs()
        return disk

    def find(self, path: str) -> int:
        """The node under a relative path."""
        node = 0
        for name in Path(path).parts:
            entries = self.nodes[node].entries
            assert entries is not None, path
            node = entries[name]
        return node

    def _half(self, path: str, node: int | None) -> Half:
        folder = self.find(str(Path(path).parent))
        entries = self.nodes[folder].entries
        assert entries is not None, path
        if node is None:
            del entries[Path(path).name]
        else:
            entries[Path(path).name] = node
        return Half(folder, Path(path).name, node)

    def _new(self, path: str, node: Node) -> None:
        self.nodes[len(self.nodes)] = node
        self.pending.append([self._half(path, len(self.nodes) - 1)])

    def mkdir(self, path: str) -> None:
        """Make a folder."""
        self._new(path, Node(entries={}))

    def create(self, path: str) -> None:
        """Make an empty file, or empty one."""
        try:
            node = self.nodes[self.find(path)]
        except KeyError:
            self._new(path, Node())
        else:
            node.data, node.synced = b"", False

    def write(self, path: str, data: bytes) -> None:
        """Append to a file."""
        node = self.nodes[self.find(path)]
        node.data, node.synced = node.data + data, False

    def link(self, old: str, new: str) -> None:
        """Give a file a second name."""
        self.pending.append([self._half(new, self.find(old))])

    def rename(self, old: str, new: str) -> None:
        """Rename a file or folder, over another one or not."""
        node = self.find(old)
        removed = self._half(old, None)
        self.pending.append([self._half(new, node), removed])

    def remove(self, path: str) -> None:
        """Remove a file or an empty folder."""
        self.pending.append([self._half(path, None)])

    def fsync(self, path: str) -> None:
        """Make a file's bytes or a folder's entries durable."""
        number = self.find(path)
        node = self.nodes[number]
        if node.entries is None:
            node.synced = True
            return
        node.durable = dict(node.entries)
        changes = [[half for half in change if half.folder != number] for change in self.pending]
        self.pending = [change for change in changes if change]

    def syncfs(self) -> None:
        """Make all durable."""
        self.pending = []
        for node in self.nodes.values():
            node.synced, node.durable = True, dict(node.entries or {})

    def now(self) -> Tree:
        """What is there for whoever looks before the power goes."""
        return self._tree({number: node.entries or {} for number, node in self.nodes.items()}, CONTENTS["whole"])

    def copy(self) -> Disk:
        """Another one that is the same."""
        return copy.deepcopy(self)

    def after_power_loss(self, seed: int, tries: int) -> Iterator[Tree]:
        """What may be there afterwards: each change alone, all but each, all, none, and a number of random choices.

        Args:
            tries: how many random ones.
        """
        count = len(self.pending)
        chosen = [[], list(range(count))]
        chosen += [[one] for one in range(count)] + [[n for n in range(count) if n != one] for one in range(count)]
        chance = random.Random(seed)
        chosen += [[n for n in range(count) if chance.random() < 0.5] for _ in range(tries)]
        renamed = any(len(change) > 1 for change in self.pending)
        loose = any(node.entries is None and not node.synced for node in self.nodes.values())
        contents = list(CONTENTS.values()) if loose else [CONTENTS["whole"]]
        for numbers in dict.fromkeys(map(tuple, chosen)):
            for both in (False, True) if renamed else (False,):
                entries = {number: dict(node.durable) for number, node in self.nodes.items()}
                for change in numbers:
                    for half in self.pending[change][:1] if both else self.pending[change]:
                        if half.node is None:
                            entries[half.folder].pop(half.name, None)
                        else:
                            entries[half.folder][half.name] = half.node
                for content in contents:
                    yield self._tree(entries, content)

    def _tree(self, entries: dict[int, dict[str, int]], content: Callable[[bytes], bytes]) -> Tree:
        tree: Tree = {}

        def walk(folder: int, path: str) -> None:
            for name, number in entries[folder].items():
                node = self.nodes[number]
                if node.entries is None:
                    tree[f"{path}{name}"] = node.data if node.synced else content(node.data)
                else:
                    tree[f"{path}{name}"] = None
                    walk(number, f"{path}{name}/")

        walk(0, "")
        return tree


def tree_of(root: Path) -> Tree:
    """What is in a folder, which may be missing."""
    tree: Tree = {}
    for folder, folders, files in os.walk(root):
        inside = os.path.relpath(folder, root)
        tree.update((os.path.normpath(f"{inside}/{name}"), None) for name in folders)
        for name in files:
            descriptor = os.open(f"{folder}/{name}", os.O_RDONLY)  # `open` may be broken on purpose
            try:
                tree[os.path.normpath(f"{inside}/{name}")] = os.read(descriptor, os.fstat(descriptor).st_size)
            finally:
                os.close(descriptor)
    return tree


def write_tree(tree: Tree, root: Path) -> None:
    """Make a folder with this content."""
    root.mkdir()
    for path, data in sorted(tree.items()):
        if data is None:
            (root / path).mkdir()
        else:
            descriptor = os.open(f"{root}/{path}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(descriptor, data)
            os.close(descriptor)


class Seen:
    """What was left before by another step, which need not be verified and repaired twice."""

    def __init__(self) -> None:
        self._trees: set[frozenset[tuple[str, bytes | None]]] = set()

    def is_new(self, root: Path) -> bool:
        """Whether the files of a folder differ from all that were asked for."""
        count = len(self._trees)
        self._trees.add(frozenset(tree_of(root).items()))
        return len(self._trees) > count
