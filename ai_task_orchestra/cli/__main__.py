from ai_task_orchestra.cli import main

main()
