"""Loads a user's own function from `file.py:name` and fingerprints it by its content rather than its location.

The fingerprint covers the function's source, the values in its closure, and the helpers of its module that it uses. So
a changed threshold or helper changes the scorer, and an unrelated edit of the same file does not.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

from skilltune.errors import UsageError
from skilltune.scorers.reading import nearest


def load_object(spec: str, root: Path) -> Any:
    """The object that "file.py:name" names. Relative files are looked up in `root`. Raises UsageError."""
    file, colon, name = spec.rpartition(":")
    if not colon or not file or not name.isidentifier():
        raise UsageError(f'"{spec}" must look like file.py:name')
    module = load_module(root / file)
    if not hasattr(module, name):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f'{file} has no "{name}"{nearest(name, public)}; it has: {", ".join(public) or "nothing"}')
    return getattr(module, name)


def load_module(path: Path) -> ModuleType:
    """Import a Python file by its path. It can import its neighbours; `sys.path` is restored afterwards."""
    path = path.resolve()
    if not path.is_file():
        raise UsageError(f"{path}: no such Python file")
    name = f"skilltune_file_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file (its name must end in .py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pydantic look their module up by name
    try:
        with importing_from(path.parent), redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a file that calls sys.exit must not end this process
        sys.modules.pop(name, None)
        where = raised_in(error, str(path)) or str(path)
        raise UsageError(f"{where}: importing it failed with {type(error).__name__}: {error}") from error
    return module


def raised_in(error: BaseException, file: str) -> str:
    """The last line of a file in an error's traceback, as "file.py:12", or "" if the file is not in it."""
    frame, lines = error.__traceback__, []
    while frame:
        lines += [frame.tb_lineno] if frame.tb_frame.f_code.co_filename == file else []
        frame = frame.tb_next
    return f"{file}:{lines[-1]}" if lines else ""


def source_file(fn: Any) -> str:
    """The file that defines a user's function, or "" if it is unknown."""
    fn = inspect.unwrap(fn.func if isinstance(fn, partial) else fn)
    fn = fn if hasattr(fn, "__code__") or isinstance(fn, MethodType) else getattr(type(fn), "__call__", fn)  # noqa: B004
    return getattr(getattr(fn, "__code__", None), "co_filename", "")


@contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


def function_name(fn: Any) -> str:
    if isinstance(fn, partial):
        return function_name(fn.func)
    return getattr(fn, "__qualname__", type(fn).__qualname__)


def function_fingerprint(fn: Callable[..., Any]) -> str:
    """Hash of a function's content, see the module docstring."""
    own = inspect.getmodule(inspect.unwrap(fn.func if isinstance(fn, partial) else fn))
    return hashlib.sha256("\n".join(_describe(fn, getattr(own, "__name__", ""), set())).encode()).hexdigest()


def _describe(value: Any, module: str, seen: set[int]) -> Iterator[str]:
    if isinstance(value, partial):
        yield from _describe(value.func, module, seen)
        yield from _describe((value.args, tuple(sorted(value.keywords.items()))), module, seen)
    elif isinstance(value, MethodType):
        yield from _describe(value.__func__, module, seen)
        yield from _describe(value.__self__, module, seen)
    elif isinstance(value, FunctionType):
        yield value.__qualname__
        if id(value) in seen or value.__module__ != module:
            return
        seen.add(id(value))
        yield _source(value)
        yield from _describe((value.__defaults__, value.__kwdefaults__), module, seen)
        used = inspect.getclosurevars(value)
        for name, part in sorted({**used.globals, **used.nonlocals}.items()):
            yield name
            yield from _describe(part, module, seen)
    elif isinstance(value, type):
        yield value.__qualname__
        if id(value) not in seen and value.__module__ == module:
            seen.add(id(value))
            yield _source(value)
    elif isinstance(value, dict | list | tuple | set | frozenset):
        if isinstance(value, dict | list):  # these can contain themselves
            if id(value) in seen:
                return
            seen.add(id(value))
        parts = tuple(sorted(value, key=repr)) if isinstance(value, set | frozenset) else value
        yield type(value).__name__
        for part in parts.items() if isinstance(parts, dict) else parts:
            yield from _describe(part, module, seen)
    elif isinstance(value, ModuleType):
        yield value.__name__
    elif type(value).__module__ == module and id(value) not in seen:
        seen.add(id(value))
        yield from _describe(type(value), module, seen)
        yield from _describe(getattr(value, "__dict__", None), module, seen)
    else:
        yield _without_address(repr(value))


def _source(value: Any) -> str:
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):  # defined in a shell or by exec, so there is no source file
        code = getattr(value, "__code__", None)
        return _without_address(repr((code.co_code, code.co_consts))) if code else ""


def _without_address(text: str) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)
