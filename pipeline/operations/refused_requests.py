"""Reads refused requests from the admin endpoints of the intakes."""

from __future__ import annotations

from collections.abc import Sequence

import httpx
import msgspec

from pipeline.codec.refused_request import RefusedRequest
from pipeline.config.addresses import admin_address
from pipeline.config.models import Config

_TIMEOUT_SECONDS = 3.0
_decode = msgspec.json.Decoder(RefusedRequest).decode_lines
_LOOPBACK_OF_WILDCARD = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}


def intake_addresses(config: Config) -> list[str]:
    """Return the admin addresses, host:port, of the intakes that `up` starts on this machine with this file."""
    host, _, port = config.admin.listen.rpartition(":")
    listen = f"{_LOOPBACK_OF_WILDCARD.get(host, host)}:{port}"
    return [admin_address(listen, "intake", slot) for slot in range(config.intake.workers)]


class RefusedReader:
    """Polls intakes for refused requests. `problems` holds the error of each address that does not respond."""

    def __init__(self, addresses: Sequence[str], bodies: bool = False) -> None:
        self._after = dict.fromkeys(addresses, 0)
        self._bodies = bodies
        # Internal addresses must not go through the proxies of the environment.
        self._client = httpx.Client(timeout=_TIMEOUT_SECONDS, trust_env=False)
        self.problems: dict[str, str] = {}

    def read(self) -> list[RefusedRequest]:
        """Return the new refused requests of all intakes, oldest first. Waits up to three seconds for each intake."""
        found: list[RefusedRequest] = []
        for address in self._after:
            try:
                found += self._ask(address)
                self.problems.pop(address, None)
            except httpx.HTTPError as error:
                self.problems[address] = type(error).__name__
            except (msgspec.DecodeError, ValueError) as error:
                self.problems[address] = str(error)
        return sorted(found, key=lambda request: request.time_ms)

    def _ask(self, address: str) -> list[RefusedRequest]:
        query = {"after": str(self._after[address]), **({"bodies": "1"} if self._bodies else {})}
        answer = self._client.get(f"http://{address}/refused", params=query)
        if answer.status_code != 200:
            raise ValueError(f"it responds with {answer.status_code}; check that it is an intake of this version")
        found = _decode(answer.content)
        if found:
            self._after[address] = found[-1].number
        return found

    def close(self) -> None:
        """Close the HTTP connections."""
        self._client.close()
