from tasks.partition.stage import partition
from tasks.stage import main

main(partition)
