"""The live page: a local server that shows the runs of a folder while they happen, and that starts and stops them.

`server.serve` runs it. Reading never writes to a run, and actions go through the functions of the command line. Needs
the extra `ui`.
"""
