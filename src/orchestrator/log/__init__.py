"""The event log: what happened, durably, in order."""
