"""`python -m tests.apache_kafka [COMMAND…]`: runs a command with one Apache Kafka broker (KRaft) behind it.

Needs Java 17 and Maven, which fetches the broker's artifacts once, into `build/`. The command, the tests marked `kafka`
if left out, is told of the broker by the variables that services know, and of its process by `KAFKA_PID_FILE`: a broker
that is killed is started again with all that it had. Ends with the command's status; with 3 where Kafka cannot be had.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from deploy.local.ports import free_port
from tests.apache_kafka.certificates import Authority

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
CANNOT = 3
_USER = "aiagent"
_MECHANISM = "SCRAM-SHA-512"
_START_SECONDS = 90.0
_FETCH_SECONDS = 180.0
_JAVA = 17
_PYTEST = [
    *(sys.executable, "-m", "pytest", "-q", "-m", "kafka"),
    *("tests/integration/kernel", "tests/integration/scheduler"),
]


def artifacts() -> Path | None:
    """The directory with the broker's jars; None where they cannot be had."""
    java, maven = shutil.which("java"), shutil.which("mvn")
    if java is None or maven is None or _version(java) < _JAVA:
        print(f"Apache Kafka needs java {_JAVA} and mvn")
        return None
    libraries = ROOT / "build" / "apache-kafka"
    if not (libraries / "complete").exists():
        command = [
            *(maven, "-q", "-B", "-f", str(HERE / "pom.xml"), "dependency:copy-dependencies"),
            *(f"-DoutputDirectory={libraries}", "-DincludeScope=runtime"),
        ]
        try:
            done = subprocess.run(command, check=False, timeout=_FETCH_SECONDS).returncode == 0
        except subprocess.TimeoutExpired:
            done = False
        if not done:
            print("Apache Kafka's artifacts cannot be had")
            return None
        (libraries / "complete").touch()
    return libraries


def _version(java: str) -> int:
    """The major version: `openjdk version "17.0.15"`."""
    told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', told)
    return int(found[1]) if found else 0


class ApacheKafka:
    """One broker, which is its own controller: behind TLS and a user's name and password, or a client's certificate."""

    def __init__(self, libraries: Path, directory: Path) -> None:
        self._classpath = f"{libraries}/*"
        self._directory = directory
        self._configuration = directory / "server.properties"
        self.port, self._certified, brokers, controller = (free_port() for _ in range(4))
        self.password = secrets.token_urlsafe(12)
        self.pid_file = directory / "pid"
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        authority = Authority(directory, "authority")
        self._authority, self._client = authority.file, authority.issue("client")
        self._another = Authority(directory, "another-authority").file
        login = "org.apache.kafka.common.security.scram.ScramLoginModule required"
        self._configuration.write_text(
            f"""process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=CLIENTS://127.0.0.1:{self.port},CERTIFIED://127.0.0.1:{self._certified},\\
  BROKERS://127.0.0.1:{brokers},CONTROLLER://127.0.0.1:{controller}
controller.listener.names=CONTROLLER
inter.broker.listener.name=BROKERS
listener.security.protocol.map=CLIENTS:SASL_SSL,CERTIFIED:SSL,BROKERS:PLAINTEXT,CONTROLLER:PLAINTEXT
sasl.enabled.mechanisms={_MECHANISM}
listener.name.clients.{_MECHANISM.lower()}.sasl.jaas.config={login};
listener.name.certified.ssl.client.auth=required
ssl.keystore.type=PEM
ssl.keystore.location={authority.issue("broker")}
ssl.truststore.type=PEM
ssl.truststore.location={self._authority}
log.dirs={directory}/data
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
offsets.retention.check.interval.ms=1000
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
"""
        )

    @property
    def variables(self) -> dict[str, str]:
        """What a service is told of it; `KAFKA_*` is for tests."""
        return {
            "AIAGENT_KAFKA_URL": f"kafka://127.0.0.1:{self.port}",
            "AIAGENT_KAFKA_SECURITY": "SASL_SSL",
            "AIAGENT_KAFKA_SASL_MECHANISM": _MECHANISM,
            "AIAGENT_KAFKA_SASL_USERNAME": _USER,
            "AIAGENT_KAFKA_SASL_PASSWORD": self.password,
            "AIAGENT_KAFKA_CA_FILE": str(self._authority),
            "KAFKA_PID_FILE": str(self.pid_file),
            "KAFKA_CERTIFIED_URL": f"kafka://127.0.0.1:{self._certified}",
            "KAFKA_CERTIFICATE_FILE": str(self._client),
            "KAFKA_ANOTHER_CA_FILE": str(self._another),
        }

    def start(self) -> None:
        """Starts it, and keeps it up."""
        identity = base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
        subprocess.run(
            [
                *("java", "-cp", self._classpath, "kafka.tools.StorageTool", "format"),
                *("-t", identity, "-c", str(self._configuration)),
                *("--add-scram", f"{_MECHANISM}=[name={_USER},password={self.password}]"),
            ],
            check=True,
            capture_output=True,
        )
        self._spawn()
        threading.Thread(target=self._keep, daemon=True).start()

    def _spawn(self) -> None:
        with (self._directory / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["java", "-Xmx512m", "-cp", self._classpath, "kafka.Kafka", str(self._configuration)],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    self.pid_file.write_text(str(self._process.pid))
                    return
            time.sleep(0.1)
        raise SystemExit(
            f"Apache Kafka does not start: {(self._directory / 'broker.log').read_text()[-2000:]}"
        )

    def _keep(self) -> None:
        while self._process is not None:
            self._process.wait()
            if self._stopping.is_set():
                return
            self._spawn()

    def stop(self) -> None:
        """Ends it."""
        self._stopping.set()
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def main() -> int:
    """Runs the command; returns its status."""
    libraries = artifacts()
    if libraries is None:
        return CANNOT
    directory = Path(tempfile.mkdtemp(prefix="aiagent-kafka-"))
    broker = ApacheKafka(libraries, directory)
    try:
        broker.start()
        print(f"Apache Kafka at {broker.variables['AIAGENT_KAFKA_URL']}", flush=True)
        return subprocess.run(
            sys.argv[1:] or _PYTEST, env={**os.environ, **broker.variables}, check=False
        ).returncode
    finally:
        broker.stop()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
