"""Central differential privacy with a fixed clip norm."""

from typing import Literal

from tasks.train.privacy.central import Central


class Gaussian(Central):
    """Uploads clipped to a fixed norm, Gaussian noise on their sum: DP-FedAvg, private for whole clients.

    mean = (sum_k u_k min(1, C / ||u_k||) + N(0, (z C)^2 I)) / expected cohort

    With z = 0 and C beyond every norm this is uniform FedAvg, to the last bit. The promise is about all data of one
    client. Which two populations count as neighbours follows from the sampling:

    - ``poisson``: with or without one client, which moves the sum by at most C; accounted by privacy loss
      distributions of the subsampled Gaussian with noise multiplier z.
    - ``uniform``: one client's data exchanged for any other, which moves the sum by up to 2 C; accounted by Renyi
      divergences of the Gaussian subsampled without replacement with noise multiplier z / 2. For the same z, epsilon is
      several times larger: prefer Poisson.

    Source: McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018, algorithm 1 with the
    estimator f_f. Accounting: Koskela et al., AISTATS 2020 (Poisson); Wang et al., AISTATS 2019, theorem 9 (uniform).
    """

    name: Literal["gaussian"] = "gaussian"
