"""What the services share: errors, identity, gRPC server and channel, database, logs, life cycle.

The kernel knows no service. A service imports modules from here by their full name.
"""
