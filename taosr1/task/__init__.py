"""What is judged: grades, judgements, prompts and replies, the rule book and the teacher's words."""
