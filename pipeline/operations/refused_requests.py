"""Refused requests, asked from the admin endpoints of the intakes."""

from __future__ import annotations

from collections.abc import Sequence

import httpx
import msgspec

from pipeline.codec.refused_request import RefusedRequest
from pipeline.config.addresses import admin_address
from pipeline.config.models import Config

_SECONDS = 3.0
_decode = msgspec.json.Decoder(RefusedRequest).decode_lines
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}


def intake_addresses(config: Config) -> list[str]:
    """Return the admin addresses, host:port, of the intakes that `up` runs on this machine with this file."""
    host, _, port = config.admin.listen.rpartition(":")
    listen = f"{_EVERYWHERE.get(host, host)}:{port}"
    return [admin_address(listen, "intake", slot) for slot in range(config.intake.workers)]


class RefusedReader:
    """Asks intakes again and again for what they have refused. `problems` says which do not answer, and why."""

    def __init__(self, addresses: Sequence[str], bodies: bool = False) -> None:
        self._after = dict.fromkeys(addresses, 0)
        self._bodies = bodies
        # Without the environment's proxies: these addresses are inside.
        self._client = httpx.Client(timeout=_SECONDS, trust_env=False)
        self.problems: dict[str, str] = {}

    def read(self) -> list[RefusedRequest]:
        """Return what is new at all of them, the oldest first; waits up to three seconds for each."""
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
            raise ValueError(f"it answers {answer.status_code}; is it an intake of this version?")
        found = _decode(answer.content)
        if found:
            self._after[address] = found[-1].number
        return found

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
