"""Calls to a hub of the Hugging Face protocol, through huggingface_hub's own client.

The address and token are read at every call, so that one process can use several hubs and a login takes effect at once. Failed
calls are retried where that may help; the final error is a single sentence.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from deltahub.sources.base import pause
from deltahub.sources.huggingface.failures import Asked, sentence
from deltahub.sources.huggingface.retries import patiently
from deltahub.stores.threads import within
from deltahub.text.credentials import header_value
from deltahub.version import VERSION

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
Token = str | Literal[False] | None

HUGGING_FACE: Final = "https://huggingface.co"
TIMEOUT: Final = 60.0  # seconds without a byte
ANSWER: Final = 300.0  # seconds for one answer as a whole, without the bytes of files
_SLOWEST: Final = 10_000  # bytes of files a second; who is slower is given up
COMMIT: Final = "x-repo-commit"  # the header that says which commit an answer is from


class Calls:
    """Client of one hub, for one user.

    Args:
        name: of the source.
        endpoint: its URL; None for HF_ENDPOINT, or else the Hugging Face Hub.
        token: the user's token there; False for none.
        token_variable: the environment variable with the token otherwise; None for the token of `hf auth login` or HF_TOKEN.
        pause: waits for a number of seconds.
        longest: seconds for one answer as a whole.
    """

    def __init__(
        self,
        name: str,
        endpoint: str | None = None,
        token: Token = None,
        token_variable: str | None = None,
        pause: Callable[[float], None] = pause,
        longest: float = ANSWER,
    ) -> None:
        self.name = name
        self._endpoint = endpoint
        self._token = token
        self._token_variable = token_variable
        self._pause = pause
        self._longest = longest

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

    def patience(self, size: int) -> float:
        """Return the seconds that a call may take which sends or gets so many bytes of files."""
        return self._longest + size / _SLOWEST

    def make(self, call: Callable[[], T], doing: str, what: str, size: int | None = 0) -> T:
        """Make a call, again where that may help; what fails in the end is one sentence.

        Args:
            call: may be made more than once; it is given up if it does not end in time.
            doing: what is going on, e.g. ``"Pulling acme/ner"``.
            what: the delta it is about.
            size: bytes of files that it sends or gets; None for a call that gives itself up, by TimeoutError.

        Raises:
            NotFoundError: the hub does not have it, or not for this token.
            UnreachableError: there was no answer, or none that ended.
            StorageError: it refused.
        """
        ended = call if size is None else partial(within, self.patience(size), call)
        asked = Asked(doing, what, self.place, bool(self.token), self._log_in)
        try:
            return patiently(ended, doing, self.place, self._pause)
        except Exception as error:
            known = sentence(error, asked)
            if known is None:
                raise
            raise known from error
