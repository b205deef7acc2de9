"""What the scheduler does: one module for each use case, the ports it needs, the transaction boundary."""
