import functools
import signal
from collections.abc import Iterator
from unittest.mock import patch

import httpcore2
import pytest

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
