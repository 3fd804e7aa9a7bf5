"""The end of a run: choose the version and certify it on the test split. Later, on demand: compaction, control arms."""
