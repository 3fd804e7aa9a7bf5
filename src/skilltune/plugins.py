"""Installed plug-ins: entry points of packages that provide a target, scorer, optimizer, gate, sink or benchmark.

All look-ups happen here. Plug-ins are found by name and imported only if named. A built-in wins over a plug-in of the
same name, because callers look here last.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from skilltune.errors import SkilltuneError, UsageError

Kind = Literal["target", "scorer", "optimizer", "gate", "sink", "benchmark"]


@dataclass(frozen=True, slots=True)
class Plugin:
    """An imported plug-in. `package` is its distribution with version, because versions may behave differently."""

    kind: Kind
    name: str
    package: str
    value: Any

    def make(self, *given: Any) -> Any:
        """Call the entry point with the arguments. Errors of its code are raised as `UsageError`."""
        try:
            return self.value(*given)
        except SkilltuneError:
            raise
        except Exception as error:
            raise UsageError(
                f'the {self.kind} plug-in "{self.name}" of {self.package} could not be made: '
                f"{type(error).__name__}: {' '.join(str(error).split())}"
            ) from error


_found: dict[tuple[Kind, str], Plugin | None] = {}  # cache: a search reads the metadata of every installed package


def group(kind: Kind) -> str:
    """The entry point group for plug-ins of this kind."""
    return f"skilltune.{kind}s"


def names(kind: Kind) -> list[str]:
    """The sorted names of the installed plug-ins of a kind. None is imported."""
    return sorted({point.name for point in entry_points(group=group(kind))})


def find(kind: Kind, name: str) -> Plugin | None:
    """The plug-in of that name, or None. Results are cached, also that there is none.

    Raises `UsageError` if two packages claim the name with different objects, or if the import fails.
    """
    if (kind, name) in _found:
        return _found[kind, name]
    points = {(_package(point), point.value): point for point in entry_points(group=group(kind), name=name)}
    if not points:
        _found[kind, name] = None
        return None
    if len(points) > 1:
        claims = " and ".join(sorted(f"{package} ({value})" for package, value in points))
        raise UsageError(f'the {kind} plug-in "{name}" is claimed by {claims}: uninstall one of them')
    ((package, value), point) = points.popitem()
    try:
        plugin = Plugin(kind, name, package, point.load())
    except Exception as error:  # its module may raise anything
        raise UsageError(
            f'the {kind} plug-in "{name}" of {package} cannot be imported ({value}): {type(error).__name__}: {error}'
        ) from error
    return _found.setdefault((kind, name), plugin)


def require(kind: Kind, name: str) -> Plugin:
    """Like `find`, but raises `UsageError` with the installed plug-ins of that kind if there is none."""
    plugin = find(kind, name)
    if plugin is None:
        known = ", ".join(names(kind)) or "none"
        raise UsageError(
            f'no {kind} plug-in "{name}" is installed; installed: {known}. '
            f'A package registers one in its pyproject.toml under [project.entry-points."{group(kind)}"]'
        )
    return plugin


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unnamed package"


__all__ = ["Kind", "Plugin", "find", "group", "names", "require"]
