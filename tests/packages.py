"""Packages that tests install: a module, and the entry points of its distribution."""

from __future__ import annotations

from pathlib import Path


def install(site: Path, package: str, entry_points: str, module: str = "", code: str = "") -> None:
    """Write a distribution into a folder for `sys.path`, as pip would.

    Args:
        entry_points: the content of its entry_points.txt.
        module: the name of its module, if it has one.
        code: the module's content.
    """
    info = site / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    if module:
        (site / f"{module}.py").write_text(code)
