"""What a report is: its document, block by block. Pure: no I/O, no protobuf, no SQL."""
