"""The reports service's adapters to what lies outside it."""
