"""The scheduler service: tasks, their schedules, and runs in the background."""
