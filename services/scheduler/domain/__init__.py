"""When a schedule fires and what becomes of a fire: pure, no I/O, no protobuf, no SQL."""
