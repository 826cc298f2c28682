"""Command `watch`."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING, Annotated

import typer

from .options import JsonOpt, QuietOpt
from .output import print_json, say

if TYPE_CHECKING:
    from deltahub.registry.events import Event

_TRIES = 5  # to send an event, with a longer wait each time


def watch(
    target: Annotated[
        str, typer.Argument(metavar="REF|NAMESPACE", help="A delta, or a namespace of a registry: [source:]namespace.")
    ],
    command: Annotated[
        str | None,
        typer.Option(
            "--exec", metavar="CMD", help="Run this in a shell for each event, with the event as JSON on stdin."
        ),
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option("--webhook", metavar="URL", help="Send each event there, signed with DELTAHUB_WEBHOOK_SECRET."),
    ] = None,
    every: Annotated[float, typer.Option("--every", min=0.1, help="Seconds between two looks.")] = 10.0,
    once: Annotated[bool, typer.Option("--once", help="End after the first look that finds an event.")] = False,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Print, send or hand on what changes from now on, until it is interrupted: pushes, moves of aliases, requests, approvals.

    [dim]deltahub watch team:acme/sst2 --json[/dim]

    [dim]deltahub watch acme --exec './deploy.sh'[/dim]
    """
    from deltahub.errors import UnreachableError
    from deltahub.hub.hub import Hub
    from deltahub.hub.watch import Watch

    watched = Watch(Hub.open(), target)
    if not quiet:
        say(f"Watching {target}. Press Ctrl-C to end.", err=True)
    while True:
        found = False
        try:
            for event in watched.poll():
                found = True
                if json:
                    print_json(event.to_dict())
                elif not quiet:
                    say(f"{event.move.time} {event.text}")
                _hand_on(event, command, webhook)
        except UnreachableError as error:
            say(f"{error} Trying again.", err=True)
        if found and once:
            return
        time.sleep(every)


def _hand_on(event: Event, command: str | None, webhook: str | None) -> None:
    """Run the command and send the event; a failure is printed, and the watch goes on."""
    import json

    body = json.dumps({"event": event.to_dict()})
    if command:
        status = subprocess.run(command, shell=True, input=body, text=True, check=False).returncode  # noqa: S602  (of the user)
        if status:
            say(f"The command ended with status {status} for {event.text}", err=True)
    if webhook:
        _send(event, webhook, body.encode())


def _send(event: Event, url: str, body: bytes) -> None:
    from deltahub.errors import StorageError
    from deltahub.sources.web.post import post

    for attempt in range(1, _TRIES + 1):
        try:
            post(url, body, int(time.time()), os.environ.get("DELTAHUB_WEBHOOK_SECRET"), private=True)
        except StorageError as error:
            say(f"{error} ({attempt} of {_TRIES}: {event.text})", err=True)
            if attempt < _TRIES:
                time.sleep(2.0**attempt)
        else:
            return
