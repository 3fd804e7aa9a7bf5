"""The end of a run: choose the version, shorten it, certify it on the test split."""
