"""The history of the schema `auth`."""
