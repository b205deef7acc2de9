"""The reports service: what the agents did and what it cost, as documents."""
