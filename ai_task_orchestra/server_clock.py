"""What time it is on another machine's clock, as the `Date` header of its HTTP answers tells.

Moments that a server has written (when a run is due, when it ended) are compared with the server's own time: a clock
of ours that is an hour wrong must neither start something early nor keep anybody waiting.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

#: A header is cut to whole seconds, and a busy server renews it late: so much older than our time it proves nothing.
TOLERANCE: Final = timedelta(seconds=5)
#: So much may `ServerClock.now` be behind the server's true time.
SLACK: Final = timedelta(seconds=2)


class ServerClock:
    """The server's time: ours, until an answer shows that ours is wrong. At most `TOLERANCE` ahead of the truth."""

    def __init__(self) -> None:
        self._ahead = timedelta(0)

    def hear(self, date: str | None) -> None:
        """Take in the `Date` header of an answer that has just come; one that can't be read tells nothing."""
        try:
            told = parsedate_to_datetime(date or "")
        except ValueError:
            return
        ahead = told.replace(tzinfo=told.tzinfo or UTC) - datetime.now(UTC)
        self._ahead = ahead if ahead > timedelta(0) or ahead < -TOLERANCE else timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self._ahead
