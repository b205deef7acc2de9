"""Envoy's configuration, as typed Python."""
