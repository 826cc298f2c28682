"""Pickles, which run code when they are opened, are not taken unless a namespace allows them.

They are known by the endings of their names, and by how they begin: pickle protocols 2 and later, and the zip files of torch.save.
"""

from __future__ import annotations

import re
from typing import Final

from deltahub.server.refusals import Refusal
from deltahub.server.settings import Settings

HEAD: Final = 512  # bytes from the beginning of a file that are enough to tell
_ENDINGS: Final = re.compile(
    r"(?i)\.(bin|pt|pth|pkl|pickle|ckpt|joblib|dill|pt2|p|mar|nemo)(\.(gz|bz2|xz|zst|lz4|zip))?$"
)
_PROTOCOL: Final = re.compile(rb"\x80[\x02-\x05]")
_ZIP: Final = b"PK\x03\x04"
_ZIPPED: Final = re.compile(rb"[^\x00]{0,200}(data\.pkl|\.pickle|\.pkl|\.data/version|/byteorder)")
_OBJECTS: Final = re.compile(rb"\x93NUMPY.{4,6}\{[^}]*'descr':\s*'\|O", re.DOTALL)


def looks_pickled(path: str, head: bytes) -> str | None:
    """Why a file is taken for a pickle, as a clause; None if it is not.

    Args:
        path: its name in the repository.
        head: its first bytes, `HEAD` of them or all; none if they are not known yet.
    """
    if found := _ENDINGS.search(path):
        return f"its name ends in {found[0]}"
    if _PROTOCOL.match(head):
        return "it begins as a pickle does"
    if head.startswith(_ZIP) and _ZIPPED.match(head, 30):  # where the name of the first file in a zip stands
        return "it begins as a file of torch.save does"
    if _OBJECTS.match(head):
        return "it is an array of pickled objects"
    return None


def refuse_pickle(settings: Settings, namespace: str, path: str, head: bytes = b"") -> None:
    """Check that a file may be uploaded.

    Args:
        settings: which namespaces take pickles.
        head: the file's first bytes, as far as they are known.

    Raises:
        Refusal: it is a pickle, and the namespace takes none.
    """
    if settings.allows_pickle(namespace) or not (why := looks_pickled(path, head)):
        return
    message = (
        f"{path} is taken for a Python pickle ({why}), which can run code on the machine of whoever opens it. "
        "Save the weights as safetensors, leave the file out, or ask whoever runs this hub to start it with "
        f"--allow-pickle {namespace}."
    )
    raise Refusal(403, message)
