"""Validation of a model card before its upload: what is wrong with its metadata, in the words of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from deltahub.server.bodies import LARGE, text_field, with_json
from deltahub.text.front_matter import front_matter

_EMPTY: Final = "empty or missing yaml metadata in repo card"
# The identifiers that the Hub takes; any other licence is "other", with its name in license_name.
_LICENSE_LIST: Final = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m afl-3.0
artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0
epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research
intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openmdw-1.1 openrail++ osl-3.0
postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2
llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma tii-falcon-llm unknown other
"""
_LICENSES: Final = tuple(_LICENSE_LIST.split())
_WORDS: Final = ("tags", "language", "datasets", "base_model")  # a text or a list of texts
_WORD: Final = ("library_name", "pipeline_tag", "license_name", "license_link")


def validate(request: Request, body: dict[str, Any]) -> Response:
    """Report errors and warnings about the front matter of a card: 400 if there are errors.

    The answer is JSON, or with ``Accept: text/plain`` one line for each.
    """
    errors, warnings = _faults(text_field(body, "content").lstrip("\ufeff\r\n\t "))
    status = 400 if errors else 200
    if request.headers.get("accept", "").startswith("text/plain"):
        lines = [*(f"- Error: {text}" for text in errors), *(f"- Warning: {text}" for text in warnings)]
        return PlainTextResponse("\n".join(lines), status)
    answer = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return JSONResponse(answer, status)


def allow_anyone(request: Request) -> None:
    """Allow callers without any permission: Hub clients validate a card without a token."""


def _faults(card: str) -> tuple[list[str], list[str]]:
    try:
        metadata = front_matter(card)
    except ValueError as error:
        return [f"The front matter of the card cannot be read: {error}."], []
    if not metadata:
        return [], [_EMPTY]
    return [*_wrong_fields(metadata), *_wrong_index(metadata)], []


def _wrong_fields(metadata: dict[str, Any]) -> Iterator[str]:
    licenses = metadata.get("license")
    for license_id in licenses if isinstance(licenses, list) else [licenses]:
        if license_id is not None and license_id not in _LICENSES:
            yield f'"license" must be one of [{", ".join(_LICENSES)}]'
            break
    for key in _WORDS:
        value = metadata.get(key)
        if value is not None and not all(
            isinstance(item, str) for item in (value if isinstance(value, list) else [value])
        ):
            yield f'"{key}" must be a string or an array of strings'
    for key in _WORD:
        if not isinstance(metadata.get(key), str | None):
            yield f'"{key}" must be a string'


def _wrong_index(metadata: dict[str, Any]) -> Iterator[str]:
    """Yield the first fault of each model in the metadata's list of results."""
    if "model-index" not in metadata:
        return
    models = metadata["model-index"]
    if not isinstance(models, list):
        yield '"model-index" must be an array'
        return
    for at, model in enumerate(models):
        if fault := next(_wrong_model(f"model-index[{at}]", model), None):
            yield fault


def _wrong_model(name: str, model: Any) -> Iterator[str]:
    if not isinstance(model, dict):
        yield f'"{name}" must be of type object'
        return
    yield from _missing(name, model, "name", str, "a string")
    yield from _missing(name, model, "results", list, "an array")
    for at, result in enumerate(model["results"]):
        place = f"{name}.results[{at}]"
        if not isinstance(result, dict):
            yield f'"{place}" must be of type object'
            return
        yield from _missing(place, result, "task", dict, "of type object")
        yield from _missing(f"{place}.task", result["task"], "type", str, "a string")
        yield from _missing(place, result, "metrics", list, "an array")
        for number, metric in enumerate(result["metrics"]):
            if not isinstance(metric, dict) or "type" not in metric or "value" not in metric:
                yield f'"{place}.metrics[{number}]" must have "type" and "value"'


def _missing(place: str, values: dict[str, Any], key: str, kind: type, words: str) -> Iterator[str]:
    if key not in values:
        yield f'"{place}.{key}" is required'
    elif not isinstance(values[key], kind):
        yield f'"{place}.{key}" must be {words}'


routes: Final = [Route("/api/validate-yaml", with_json(validate, allow_anyone, LARGE), methods=["POST"])]
