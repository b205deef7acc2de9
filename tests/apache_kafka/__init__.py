"""A real Apache Kafka for the tests marked `kafka`, from its published artifacts."""
