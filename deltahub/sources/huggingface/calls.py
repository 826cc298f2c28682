"""Calls to a hub of the Hugging Face protocol, through huggingface_hub's own client.

The address and token are read at every call, so that one process can use several hubs and a login takes effect at once. Failed
calls are retried where that may help; the final error is a single sentence.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from deltahub.secrets import header_value
from deltahub.sources.base import pause
from deltahub.sources.huggingface.failures import Asked, sentence
from deltahub.sources.huggingface.waiting import patiently
from deltahub.version import VERSION

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
Token = str | Literal[False] | None

HUGGING_FACE: Final = "https://huggingface.co"
TIMEOUT: Final = 60.0  # seconds without a byte
COMMIT: Final = "x-repo-commit"  # header with the commit of a response


class Calls:
    """Client of one hub, for one user.

    Args:
        name: of the source.
        endpoint: its URL; None for HF_ENDPOINT, or else the Hugging Face Hub.
        token: the user's token there; False for none.
        token_variable: the environment variable with the token otherwise; None for the token of `hf auth login` or HF_TOKEN.
        pause: waits for a number of seconds.
    """

    def __init__(
        self,
        name: str,
        endpoint: str | None = None,
        token: Token = None,
        token_variable: str | None = None,
        pause: Callable[[float], None] = pause,
    ) -> None:
        self.name = name
        self._endpoint = endpoint
        self._token = token
        self._token_variable = token_variable
        self._pause = pause

    @property
    def endpoint(self) -> str:
        """The hub's URL without a trailing "/"."""
        return (self._endpoint or os.environ.get("HF_ENDPOINT", "").strip() or HUGGING_FACE).rstrip("/")

    @property
    def place(self) -> str:
        """The source's name and URL for people, without user and password."""
        scheme, _, rest = self.endpoint.rpartition("://")
        return f"{self.name} ({scheme}://{rest.rpartition('@')[2]})"

    @property
    def token(self) -> str | Literal[False]:
        """The token to send, without the trailing newline of a secret read from a file; False for none.

        Raises:
            ConfigError: it contains characters that a token cannot have.
        """
        if self._token is not None:
            found, where = self._token or "", f"The token given for the source {self.name}"
        elif self._token_variable is not None:
            found, where = os.environ.get(self._token_variable, ""), f"The environment variable {self._token_variable}"
        else:
            from huggingface_hub import get_token

            found, where = get_token() or "", "The token of HF_TOKEN or `hf auth login`"
        return header_value(found, where) or False

    @property
    def _log_in(self) -> str:
        if self._token_variable is None:
            return "log in with `hf auth login`, or set HF_TOKEN"
        return f"set {self._token_variable}, the environment variable for the token of the source {self.name}"

    @property
    def api(self) -> HfApi:
        """huggingface_hub's client for this hub."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=self.token, library_name="deltahub", library_version=VERSION)

    def headers(self) -> dict[str, str]:
        """Return the headers for requests sent without huggingface_hub's client."""
        from huggingface_hub.utils import build_hf_headers

        headers = build_hf_headers(token=self.token, library_name="deltahub", library_version=VERSION)
        return {**headers, "Accept-Encoding": "identity"}

    def make(self, call: Callable[[], T], doing: str, what: str) -> T:
        """Make a call with retries; turn its final error into a single sentence.

        Args:
            call: may be made more than once.
            doing: the operation, e.g. ``"Pulling acme/ner"``.
            what: the delta it is about.

        Raises:
            NotFoundError: the hub does not have it, or hides it from this token.
            UnreachableError: the hub did not answer.
            StorageError: the hub refused.
        """
        try:
            return patiently(call, doing, self.place, self._pause)
        except Exception as error:
            known = sentence(error, Asked(doing, what, self.place, bool(self.token), self._log_in))
            if known is None:
                raise
            raise known from error
