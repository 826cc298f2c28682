"""Commands `policy show` and `policy set`: the rules of promotion."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from .options import JsonOpt, QuietOpt, ReasonOpt, SourceOpt
from .output import Output

app = typer.Typer(help="Show and change the rules of promotion: protected aliases, who moves them, approvals, checks.")

_LARGEST = 1 << 20  # bytes of a file with rules


@app.command()
def show(source: SourceOpt = None, json: JsonOpt = False, quiet: QuietOpt = False) -> None:
    """Print the rules of promotion as JSON, as `policy set` takes them.

    [dim]deltahub policy show --source team > rules.json[/dim]
    """
    from deltahub.hub.hub import Hub
    from deltahub.sources.base import governed

    place = Hub.open().source(source)
    policy, _ = governed(place).policy()
    rules = {key: value for key, value in policy.to_dict().items() if key != "log"}
    Output(as_json=json, quiet=quiet).result(rules, jsonlib.dumps(rules, indent=2))


@app.command("set")
def set_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A JSON file with the rules.")],
    source: SourceOpt = None,
    message: ReasonOpt = "",
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Replace the rules of promotion; who may, and the form of a rule, are in docs/promotion.md.

    [dim]deltahub policy set rules.json --source team -m "two approvals for prod"[/dim]
    """
    from deltahub.errors import ConfigError
    from deltahub.files.atomic import read_file
    from deltahub.files.documents import parse
    from deltahub.hub.hub import Hub
    from deltahub.registry.promotion.policy import Policy
    from deltahub.sources.base import governed

    try:
        policy = Policy.parse(parse(read_file(file, _LARGEST)))
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        msg = f"{file} is not JSON: {error}."
        raise ConfigError(msg) from error
    place = Hub.open().source(source)
    target = governed(place)
    stored = target.set_policy(policy, target.policy()[1], message)
    out = Output(as_json=json, quiet=quiet)
    aliases = sorted({alias for rule in stored.rules for alias in rule.aliases})
    data = {key: value for key, value in stored.to_dict().items() if key != "log"}
    out.result(data, f"{place.name}: {len(stored.rules)} rules protect {', '.join(aliases) or 'nothing'}")
