"""protovalidate rules as JSON Schema keywords.

A rule that JSON Schema cannot say (CEL, byte lengths, bounds of durations) is left to the comment beside it:
a schema may accept more than the server does, never less.
"""

import re
from collections.abc import Mapping
from typing import Any

type Schema = dict[str, Any]

_FORMATS = {
    "email": "email",
    "hostname": "hostname",
    "ipv4": "ipv4",
    "ipv6": "ipv6",
    "uri": "uri",
    "uri_ref": "uri-reference",
    "uuid": "uuid",
}
_NUMBER_KEYWORDS = {
    "gte": "minimum",
    "lte": "maximum",
    "gt": "exclusiveMinimum",
    "lt": "exclusiveMaximum",
    "const": "const",
}
_NUMBER_KINDS = frozenset({"float", "double", "int32", "uint32", "sint32", "fixed32", "sfixed32"})
_LONG_KINDS = frozenset({"int64", "uint64", "sint64", "fixed64", "sfixed64"})


def keywords(rules: Mapping[str, Any]) -> Schema:
    """Returns the keywords for the value of a field.

    Arguments:
        rules: `buf.validate.FieldRules` as plain values, 64-bit integers as str.
    """
    for kind, rule in rules.items():
        if kind == "string":
            return _string(rule)
        if kind in _NUMBER_KINDS:
            return _number(rule)
        if kind in _LONG_KINDS:
            return _long(rule)
        if kind == "repeated":
            return _limits(rule, {"min_items": "minItems", "max_items": "maxItems"}) | (
                {"uniqueItems": True} if rule.get("unique") else {}
            )
        if kind == "map":
            names = keywords(rule.get("keys", {}))
            return _limits(rule, {"min_pairs": "minProperties", "max_pairs": "maxProperties"}) | (
                {"propertyNames": names} if names else {}
            )
    return {}


def refuses_absence(rules: Mapping[str, Any], *, has_presence: bool) -> bool:
    """Returns whether leaving the field out breaks a rule, so that it must be sent.

    Arguments:
        has_presence: whether absence differs from the zero value; where it does not, rules judge that value.
    """
    if rules.get("ignore") in ("IGNORE_ALWAYS", "IGNORE_IF_ZERO_VALUE"):
        return False
    if rules.get("required") or has_presence:
        return bool(rules.get("required"))
    text = rules.get("string", {})
    return bool(
        int(text.get("min_len", 0))
        or any(text.get(name) for name in _FORMATS)
        or not re.search(text.get("pattern", ""), "")
        or int(rules.get("repeated", {}).get("min_items", 0))
        or int(rules.get("map", {}).get("min_pairs", 0))
        or 0 in rules.get("enum", {}).get("not_in", ())
        or any(float(rules.get(kind, {}).get("gte", 0)) > 0 for kind in _NUMBER_KINDS | _LONG_KINDS)
    )


def _limits(rule: Mapping[str, Any], names: Mapping[str, str]) -> Schema:
    return {keyword: int(rule[name]) for name, keyword in names.items() if name in rule}


def _string(rule: Mapping[str, Any]) -> Schema:
    schema: Schema = {}
    if "len" in rule:
        schema |= {"minLength": int(rule["len"]), "maxLength": int(rule["len"])}
    schema |= _limits(rule, {"min_len": "minLength", "max_len": "maxLength"})
    if "max_bytes" in rule:
        # A character takes one byte or more: a longer text is refused for certain, a shorter one perhaps.
        schema["maxLength"] = min(int(rule["max_bytes"]), schema.get("maxLength", int(rule["max_bytes"])))
    if "pattern" in rule:
        schema["pattern"] = rule["pattern"]
    elif rule.get("not_contains") == "\0":
        schema["pattern"] = "^[^\\u0000]*$"
    elif "prefix" in rule:
        schema["pattern"] = "^" + re.escape(rule["prefix"])
    if "const" in rule:
        schema["const"] = rule["const"]
    if "in" in rule:
        schema["enum"] = list(rule["in"])
    for name, word in _FORMATS.items():
        if rule.get(name):
            schema["format"] = word
    return schema


def _number(rule: Mapping[str, Any]) -> Schema:
    schema = {keyword: rule[name] for name, keyword in _NUMBER_KEYWORDS.items() if name in rule}
    if "in" in rule:
        schema["enum"] = list(rule["in"])
    return schema


def _long(rule: Mapping[str, Any]) -> Schema:
    # 64-bit integers are strings in JSON; of the bounds only the sign can be said.
    if int(rule.get("gte", -1)) >= 0 or int(rule.get("gt", -1)) >= 0:
        return {"pattern": "^[0-9]+$"}
    return {}
