"""Ways to fit the released model to each client. To add one: a file here, and its name in the union."""

from tasks.aggregate.personalise.finetune import FineTune
from tasks.aggregate.personalise.none import NoPersonalisation
from tasks.aggregate.personalise.personalisation import Personalisation
from tasks.config import one_of

AnyPersonalisation = one_of(NoPersonalisation, FineTune)

__all__ = ["AnyPersonalisation", "NoPersonalisation", "Personalisation"]
