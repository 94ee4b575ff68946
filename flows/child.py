"""``python -m flows.child ID``: carries out a pipeline's flow run that another process has registered with Prefect.

A sweep runs its cells so: each in a process of its own, which can be stopped with all that it has started, and as a run
of its own in the UI.
"""

import os
import sys
from uuid import UUID

from rich.console import Console

from flows import checkout, server
from flows.display import REFUSED, SILENT, WIDE, Display


def main(identity: str) -> int:
    """The exit status: 1 where the run failed, with the reason in the last lines of the output, 130 where stopped."""
    server.prepare(checkout.root())
    os.environ.update(SILENT)
    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow

    from flows.pipeline import drain, pipeline

    with get_client(sync_client=True) as client:
        registered = client.read_flow_run(UUID(identity))
    try:
        with Display(Console(width=WIDE)):
            # It has its name already, which is that of its experiment.
            run_flow(pipeline.with_options(flow_run_name=registered.name), flow_run=registered)
    except Exception as error:
        print(f"{REFUSED}{error}", flush=True)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        drain()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
