"""A word to a chat or a pager when a run fails: a Prefect automation that calls a webhook, kept by the server.

It is the server that notices, so a runner that was killed is told of too.
"""

from prefect.automations import Automation
from prefect.blocks.webhook import Webhook
from prefect.events import EventTrigger
from prefect.events.actions import CallWebhook
from prefect.exceptions import ObjectNotFound
from prefect.types import SecretDict

NAME = "fedloom-failed"
EVENTS = {"prefect.flow-run.Failed", "prefect.flow-run.Crashed"}
PAYLOAD = """\
{"text": {{ ["Fedloom run", flow_run.name, "of pipeline", deployment.name, "is", flow_run.state.name ~ ":",
             flow_run.state.message or "", flow_run|ui_url] | join(" ") | tojson }}}
"""
"""What Slack, Mattermost, Rocket.Chat and others read: a JSON object with a `text`."""


def notify(url: str) -> None:
    """Has the server post to ``url`` for each served run that fails or crashes; in place of an address named before."""
    block = Webhook(url=url, headers=SecretDict({"Content-Type": "application/json"}))
    action = CallWebhook(block_document_id=block.save(NAME, overwrite=True), payload=PAYLOAD)
    forget()
    Automation(
        name=NAME,
        description="Made by `fedloom notify`: tells a webhook of failed and crashed runs.",
        trigger=EventTrigger(
            expect=EVENTS,
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={"prefect.resource.role": "flow", "prefect.resource.name": "fedloom"},
            posture="Reactive",
            threshold=1,
        ),
        actions=[action],
    ).create()


def forget() -> bool:
    """Removes the automation; whether there was one."""
    try:
        Automation.read(name=NAME).delete()
    except (ObjectNotFound, ValueError):
        return False
    return True
