"""The executor: owns the Claude Code processes."""
