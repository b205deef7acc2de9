"""What an executor reports and promises: items, outcomes, errors. Pure."""
