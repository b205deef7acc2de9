"""The scheduler service's adapters to what lies outside it."""
