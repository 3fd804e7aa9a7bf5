"""The suite itself: tests that share something expensive run on one worker."""

import pytest


@pytest.mark.xdist_group("together")
def test_xdist_reads_the_groups(request: pytest.FixtureRequest, worker_id: str) -> None:
    """With a pytest that it does not fit, xdist ignores them silently: each worker then makes what a module shares."""
    if worker_id == "master":
        pytest.skip("there are no workers")
    assert request.node.nodeid.endswith("@together")
