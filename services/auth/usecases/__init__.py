"""What the auth service does; transactions begin and end here."""
