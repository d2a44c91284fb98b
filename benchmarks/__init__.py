"""
What a unit costs, next to what it replaces: ``nox -s bench`` writes *docs/benchmarks.md*.

Everything runs side by side in one process, because only the ratio of two neighbours says something on a machine that
does other work too.
"""
