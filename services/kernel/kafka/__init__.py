"""Kafka: where the broker is, the topics, the outbox's relay with its publisher, and consumers as Faust applications.

Nothing here is imported by services that were given no broker.
"""
