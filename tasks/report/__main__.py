from tasks.report.stage import report
from tasks.stage import main

main(report)
