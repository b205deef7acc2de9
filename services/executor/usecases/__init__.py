"""What the executor does: attempts and their buffers, live agents and their places."""
