"""The intake without Kafka: everything but the produce. python -m bench.http_nowhere CONFIG"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvloop

from pipeline.config import load_config
from pipeline.intake.client_address import ClientAddress
from pipeline.intake.endpoints import Endpoints
from pipeline.intake.protocol import IntakeProtocol
from pipeline.intake.server import listening_socket
from pipeline.intake.server_state import ServerState
from pipeline.intake.tokens import Tokens
from pipeline.kafka.producer import Report
from pipeline.process.garbage import reduce_gc_frequency
from pipeline.stages.accept import Accepted


class Nowhere:
    """Takes every hit, keeps none."""

    def store(self, hit: Accepted, report: Report) -> bool:
        """Stored at once."""
        report(True)
        return True


async def serve(file: Path) -> None:
    """Until killed."""
    config = load_config(file)
    state = ServerState(
        Endpoints(Tokens(config.projects)), Nowhere(), b"{}", ClientAddress([]), lambda address: address
    )
    listener = listening_socket(config.intake.listen)
    server = await asyncio.get_running_loop().create_server(lambda: IntakeProtocol(state), sock=listener)
    reduce_gc_frequency()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1])))
