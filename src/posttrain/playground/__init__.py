"""A closed world whose truth is known: corpus, prompts, expert, oracle, annotators, tasks."""
