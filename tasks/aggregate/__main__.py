from tasks.aggregate.stage import aggregate
from tasks.stage import main

main(aggregate)
