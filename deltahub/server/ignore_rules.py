"""Files excluded from an upload: by the repository's ``.gitignore``, and by rules for secrets.

A client asks before it sends the files of a folder and skips ignored ones. The rules for secrets come first, so that ``!.env`` in
a ``.gitignore`` lets that file in. A single file uploaded by name is intended, so only the ``.gitignore`` applies to it.
"""

from __future__ import annotations

from typing import Final

import re2
from pathspec import GitIgnoreSpec

from deltahub.server.errors import Refusal

GITIGNORE: Final = ".gitignore"
LARGEST: Final = 64 << 10  # bytes of a .gitignore
_MOST_RULES: Final = 1000
_SECRETS: Final = (
    *(".env", ".env.*", "!.env.example", "!.env.sample", "!.env.template"),
    *("*.key", "*.pem", "*.p12", "*.pfx", "*.keystore", "id_rsa", "id_dsa", "id_ecdsa", "id_ed25519"),
    *(".netrc", "_netrc", ".pypirc", ".git-credentials", ".npmrc", ".aws/credentials", ".ssh/"),
)


def ignore_rules(gitignore: str, *, named: bool) -> GitIgnoreSpec:
    """Return the exclusion rules, matched in linear time.

    Args:
        gitignore: the text of the ``.gitignore``.
        named: whether the upload is a single file given by name, not found in a folder.

    Raises:
        Refusal: the text is too large, or contains a rule that git does not know.
    """
    lines = gitignore.splitlines()
    if len(gitignore.encode(errors="replace")) > LARGEST or len(lines) > _MOST_RULES:
        raise Refusal(400, f"A {GITIGNORE} here has at most {LARGEST:,} bytes and {_MOST_RULES:,} lines. Shorten it.")
    try:
        return GitIgnoreSpec.from_lines([*(() if named else _SECRETS), *lines], backend="re2")
    except (ValueError, re2.error) as error:
        raise Refusal(400, f"The {GITIGNORE} cannot be followed: {error}. Correct or shorten it.") from error
