"""Installed plug-ins: entry points of a package that stand for a target, a scorer, an optimizer, a gate or a sink.

The one place that looks them up. They are found by name and imported only when named. What is built in wins over a
plug-in of the same name: callers ask here last.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from skilltune.errors import SkilltuneError, UsageError

Kind = Literal["target", "scorer", "optimizer", "gate", "sink"]


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plug-in, imported. `package` is its distribution with its version: another version may do another thing."""

    kind: Kind
    name: str
    package: str
    value: Any

    def make(self, *given: Any) -> Any:
        """What its entry point makes of what it is given. Raises `UsageError` for whatever its own code raises."""
        try:
            return self.value(*given)
        except SkilltuneError:
            raise
        except Exception as error:
            raise UsageError(
                f'the {self.kind} plug-in "{self.name}" of {self.package} could not be made: '
                f"{type(error).__name__}: {' '.join(str(error).split())}"
            ) from error


_found: dict[tuple[Kind, str], Plugin | None] = {}  # a search reads the metadata of every installed package


def group(kind: Kind) -> str:
    """The entry point group in which a package registers plug-ins of a kind."""
    return f"skilltune.{kind}s"


def names(kind: Kind) -> list[str]:
    """The plug-ins of a kind that are installed, sorted; none of them is imported."""
    return sorted({point.name for point in entry_points(group=group(kind))})


def find(kind: Kind, name: str) -> Plugin | None:
    """The plug-in of that name, or None; a name is searched for once in a process. Raises `UsageError` where two
    packages claim the name with different objects, and where importing it fails."""
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
    except Exception as error:  # whatever its module raises while it is imported
        raise UsageError(
            f'the {kind} plug-in "{name}" of {package} cannot be imported ({value}): {type(error).__name__}: {error}'
        ) from error
    return _found.setdefault((kind, name), plugin)


def require(kind: Kind, name: str) -> Plugin:
    """As `find`; raises `UsageError` that lists the installed plug-ins of that kind where there is none."""
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
