"""What a session is: entities, state tables and rules. Pure: no I/O, no protobuf, no SQL."""
