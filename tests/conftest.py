import functools
import signal
from collections.abc import Iterator
from unittest.mock import patch

import httpcore2
import pytest
from hypothesis import HealthCheck, settings

# Tests run side by side, so no example has a deadline of its own. `--hypothesis-profile=fast` or `soak` picks another.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fast", settings.get_profile("suite"), max_examples=20)
settings.register_profile("soak", settings.get_profile("suite"), max_examples=2_000)
settings.load_profile("suite")

# A shell lets what it begins in the background ignore Ctrl-C, and so would all that the tests begin.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def _one_tls_context() -> Iterator[None]:
    """No test speaks TLS, but each of a thousand clients would read all certificates anew, for 25 ms."""
    with patch.object(httpcore2, "default_ssl_context", functools.cache(httpcore2.default_ssl_context)):
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--agents", metavar="BIN", help="also run what needs the command lines in this folder")
    parser.addoption("--soak", action="store_true", help="also run what is marked `soak`: hours of seeds and kills")


def pytest_make_parametrize_id(val: object) -> str | None:
    """The beginning of a long text: a test's name goes through every report, and texts here have megabytes."""
    return f"{ascii(val[:60])[1:-1]}..{len(val)}" if isinstance(val, str) and len(val) > 200 else None


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in its own hook of this name
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the soaks, keep tests that share something expensive on one worker, and begin with the longest."""
    for marker in ("soak", "agents"):
        if not config.getoption(f"--{marker}"):
            config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker(marker)])
            items[:] = [item for item in items if not item.get_closest_marker(marker)]
    for item in items:
        if item.get_closest_marker("local"):  # the embedded model is loaded once
            item.add_marker(pytest.mark.xdist_group("local"))
        elif isinstance(item, pytest.Function) and _shares(item):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=lambda item: not item.get_closest_marker("slow"))


def _shares(test: pytest.Function) -> bool:
    """True if a test uses a fixture that is made once for its module."""
    fixtures = test._fixtureinfo.name2fixturedefs
    return any(fixtures[name][-1].scope == "module" for name in fixtures if name != "anyio_backend")
