"""Sign-in with a token, sign-out, and the choice of theme: the only forms of the pages.

They write nothing to the registry but session documents. A form is accepted only from this hub's own pages, by the browser's
Origin header (CSRF).
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qs, quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from deltahub.server.addresses import address_of
from deltahub.server.authentication import authenticator_of
from deltahub.server.bodies import body_of
from deltahub.server.csrf import is_cross_site
from deltahub.server.errors import Refusal
from deltahub.server.pages.browsers import SIGN_IN, drop_session, is_secure, keep_session, session_of
from deltahub.server.pages.rendering import THEME_COOKIE, THEMES, page, redirect
from deltahub.server.sessions import LIFETIME
from deltahub.server.state import state_of

_LARGEST: Final = 8 << 10  # bytes of a form
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{8,200}")
_YEAR: Final = 365 * 24 * 3600
_WRONG: Final = 401


def sign_in_form(request: Request) -> Response:
    """Show the form for a token."""
    refused = "refused" in request.query_params
    return page(request, "sign_in.html", refused=refused, next=path_on_this_hub(request.query_params.get("next", "")))


async def sign_in(request: Request) -> Response:
    """Start a session for a token, in a cookie that is hidden from scripts and not sent by other sites."""
    form = await _own_form(request)
    token = form.get("token", "").strip()
    if not _TOKEN.fullmatch(token):
        message = "This is not a token of this hub: expected dhub_ followed by letters and digits, as printed by `deltahub serve token create`."
        return page(
            request, "sign_in.html", 400, refused=False, wrong=message, next=path_on_this_hub(form.get("next", ""))
        )
    following = path_on_this_hub(form.get("next", ""))
    authenticator = authenticator_of(request)
    try:
        valid_token = await authenticator.token(token, address_of(request.scope))
    except Refusal as refusal:
        if refusal.status != _WRONG:
            raise
        return redirect(request, f"{SIGN_IN}?refused=1&next={quote(following, safe='')}")
    if previous_secret := session_of(request):
        await run_in_threadpool(authenticator.end, previous_secret)
    secret = await run_in_threadpool(authenticator.sessions.create, valid_token.id)
    answer = redirect(request, following)
    keep_session(request, answer, secret, int(LIFETIME.total_seconds()))
    return answer


async def sign_out(request: Request) -> Response:
    """End the session on the server, so that copies of its cookie are useless too."""
    await _own_form(request)
    if secret := session_of(request):
        await run_in_threadpool(authenticator_of(request).end, secret)
    answer = redirect(request, "/")
    drop_session(request, answer)
    return answer


async def choose_theme(request: Request) -> Response:
    """Store the choice of light or dark; any other value follows the browser's setting."""
    form = await _own_form(request)
    answer = redirect(request, path_on_this_hub(form.get("next", "")))
    if form.get("theme") in THEMES:
        answer.set_cookie(THEME_COOKIE, form["theme"], max_age=_YEAR, samesite="strict", secure=is_secure(request))
    else:
        answer.delete_cookie(THEME_COOKIE)
    return answer


def path_on_this_hub(text: str) -> str:
    """Return a path on this hub; the front page for any other target, to prevent open redirects."""
    sound = re.fullmatch(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]*", text)
    return text if sound else "/"


async def _own_form(request: Request) -> dict[str, str]:
    """Return the fields of a form.

    Raises:
        Refusal: it is cross-site, or too large.
    """
    if not _is_own(request):
        raise Refusal(403, "This form was sent from another site. Open the hub's own page and submit it there.")
    body = await body_of(request, _LARGEST)
    return {key: values[-1] for key, values in parse_qs(body.decode("utf-8", "replace")).items()}


def _is_own(request: Request) -> bool:
    headers = request.headers
    has_origin = "origin" in headers or headers.get("sec-fetch-site") == "same-origin"
    return has_origin and not is_cross_site(headers, state_of(request).settings.public_url)
