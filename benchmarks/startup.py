"""How fast the command line answers, beside the `hf` command: CPU seconds of whole processes."""

from __future__ import annotations

import compileall
import sys
import tempfile
from pathlib import Path

from measure import OUT, processes, report

import deltahub
from deltahub.checkpoint.manifest import FileEntry, Manifest
from deltahub.reference import Reference
from deltahub.registry.publish import Publication, publish
from deltahub.registry.registry import Registry
from deltahub.stores.local import LocalStore

DELTAS = 1000
ROUNDS = 9


def fill(home: Path) -> None:
    """Publish many deltas that differ in one digest."""
    folder = home / "content"
    folder.mkdir(parents=True)
    registry = Registry(LocalStore(home / "registry"))
    for number in range(DELTAS):
        data = f"{number}".encode()
        (folder / "delta.safetensors").write_bytes(data)
        import hashlib

        entry = FileEntry("delta.safetensors", hashlib.sha256(data).hexdigest(), len(data))
        config = {"delta_type": "lora", "backbone_class": "BertModel", "backbone_checkpoint_name": "bert-base"}
        manifest = Manifest(config, (entry,), (), {"total": 1000, "delta": 1000})
        publish(
            registry,
            Publication(Reference.parse(f"team/delta-{number:04}"), manifest, folder, tags=[f"task={number % 7}"]),
        )


def main() -> None:
    """Print the table."""
    compileall.compile_dir(Path(deltahub.__file__).parent, quiet=1)
    scripts = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        fill(home)
        environment = {"DELTAHUB_HOME": str(home), "DELTAHUB_CACHE": str(home / "cache"), "HF_HUB_OFFLINE": "1"}
        commands = {
            "deltahub --version": [str(scripts / "deltahub"), "--version"],
            f"deltahub list ({DELTAS:,} deltas)": [str(scripts / "deltahub"), "list"],
            f"deltahub list --json ({DELTAS:,} deltas)": [str(scripts / "deltahub"), "list", "--json"],
            "hf version": [str(scripts / "hf"), "version"],
        }
        report("Start-up, CPU seconds of a process", processes(commands, ROUNDS, environment), "hf version", 1, "s")
        OUT.print("")


if __name__ == "__main__":
    main()
