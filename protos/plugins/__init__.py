"""Plugins of the protobuf compiler, run by buf."""
