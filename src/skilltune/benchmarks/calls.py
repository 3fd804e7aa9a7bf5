"""Calls of functions as text, and the rules by which the Berkeley Function-Calling Leaderboard compares them.

The text is Python: `[name(parameter=value), …]`. It is parsed and never run. The rules are those of the leaderboard's
check of syntax trees for Python; its own checker imports the SDKs of all vendors, so these are written anew.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from skilltune.scorers.reading import elided

Call = tuple[str, dict[str, Any]]
"""The name of a function, and its arguments by name."""

_TYPES: Mapping[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}
_ARITHMETIC: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_IGNORED = re.compile(r"[ ,./\-_*^]")
_FENCE = re.compile(r"^```(?:\w+\n)?(.*?)```$", re.DOTALL)
LONGEST = 50_000  # characters of an answer that is parsed
LARGEST = 1e6, 100  # base and exponent of a power
LONGEST_BITS = 4_000  # of an integer
SHOWN = 200  # characters of a value in a reason


def read_calls(text: str) -> list[Call]:
    """The calls in a text. Raises ValueError if it is not Python that only calls functions with named arguments."""
    text = _FENCE.sub(r"\1", text.strip()).strip().strip("'")
    if len(text) > LONGEST:
        raise ValueError(f"the answer is longer than {LONGEST:,} characters")
    try:
        body = ast.parse(text, mode="eval").body
        parts = body.elts if isinstance(body, ast.List | ast.Tuple) else [body]
        if not all(isinstance(part, ast.Call) for part in parts):
            raise ValueError("not everything in it is a call")
        return [_call(part) for part in parts if isinstance(part, ast.Call)]
    except (SyntaxError, ArithmeticError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"it is not Python: {error}") from None


def _call(node: ast.Call) -> Call:
    if node.args:
        raise ValueError(f"{ast.unparse(node.func)} has an argument without a name")
    return ast.unparse(node.func), {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant():
            return "..." if node.value is ... else _bounded(node.value)
        case ast.List():
            return [_value(part) for part in node.elts]
        case ast.Tuple():
            return tuple(_value(part) for part in node.elts)
        case ast.Dict():
            return {_value(key): _value(part) for key, part in zip(node.keys, node.values, strict=True) if key}
        case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
            return -_number(node.operand) if isinstance(node.op, ast.USub) else _number(node.operand)
        case ast.BinOp():
            return _computed(node)
        case ast.Name():
            return node.id
        case ast.Call(keywords=[_, *_]):
            name, given = _call(node)
            return {name: given}
        case _:
            return ast.unparse(node)


def _number(node: ast.expr) -> int | float:
    value = _value(node)
    if not isinstance(value, int | float):
        raise ValueError(f"{ast.unparse(node)} is no number")
    return value


def _computed(node: ast.BinOp) -> Any:
    left, right = _number(node.left), _number(node.right)
    if isinstance(node.op, ast.Pow) and (abs(left) > LARGEST[0] or abs(right) > LARGEST[1]):
        raise ValueError(f"{ast.unparse(node)} is too large")
    if type(node.op) not in _ARITHMETIC:
        raise ValueError(f"{ast.unparse(node)} is no value")
    return _bounded(_ARITHMETIC[type(node.op)](left, right))


def _bounded(value: Any) -> Any:
    """The value. Raises ValueError for an integer that Python would not print."""
    if isinstance(value, int) and value.bit_length() > LONGEST_BITS:
        raise ValueError("a number in it is too large")
    return value


# -- compare


def paired(calls: Sequence[Call], expected: Sequence[Mapping[str, Any]], functions: Sequence[Mapping[str, Any]]) -> int:
    """The largest number of expected calls that can each be matched with a call of its own, in any order.

    `expected` are objects {function: {parameter: [accepted values]}}; "" among the values means that the parameter may
    be left out. `functions` are the schemas.
    """
    fits = [[not fault(call, wanted, functions) for call in calls] for wanted in expected]
    taken: dict[int, int] = {}  # expected call by call

    def place(number: int, seen: set[int]) -> bool:
        for at, fitting in enumerate(fits[number]):
            if fitting and at not in seen:
                seen.add(at)
                if at not in taken or place(taken[at], seen):
                    taken[at] = number
                    return True
        return False

    return sum(place(number, set()) for number in range(len(expected)))


def fault(call: Call, wanted: Mapping[str, Any], functions: Sequence[Mapping[str, Any]]) -> str:
    """The reason why a call is not the expected one; "" if it is."""
    (name, accepted), (called, given) = next(iter(wanted.items())), call
    if called != name:
        return f"calls {called}, expected {name}"
    schema = next((function["parameters"] for function in functions if function["name"] == name), None)
    if schema is None:
        return f"the schemas have no function {name}"
    if lacking := [key for key in schema.get("required", ()) if key not in given]:
        return f"{name}: the required parameter {lacking[0]} is missing"
    for key, value in given.items():
        if key not in schema["properties"] or key not in accepted:
            return f"{name}: there should be no parameter {key}"
        if not _accepts(value, schema["properties"][key], accepted[key]):
            right = " or ".join(repr(one) for one in accepted[key] if one != "")
            return f"{name}: {key} is {elided(repr(value), SHOWN)}, expected {right}"
    if lacking := [key for key, values in accepted.items() if key not in given and "" not in values]:
        return f"{name}: the parameter {lacking[0]} is missing"
    return ""


def _accepts(value: Any, schema: Mapping[str, Any], accepted: Sequence[Any]) -> bool:
    """True if a value has the declared type, or that of the expected value, and equals an accepted one."""
    declared = _TYPES.get(schema.get("type", ""), str)
    inner = _TYPES.get(schema["items"].get("type", ""), str) if schema.get("items") and declared is list else None
    if schema.get("type") == "tuple" and type(value) is tuple:
        value = list(value)
    if declared is float and type(value) is int:
        value = float(value)
    expected = _type_of(accepted)
    if type(value) is declared:
        if inner is not None and not any(_of_type(value, inner, one) for one in accepted):
            return False
        variable = expected is not None and expected is not declared  # the expected value names a variable
    elif type(value) is expected:
        variable = True
    else:
        return False
    if variable:
        return value in accepted
    if declared is dict:
        return any(_same_object(value, one) for one in accepted if isinstance(one, Mapping))
    if declared is list and inner is dict:
        lists = [one for one in accepted if isinstance(one, list) and len(one) == len(value)]
        return any(all(map(_same_object, value, one)) for one in lists)
    if value == [] and "" in accepted:  # an empty list is the same as a parameter that is left out
        return True
    return _folded(value) in [_folded(one) for one in accepted]


def _type_of(accepted: Sequence[Any]) -> type | None:
    """The type of the first accepted value; None if there is none but ""."""
    return next((type(one) for one in accepted if one != ""), None)


def _of_type(values: list[Any], inner: type, accepted: Any) -> bool:
    """True if all values of a list have the declared type, or that of the expected list's values."""
    if not isinstance(accepted, list):
        return True
    return all(type(value) in (inner, _type_of(accepted)) for value in values)


def _same_object(value: Any, accepted: Any) -> bool:
    """True if each member of an object is among the accepted values of its key, and none is missing."""
    if not isinstance(value, Mapping) or not isinstance(accepted, Mapping):
        return False
    if any(key not in accepted or _folded(part) not in map(_folded, accepted[key]) for key, part in value.items()):
        return False
    return all(key in value or "" in values for key, values in accepted.items())


def _folded(value: Any) -> Any:
    """Texts, also those of a list, without case, spaces and some punctuation."""
    if isinstance(value, str):
        return _IGNORED.sub("", value).lower().replace("'", '"')
    return [_folded(part) if isinstance(part, str) else part for part in value] if type(value) is list else value


def example(expected: Sequence[Mapping[str, Any]], functions: Sequence[Mapping[str, Any]]) -> str:
    """Calls that are right, if any are: the first accepted value of each parameter that has one or is required."""
    calls = []
    for wanted in expected:
        name, accepted = next(iter(wanted.items()))
        schema = next((function["parameters"] for function in functions if function["name"] == name), {})
        needed, known = schema.get("required", ()), schema.get("properties", accepted)
        first = {key: _first(values) for key, values in accepted.items() if key in known or "" not in values}
        given = {key: value for key, value in first.items() if key in needed or value != ""}
        calls.append(f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})")
    return f"[{', '.join(calls)}]"


def _first(values: Sequence[Any]) -> Any:
    found = next((value for value in values if value != ""), "")
    if isinstance(found, Mapping):
        return _object(found)
    if isinstance(found, list) and found and all(isinstance(part, Mapping) for part in found):
        return [_object(part) for part in found]
    return found


def _object(accepted: Mapping[str, Any]) -> dict[str, Any]:
    """An object of the first accepted value of each key that must be there."""
    return {key: values[0] for key, values in accepted.items() if "" not in values}
