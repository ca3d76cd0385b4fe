"""The reference of a schema as Markdown, from the docstrings and bounds that stand in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from training.config.flat import PLACES, task_names

_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minItems": "{} or more",
    "pattern": "matching `{}`",
}


def reference(title: str, model: type[BaseModel], where: str) -> str:
    """A chapter for `model`: its own keys in a table, then a section for each block in it."""
    schema = model.model_json_schema(by_alias=True)
    lines = [f"# {title}", "", where, "", *_table(schema, schema)]
    for name, block in _blocks(schema, schema["properties"]):
        lines += ["", f"## `{name}`", "", block.get("description", ""), "", *_table(block, schema)]
    return "\n".join(lines) + "\n"


def flat_reference() -> str:
    """A chapter for the flat form: its keys, and the names of tasks."""
    lines = [
        "# The flat form of a job",
        "",
        "One level of keys, for `hpo train --config FILE.json` (or YAML). Those of the nested form may stand beside"
        " these. `batch_size` is of one micro-batch of one rank: the global batch is it times devices, nodes and"
        " `accumulate_grad_batches`.",
        "",
        f"`task_name` is one of {', '.join(f'`{name}`' for name in sorted(task_names()))}, or a task of your own.",
        "",
        "| key | stands for |",
        "| --- | --- |",
        *(f"| `{key}` | `{'.'.join(map(str, path))}` |" for key, path in PLACES.items()),
    ]
    return "\n".join(lines) + "\n"


def _blocks(
    schema: dict[str, Any], properties: dict[str, Any], within: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, field in properties.items():
        if reference := _block(field):
            block = schema["$defs"][reference.rpartition("/")[2]]
            yield within + name, block
            yield from _blocks(schema, block["properties"], f"{within}{name}.")


def _block(field: dict[str, Any]) -> str | None:
    """The reference to the block that a key holds, also when it may be null instead, or a list of it."""
    options = (field, *field.get("anyOf", ()), field.get("items", {}))
    return next((option["$ref"] for option in options if "$ref" in option), None)


def _table(block: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    rows = [(name, field) for name, field in block["properties"].items() if not _block(field)]
    if rows:
        yield from ("| key | value | default | meaning |", "| --- | --- | --- | --- |")
    for name, field in rows:
        default = f"`{_yaml(field['default'])}`" if "default" in field else "required"
        meaning = " ".join(field.get("description", "").split())
        yield f"| `{name}` | {_kind(field)} | {default} | {meaning} |"


def _kind(field: dict[str, Any]) -> str:
    """What a value may be: ``int, at least 1`` or ``adamw or sgd``."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_kind(option) for option in field["anyOf"]))
    if "enum" in field or "const" in field:
        return " or ".join(f"`{_yaml(value)}`" for value in field.get("enum", [field.get("const")]))
    bounds = [text.format(field[key]) for key, text in _BOUNDS.items() if key in field]
    if "maxItems" in field and field["maxItems"] == field.get("minItems"):
        bounds = [f"exactly {field['minItems']}"]
    name = {"integer": "int", "number": "float", "string": "text", "boolean": "true or false", "object": "mapping"}
    kind = "null" if field.get("type") == "null" else name.get(field.get("type", ""), field.get("type", "any value"))
    if kind == "array":
        kind = f"list of ({_kind(field['items'])})" if "items" in field else "list"
    return ", ".join([kind, *bounds])


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
