"""``python -m tasks.attack``."""

from tasks.attack.stage import attack
from tasks.stage import main

main(attack)
