"""Measures this project beside a stock Prefect, on one machine and in one run: `make bench`.

Both are started for real, with databases and folders of their own, and stopped at the end. What the numbers mean and
what they have taught is in docs/performance.md.
"""
