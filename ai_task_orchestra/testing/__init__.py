"""Test tools that ship with the package. Start with `ai_task_orchestra.testing.scripted_ollama`."""
