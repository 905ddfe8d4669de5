"""What is judged: grades, judgements, prompts, the rule book, the teacher and the embedded shop."""
