"""Measurements. Each script prints one table and appends it, dated, to LOG.md; `python -m benchmarks.NAME --help`."""
