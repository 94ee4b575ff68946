from tasks.stage import main
from tasks.train.stage import train

main(train)
