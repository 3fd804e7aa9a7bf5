"""The journal: one SQLite file per run that memoises every paid call and every decision."""
