"""The whole suite on one machine: real servers from wheels, one command."""
