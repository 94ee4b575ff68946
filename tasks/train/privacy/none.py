"""No differential privacy."""

from typing import Literal

from tasks.train.privacy.mechanism import Mechanism


class NoPrivacy(Mechanism):
    """Uploads are neither clipped nor noised, and no epsilon is reported."""

    name: Literal["none"] = "none"
