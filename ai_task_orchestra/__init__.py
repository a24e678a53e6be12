"""AI Task Orchestra: what every process of the system shares.

The rooms beside this package (`api`, `flows`, `deployments`) build on it; it imports none of them.
"""

__version__ = "0.1.0"
