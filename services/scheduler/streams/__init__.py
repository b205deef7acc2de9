"""What the service does when it hears events."""
