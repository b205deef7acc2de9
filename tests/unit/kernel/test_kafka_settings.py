"""Where the broker is, as an operator says it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from services.kernel.kafka.settings import KafkaSettings

pytestmark = pytest.mark.unit


def settings(**values: object) -> KafkaSettings:
    return KafkaSettings(_env_file=None, **values)  # type: ignore[call-arg, arg-type]


def test_there_may_be_no_broker() -> None:
    assert settings().broker() is None


def test_a_url_names_several_servers() -> None:
    broker = settings(kafka_url="kafka://one:9092, two:9093").broker()
    assert broker is not None
    assert broker.client() == {
        "bootstrap_servers": ["one:9092", "two:9093"],
        "security_protocol": "PLAINTEXT",
        "ssl_context": None,
    }


@pytest.mark.parametrize("url", ["kafka://one", "one:port", "kafka://one:9092,two"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="is not host:port"):
        settings(kafka_url=url)


def test_tls_and_sasl_reach_the_client_and_no_password_is_shown() -> None:
    broker = settings(
        kafka_url="one:9092",
        kafka_security="SASL_SSL",
        kafka_sasl_mechanism="SCRAM-SHA-256",
        kafka_sasl_username="suite",
        kafka_sasl_password="hidden-word",
    ).broker()
    assert broker is not None
    client = broker.client()
    assert client.pop("ssl_context").check_hostname
    assert client == {
        "bootstrap_servers": ["one:9092"],
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-256",
        "sasl_plain_username": "suite",
        "sasl_plain_password": "hidden-word",
    }
    assert "hidden-word" not in repr(broker)


def test_sasl_needs_a_name() -> None:
    with pytest.raises(ValueError, match="AIAGENT_KAFKA_SASL_USERNAME"):
        settings(kafka_url="one:9092", kafka_security="SASL_PLAINTEXT").broker()


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"AIAGENT_KAFKA_\*_FILE"):
        settings(kafka_url="one:9092", kafka_security="SSL", kafka_ca_file="/nowhere.pem").broker()
