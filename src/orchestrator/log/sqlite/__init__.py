"""The event log on SQLite."""

from orchestrator.log.sqlite.event_log import SqliteEventLog

__all__ = ["SqliteEventLog"]
