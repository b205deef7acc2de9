"""The session service: sessions, their turns, and the event log."""
